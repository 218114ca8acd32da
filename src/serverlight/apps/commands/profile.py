"""``serverlight profile``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from serverlight.apps.options import DtypeOption, JsonOption, ModelArgument, ThreadsOption, read_dtype
from serverlight.apps.terminal import STDOUT, check_writable, print_lines, print_table, progress_bar, write_json
from serverlight.errors import ConfigError

if TYPE_CHECKING:
    from serverlight.search.profile import CutCost, Profile

__all__ = ["profile"]

BATCH = 8

SIDES = ("device", "server")


def profile(
    model: ModelArgument = "demo-vision",
    on: Annotated[
        str | None,
        typer.Option("--on", metavar="SIDE", help="What this machine is to be, `device` or `server`; both by default."),
    ] = None,
    dtype: DtypeOption = "auto",
    threads: ThreadsOption = 1,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure anew, even if this was measured before.")] = False,
    speed: Annotated[
        float | None,
        typer.Option(metavar="X", help="Describe a machine that is X times as fast as this one; needs --name."),
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="What to call that machine.")] = None,
    watts: Annotated[float | None, typer.Option(metavar="W", help="What it draws while it computes.")] = None,
    save: Annotated[
        str | None, typer.Option(metavar="PATH", help="Write the profile, for `serverlight search`.")
    ] = None,
    json: JsonOption = None,
) -> None:
    """Measure what a model costs on this machine, for each place where it can be cut.

    Time of heads, tails, codec and messages as fitted curves; bytes of weights, activations and caches; power where the platform
    tells. Takes a minute or two, once for each model and machine. Example: `serverlight profile demo-vision --save here.json`
    """
    check_writable("save", save)
    check_writable("json", json)
    if on is not None and on not in SIDES:
        raise ConfigError("on", f"must be device or server, got {on!r}")
    if (speed is None) != (name is None):
        raise ConfigError("name", "--speed and --name belong together: how fast the machine is, and what to call it")
    read_dtype(dtype)

    from serverlight.search.measure import profile_model

    with progress_bar("measuring", 1) as (bar, task):
        measured = profile_model(
            model,
            on=on,  # type: ignore[arg-type]
            dtype=None if dtype == "auto" else dtype,
            threads=threads,
            fresh=fresh,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if speed is not None and name is not None:
        measured = measured.scaled(speed=speed, name=name, watts=watts)
    if save:
        measured.save(save)
    if json:
        write_json(json, measured.to_dict())
    if json != STDOUT:
        _print(measured)


def _print(measured: Profile) -> None:
    is_language = measured.kind == "language-model"
    columns = [
        "cut", "elements", "head ms", "tail ms", f"tail ms x{BATCH}", "error", "head MB",
        "tail MB", *(["head KV B", "tail KV B"] if is_language else []),
    ]  # fmt: skip
    print_table(columns, [_cells(cut, is_language) for cut in measured.cuts])
    codec, message = measured.codec, measured.message
    power = "the platform tells no power" if measured.watts is None else f"{measured.watts:.1f} W above rest"
    what = "token at a decode step" if is_language else "sample"
    print_lines(
        f"{measured.model} (revision {measured.revision}), {measured.dtype}, {_machine(measured)}; {power}.",
        f"Times of one {what}, and of a tail for {BATCH} of them together; the error is the median of the curves' own.",
        f"Codec: encode {codec.encode.fixed_ms:.3f} ms + {codec.encode.per_token_ms:.4f} ms per 1000 elements, "
        f"decode {codec.decode.fixed_ms:.3f} + {codec.decode.per_token_ms:.4f}. Messages: {message.latency.fixed_ms:.2f} ms "
        f"+ {message.latency.per_token_ms:.4f} ms per kB there and back, {message.server.fixed_ms:.2f} ms of the server's "
        "processor.",
    )


def _machine(measured: Profile) -> str:
    machine = measured.machine
    if "name" in machine:
        return f"{machine['name']}, {machine['speed']:g} times as fast as where it was measured"
    return f"{machine.get('cpu', 'a machine described by hand')}, {machine.get('torch_threads', '?')} thread(s)"


def _cells(cut: CutCost, is_language: bool) -> list[str]:
    caches = [f"{cut.head_kv_bytes:,}", f"{cut.tail_kv_bytes:,}"] if is_language else []
    return [
        cut.name,
        f"{cut.elements:,}",
        f"{cut.head.ms():.2f}",
        f"{cut.tail.ms():.2f}",
        f"{cut.tail.ms(rows=BATCH):.2f}",
        f"{100 * max(cut.head.residual, cut.tail.residual):.1f} %",
        f"{cut.head_weight_bytes / 1e6:.2f}",
        f"{cut.tail_weight_bytes / 1e6:.2f}",
        *caches,
    ]

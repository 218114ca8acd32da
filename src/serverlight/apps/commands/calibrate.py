"""``serverlight calibrate``."""

from __future__ import annotations

import importlib.resources
import itertools
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serverlight.apps.codec_grid import settings_text
from serverlight.apps.options import JsonOption, ModelArgument, ThreadsOption
from serverlight.apps.terminal import STDOUT, check_writable, print_lines, print_table, progress_bar, write_json
from serverlight.errors import ConfigError

if TYPE_CHECKING:
    from serverlight.codec import CodecConfig
    from serverlight.search.calibrate import Progress
    from serverlight.search.quality import QualityRow, QualityTable

__all__ = ["calibrate", "measure_table"]

NUM_CUTS = 5
"""Cuts that are calibrated where none is named."""

IMAGES, TEXTS, TOKENS = 300, 32, 128
"""Samples that are taken where the user does not say how many."""

BUDGET = 0.1
"""Share of all runs of the tail."""


def calibrate(
    model: ModelArgument = "demo-vision",
    data: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="Labelled images, as `serverlight eval` takes them; for a language model a text file. "
            "The shipped models bring their own.",
        ),
    ] = None,
    cut: Annotated[
        list[str] | None, typer.Option("--cut", metavar="NAME", help="Where to cut; may be repeated. [default: a few]")
    ] = None,
    budget: Annotated[
        float, typer.Option(metavar="SHARE", help="Runs of the tail, as a share of what all pairs take; 1 for all.")
    ] = BUDGET,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Images, or texts, at most.")] = None,
    tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Tokens of each text.")] = TOKENS,
    seed: Annotated[int, typer.Option(help="Draws what is looked at and what is held out.")] = 0,
    show_all: Annotated[bool, typer.Option("--all", help="Print every row, not only the best.")] = False,
    save: Annotated[str | None, typer.Option(metavar="PATH", help="Write the table, for `serverlight search`.")] = None,
    threads: ThreadsOption = 1,
    json: JsonOption = None,
) -> None:
    """Measure and predict what each cut with each codec setting takes in bits and loses in quality.

    A look at all pairs on a few samples, full runs of some, the rest predicted; the error of the predictions is told. Example:
    `serverlight calibrate demo-vision --save quality.json`
    """
    import torch

    for name, path in (("json", json), ("save", save)):
        check_writable(name, path)
    torch.set_num_threads(threads)
    table = measure_table(model, data, cut, limit=limit, tokens=tokens, budget=budget, seed=seed)
    if save:
        table.save(save)
    if json:
        write_json(json, {**table.to_dict(), "data": data or model})
    if json != STDOUT:
        _print(table, table.rows if show_all else table.front())


def measure_table(
    model: str,
    data: str | None,
    cuts: Sequence[str] | None,
    *,
    limit: int | None = None,
    tokens: int = TOKENS,
    budget: float = BUDGET,
    seed: int = 0,
    configs: Sequence[CodecConfig] | None = None,
) -> QualityTable:
    """The table of any model, with a bar; raises :class:`ConfigError`."""
    from serverlight.models.loader import is_language_model

    share = None if budget == 1 else budget
    with progress_bar("calibrating", 1) as (bar, task):

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        if is_language_model(model):
            return _calibrate_language(model, data, cuts, limit or TEXTS, tokens, share, seed, progress, configs)
        return _calibrate_vision(model, data, cuts, limit or IMAGES, share, seed, progress, configs)


def _calibrate_vision(
    model: str,
    data: str | None,
    cuts: Sequence[str] | None,
    limit: int,
    budget: float | None,
    seed: int,
    note: Progress,
    configs: Sequence[CodecConfig] | None,
) -> QualityTable:
    from serverlight.apps.vision import load_model_images
    from serverlight.models import load_model
    from serverlight.models.demo_vision import DEMO_VISION
    from serverlight.partition import partition
    from serverlight.search.calibrate import calibrate_table

    loaded = load_model(model)
    images = load_model_images(loaded, data or (f"{DEMO_VISION}:calibration" if model == DEMO_VISION else None), limit)
    assert loaded.preprocess is not None  # load_model_images has refused such models
    parts = partition(loaded.module, loaded.example_inputs)
    modules = [c.name for c in parts.cuts if c.is_module_exit and sum(spec.is_feature for spec in c.tensors) == 1]
    return calibrate_table(
        loaded,
        loaded.preprocess(images.images),
        cuts=cuts or _spread(modules[1:-1]),
        configs=configs,
        labels=images.labels.tolist(),
        budget=budget,
        seed=seed,
        parts=parts,
        progress=note,
    )


def _calibrate_language(
    model: str,
    data: str | None,
    cuts: Sequence[str] | None,
    limit: int,
    tokens: int,
    budget: float | None,
    seed: int,
    note: Progress,
    configs: Sequence[CodecConfig] | None,
) -> QualityTable:
    import torch

    from serverlight.generation import LoadedDecoder, layer_of
    from serverlight.search.calibrate import calibrate_table
    from serverlight.text import Tokenizer

    text = _read_text(model, data)
    first = min(map(layer_of, cuts)) if cuts else 0
    tail = LoadedDecoder.tail(model, f"layers.{first}", dtype=torch.float32)
    cuts = cuts or [f"layers.{i}" for i in _spread(range(1, tail.part.num_layers))]
    head = LoadedDecoder.head(model, f"layers.{max(map(layer_of, cuts))}", dtype=torch.float32)
    ids = Tokenizer.load(model, head.part.vocab_size).encode(text)
    if tokens > (most := head.part.context_length or tokens):
        raise ConfigError("tokens", f"the context of {model!r} holds {most}, got {tokens}")
    texts = [ids[start : start + tokens] for start in range(0, len(ids) - tokens + 1, tokens)][:limit]
    if not texts:
        raise ConfigError(
            "data", f"has {len(ids)} tokens, fewer than one text of {tokens}; give more, or fewer --tokens"
        )
    return calibrate_table((head, tail), texts, cuts=cuts, configs=configs, budget=budget, seed=seed, progress=note)


def _read_text(model: str, data: str | None) -> str:
    if data is None and model != "demo-lm":
        raise ConfigError("data", f"{model!r} brings no text of its own; name a text file with --data")
    try:
        if data is not None:
            return pathlib.Path(data).read_text(encoding="utf-8")
        return (importlib.resources.files("serverlight.models") / "data" / "demo_lm" / "held_out.txt").read_text(
            "utf-8"
        )
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("data", f"{data!r} cannot be read as text: {error}; name a file of plain text") from None


def _spread(names: Sequence[Any]) -> list[Any]:
    """At most :data:`NUM_CUTS` of them, evenly."""
    last = min(NUM_CUTS, len(names)) - 1
    return [names[round(i * (len(names) - 1) / max(last, 1))] for i in range(last + 1)]


def _print(table: QualityTable, rows: Sequence[QualityRow]) -> None:
    columns = ["cut", "profile", "settings", "bits/element", "bytes/frame", "rel. error", "KL", "loss pp", "95 %", ""]
    print_table(columns, [_cells(row) for row in rows], left=3)
    what = "accuracy" if table.metric == "accuracy" else "agreement with the uncut model"
    print_lines(
        f"{table.model} (revision {table.revision}), {table.num_samples} samples; loss is of {what}. "
        f"Runs of the tail: {100 * (table.tail_share or 0):.1f} % of those of all {len(table.rows)} rows."
    )
    if table.held_out_error_pp is not None and table.held_out_error_bits is not None:
        print_lines(
            f"Predicted rows are marked ~. On rows held out, predictions were {table.held_out_error_pp:.2f} pp and "
            f"{100 * table.held_out_error_bits:.1f} % of the bits away from what was measured (medians)."
        )
    for start, end in itertools.pairwise(table.position_edges):
        at = table.position_edges.index(start)
        losses = [row.loss_by_position_pp[at] for row in rows if row.loss_by_position_pp and row.is_measured]
        if losses:
            print_lines(
                f"Tokens {start} to {end - 1}: {sum(losses) / len(losses):.2f} pp, mean of the measured rows shown."
            )


def _cells(row: QualityRow) -> list[str]:
    low, high = row.loss_interval_pp
    return [
        row.cut,
        row.codec.profile,
        settings_text(row.codec),
        f"{row.bits_per_element:.3f}",
        f"{row.frame_bytes:,.0f}",
        f"{row.rel_mse:.4f}",
        f"{row.kl:.4f}",
        f"{row.loss_pp:.2f}",
        f"{low:.2f} to {high:.2f}",
        "" if row.is_measured else "~",
    ]

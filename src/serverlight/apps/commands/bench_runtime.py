"""``serverlight bench runtime``."""

from __future__ import annotations

import pathlib
from typing import Annotated

import typer

from serverlight.apps.bench_tables import as_markdown, print_sections
from serverlight.apps.load_options import (
    CLIENTS,
    RANDOM_LLAMA,
    RANDOM_RESNET,
    ClientsOption,
    DeviceTimeOption,
    DurationOption,
    LinkOption,
    LmCutOption,
    LmOption,
    MaxBatchDelayOption,
    QuickOption,
    RateOption,
    RoundsOption,
    TextOption,
    TokensOption,
    VisionCutOption,
    VisionOption,
    WarmupOption,
)
from serverlight.apps.options import DataOption, DtypeOption, JsonOption, parse_list
from serverlight.apps.terminal import STDOUT, check_writable, write_json

__all__ = ["bench_runtime"]


def bench_runtime(
    vision: VisionOption = RANDOM_RESNET,
    lm: LmOption = RANDOM_LLAMA,
    clients: ClientsOption = CLIENTS,
    vision_cut: VisionCutOption = None,
    lm_cut: LmCutOption = None,
    data: DataOption = None,
    text: TextOption = None,
    tokens: TokensOption = 256,
    duration: DurationOption = 5.0,
    warmup: WarmupOption = 2.0,
    rounds: RoundsOption = 2,
    rate: RateOption = None,
    device_time: DeviceTimeOption = False,
    link: LinkOption = None,
    max_batch_delay: MaxBatchDelayOption = None,
    dtype: DtypeOption = "float32",
    quick: QuickOption = False,
    json: JsonOption = None,
    markdown: Annotated[str | None, typer.Option(metavar="PATH", help="Write the tables as Markdown, too.")] = None,
    plot: Annotated[
        str | None, typer.Option(metavar="PATH", help="Draw the curves, as PNG or SVG by the name's end.")
    ] = None,
) -> None:
    """Load a server with many devices, and measure what they get and what it takes.

    Beside ours stand a server of the whole model, a shallow cut in plain halves, the same server with one request at a
    time, and the same batches in one process. Devices replay features that a real head and the codec made beforehand,
    over streams of their own, so that it is the server that is measured; where there are two cores, devices and server
    have one each. Example: `serverlight bench runtime --json r.json --markdown r.md --plot r.png`
    """
    from serverlight.apps.load_bench import LoadBench, run_bench

    for field, path in (("json", json), ("plot", plot), ("markdown", markdown)):
        check_writable(field, path)
    bench = LoadBench(
        vision=vision, lm=lm, clients=tuple(parse_list("clients", clients, int)), vision_cuts=tuple(vision_cut or ()),
        lm_cuts=tuple(lm_cut or ()), data=data, text=text, tokens=tokens, duration_s=duration, warmup_s=warmup,
        rounds=rounds, rate_per_s=rate, device_time=device_time, links=tuple(link or ()),
        max_batch_delay_ms=max_batch_delay, dtype=dtype,
    )  # fmt: skip
    result = run_bench(bench.quick() if quick else bench)
    if json:
        write_json(json, result.to_dict())
    if json != STDOUT:
        print_sections(result.sections())
    if markdown:
        pathlib.Path(markdown).write_text(as_markdown(result.sections(), result.heading()))
    if plot:
        from serverlight.apps.bench_plots import plot_load

        plot_load(result.rows, plot)

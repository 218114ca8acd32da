"""Where the time goes as the cut moves, what no other plan beats, and what the device holds: Figure 3 and the search."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from serverlight.apps.bench_plots import plot_codecs
from serverlight.apps.report import figures
from serverlight.apps.report.blocks import Block, Section, Table, Text
from serverlight.apps.report.found import Found, number
from serverlight.apps.search_plots import plot_search
from serverlight.apps.search_tables import reasons, settings
from serverlight.errors import ServerlightError
from serverlight.evaluation.speed import SpeedRow
from serverlight.link import LinkConfig
from serverlight.search.constraints import Constraints, Workload
from serverlight.search.optimise import SearchResult, optimise
from serverlight.search.prediction import MIB, Prediction
from serverlight.search.profile import CutCost, Profile
from serverlight.search.quality import QualityTable

__all__ = ["figure_three", "memory"]

DEVICE_SPEED, LINK, MAX_LOSS_PP = 0.25, "10mbit,20ms", 1.0
"""The scene: devices a quarter as fast as the server, and how they reach it."""

MEMORY_CUTS, MEMORY_TOKENS, MEMORY_POINTS = 5, 2048, 33


@dataclass(frozen=True, kw_only=True, slots=True)
class Searched:
    """A model's search, or why there is none."""

    result: SearchResult | None = None
    problem: str = ""


def figure_three(found: Found) -> Section:
    """Time of head, link, codec and tail against depth; time of the codec against size."""
    blocks: list[Block] = [
        Text(
            text=f"Predicted from what was measured: the profile of each cut on this machine, and what settings lose there. The "
            f"device is {DEVICE_SPEED:g} times as fast as the server, the link `{LINK}`, and at most {MAX_LOSS_PP:g} pp is lost. "
            "Left: what no other plan beats, server time against bytes up. Right (Figure 3 left of the paper): the time of a "
            "request at each depth of the cut, by head, codec, link and tail. The bar without a cut is the device alone."
        ),
        *found.gaps("profile", "quality"),
    ]
    for model, searched in _searches(found).items():
        if searched.result is None:
            blocks.append(Text(text=f"**{model}:** {searched.problem}", is_gap=True))
            continue
        result = searched.result
        blocks.append(
            found.draw(
                f"search_{model}.svg",
                lambda path, result=result: plot_search(result, path),  # type: ignore[misc]
                f"{model}: plans that no other beats (left), and the time of a request against the depth of the cut (right)",
            )
        )
        blocks += [Text(text=f"**{model}.** {' '.join(_told(result))}"), _depths(model, result)]
    return Section(
        name="figure-3", title="Figure 3: time against the depth of the cut", blocks=[*blocks, *_latency(found)]
    )


def memory(found: Found) -> Section:
    """What the device must hold, with the length of the sequence."""
    blocks: list[Block] = [
        Text(
            text="Weights of the layers before the cut, what they hold at a time, and the keys and values of a sequence of w "
            "tokens: what the search weighs w and the depth of the cut by. An early exit moves the cut to a shallower line when "
            "the device has no more."
        ),
        *found.gaps("profile"),
    ]
    profiles = {model: Profile.from_dict(fields) for model, fields in found.done("profile").items()}
    texts = {model: profile for model, profile in profiles.items() if profile.kind == "language-model"}
    if texts:
        panels = {model: {cut.name: _memory_line(cut) for cut in _spread(profile)} for model, profile in texts.items()}
        title = "Memory of the device against the tokens of a sequence, a line for each cut"
        blocks.append(found.draw("memory.svg", lambda path: figures.plot_memory(panels, path), title))
    for model, profile in profiles.items():
        blocks.append(_memory_table(model, profile))
    return Section(name="memory", title="Memory of the device, with w", blocks=blocks)


def _searches(found: Found) -> dict[str, Searched]:
    qualities = found.done("quality")
    return {
        model: _search(model, fields, qualities[model])
        for model, fields in found.done("profile").items()
        if model in qualities
    }


def _search(model: str, profile: dict[str, Any], quality: dict[str, Any]) -> Searched:
    named = {"model": model}  # it may have been a path
    try:
        server = Profile.from_dict({**profile, **named})
        fields = {name: value for name, value in quality.items() if name != "data"}
        table = QualityTable.from_dict({**fields, **named})
        device = server.scaled(speed=DEVICE_SPEED, name=f"a device {DEVICE_SPEED:g} times as fast")
        return Searched(
            result=optimise(
                device=device, server=server, table=table, link=LinkConfig.parse(LINK), workload=Workload(),
                constraints=Constraints(max_quality_loss=MAX_LOSS_PP),
            )
        )  # fmt: skip
    except ServerlightError as error:
        return Searched(problem=str(error))


def _told(result: SearchResult) -> Iterator[str]:
    """Why that plan; without the legend of the columns of ``serverlight search``."""
    yield from (line for line in reasons(result) if not line.startswith("Device: "))


def _depths(model: str, result: SearchResult) -> Table:
    """The quickest plan at each cut that keeps the quality."""
    columns = (
        "cut", "settings", "head ms", "encode ms", "link ms", "decode ms", "tail ms", "messages ms", "in all ms", "server ms",
        "bytes up", "device MiB", "loss pp",
    )  # fmt: skip
    best = list(_best_of_each_cut(result))
    chosen = result.best.candidate
    marked = frozenset((i, 0) for i, p in enumerate(best) if (p.way, p.candidate.cut) == (chosen.way, chosen.cut))
    title = f"{model}: the quickest plan at each cut (marked: where the search cuts)"
    return Table(title=title, columns=columns, rows=[_depth(p) for p in best], words=(0, 1), marked=marked, folded=True)


def _best_of_each_cut(result: SearchResult) -> Iterator[Prediction]:
    for cut in [*(cut.name for cut in result.scene.device.cuts), None]:
        here = [p for p in result.predictions if p.candidate.cut == cut and not p.stages and p.loss_pp <= MAX_LOSS_PP]
        if here:
            yield min(here, key=lambda p: p.latency_ms)


def _depth(p: Prediction) -> list[str]:
    times = (
        p.head_ms, p.encode_ms, p.uplink_ms + p.rtt_ms + p.downlink_ms, p.decode_ms, p.tail_ms, p.message_ms + p.queue_ms,
        p.latency_ms, p.server_busy_ms,
    )  # fmt: skip
    return [
        p.candidate.cut or "all on device", settings(p.candidate), *(f"{value:.2f}" for value in times),
        f"{p.uplink_bytes:,}", f"{p.device_memory_mib:.2f}", f"{p.loss_pp:.2f}",
    ]  # fmt: skip


def _latency(found: Found) -> Iterator[Block]:
    times = found.done("device").get("times")
    if times is None:
        yield from found.gaps("device")
        return
    rows = [SpeedRow.from_dict(row) for row in times["rows"]]
    title = (
        "Figure 3 right of the paper: time to encode and to decode against the size of the feature, beside a plain copy"
    )
    yield found.draw("codec_speed.svg", lambda path: plot_codecs([], rows, path), title)


def _spread(profile: Profile) -> list[CutCost]:
    last = len(profile.cuts) - 1
    count = min(MEMORY_CUTS, last + 1)
    return [profile.cuts[round(i * last / max(count - 1, 1))] for i in range(count)]


def _memory_mib(cut: CutCost, tokens: float) -> float:
    return (cut.head_weight_bytes + cut.head_activation_bytes + tokens * cut.head_kv_bytes) / MIB


def _memory_line(cut: CutCost) -> figures.Line:
    step = MEMORY_TOKENS / (MEMORY_POINTS - 1)
    return [(i * step, _memory_mib(cut, i * step)) for i in range(MEMORY_POINTS)]


def _memory_table(model: str, profile: Profile) -> Table:
    is_text = profile.kind == "language-model"
    tokens = (128, MEMORY_TOKENS) if is_text else (0,)
    columns = ("cut", "weights MiB", "at a time KiB", *(("bytes a token",) if is_text else ()),
               *(f"in all at w = {count}" if is_text else "in all MiB" for count in tokens))  # fmt: skip
    rows = [
        [
            cut.name, number(cut.head_weight_bytes / MIB), number(cut.head_activation_bytes / 1024),
            *((f"{cut.head_kv_bytes:,}",) if is_text else ()), *(number(_memory_mib(cut, count)) for count in tokens),
        ]
        for cut in profile.cuts
    ]  # fmt: skip
    return Table(title=f"{model}, MiB on the device at each cut", columns=columns, rows=rows, folded=True)

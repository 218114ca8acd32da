"""What there is to choose from: cuts with codec settings, the raw input to a full server, all on the device."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from serverlight.codec.config import CodecConfig
from serverlight.errors import PlanMismatch
from serverlight.partition.names import OUTPUT
from serverlight.plan import id_bytes, same_revision
from serverlight.search.constraints import Constraints
from serverlight.search.predict import token_budget
from serverlight.search.prediction import Candidate, Scene
from serverlight.search.profile import Profile
from serverlight.search.quality import QualityRow, QualityTable

__all__ = ["candidate_of", "candidates", "check_same_model", "staircase"]

_HALF = CodecConfig(profile="fp16")
_HALF_BYTES = 2
_HALF_FRAME_BYTES = 16
"""About what a frame of halves has beside them."""


def candidates(scene: Scene, table: QualityTable, constraints: Constraints) -> Iterator[Candidate]:
    """All that is worth a prediction: for each cut only settings that no other at that cut beats in bytes and quality.

    At one cut a setting decides on nothing else, so the best of them is the best of all. Raises :class:`PlanMismatch`.
    """
    check_same_model(scene.device, scene.server, table)
    if scene.is_text:  # the loss of a text as long as those of the load
        lost = (dataclasses.replace(row, loss_pp=table.loss_over(row, scene.kept_tokens)) for row in table.rows)
        table = dataclasses.replace(table, rows=tuple(lost))
    yield Candidate(way="all-device")
    server_cuts, first = {cut.name for cut in scene.server.cuts} - {OUTPUT}, scene.device.cuts[0]
    if first.name in server_cuts:
        yield _raw_input(scene)
    for cut in scene.device.cuts:
        if cut.name not in server_cuts:  # at the output it would have nothing to do
            continue
        rows = staircase(row for row in table.rows if row.cut == cut.name)
        found = [candidate_of(row, cut.elements, is_first=cut is first) for row in rows]
        yield from found
        if scene.is_text and constraints.device_memory_mib is not None:
            yield from _with_exits(found, scene, table, constraints.device_memory_mib)


def staircase(rows: Iterable[QualityRow]) -> list[QualityRow]:
    """Those of one cut that no other beats in bytes (of a step, and of a prompt's tokens) and quality, fewest bytes first.

    Quality is loss and divergence: of a table that foretells no loss for many rows, those stay that come nearest to the uncut
    model, for when the loss of a cheaper one turns out to be larger.
    """
    kept = list[QualityRow]()
    for row in sorted(rows, key=lambda row: (row.frame_bytes, *_rest(row))):
        if not any(all(a <= b for a, b in zip(_rest(other), _rest(row), strict=True)) for other in kept):
            kept.append(row)
    return kept


def _rest(row: QualityRow) -> tuple[float, float, float]:
    return row.loss_pp, _prompt_bits(row), row.kl


def check_same_model(device: Profile, server: Profile, table: QualityTable) -> None:
    """Raises :class:`PlanMismatch` unless all three are of the same weights."""
    for other in (server, table):
        if device.model.rsplit("/", 1)[-1] != other.model.rsplit("/", 1)[-1]:
            raise PlanMismatch("model", device.model, other.model)
        if not same_revision(device.revision, other.revision):
            raise PlanMismatch("revision", device.revision, other.revision)


def _prompt_bits(row: QualityRow) -> float:
    return row.bits_per_element if row.prompt_bits_per_element is None else row.prompt_bits_per_element


def candidate_of(row: QualityRow, elements: int, *, is_first: bool) -> Candidate:
    """A row of the table as something to choose; ``elements`` are those of its cut, which may be the first."""
    return Candidate(
        way="full-server" if is_first else "split",
        cut=row.cut,
        codec=row.codec,
        frame_bytes=row.frame_bytes,
        prompt_token_bytes=_prompt_bits(row) * elements / 8,
        loss_pp=row.loss_pp,
        loss_interval_pp=row.loss_interval_pp,
        is_measured=row.is_measured,
    )


def _raw_input(scene: Scene) -> Candidate:
    """Token ids; or the file, where the load says how large it is, else the input's numbers as halves."""
    first, workload = scene.device.cuts[0], scene.workload
    raw = Candidate(way="full-server", cut=first.name, codec=_HALF)
    if scene.is_text:  # at most: the last cut's elements are the vocabulary
        id_size = float(id_bytes([scene.server.cuts[-1].elements - 1]))
        return dataclasses.replace(raw, frame_bytes=id_size, prompt_token_bytes=id_size, sends_ids=True)
    if workload.input_bytes is not None:
        return dataclasses.replace(
            raw, frame_bytes=float(workload.input_bytes), loss_pp=workload.input_loss_pp, is_file=True
        )
    half_bytes = _HALF_BYTES * first.elements
    return dataclasses.replace(raw, frame_bytes=half_bytes + _HALF_FRAME_BYTES, prompt_token_bytes=float(half_bytes))


def _with_exits(found: list[Candidate], scene: Scene, table: QualityTable, memory_mib: float) -> Iterator[Candidate]:
    """For a cut whose cache outgrows the device: as far as it holds, then on at the deepest cut that holds to the end."""
    cut = found[0].cut if found else None
    if cut is None or not 0 < (tokens := token_budget(cut, scene, memory_mib)) < scene.workload.new_tokens:
        return
    names = [other.name for other in scene.device.cuts]
    for name in reversed(names[: names.index(cut)]):
        if token_budget(name, scene, memory_mib) >= scene.workload.new_tokens:
            elements = scene.device.cut(name).elements
            rows = {row.codec: row for row in table.rows if row.cut == name}
            for candidate in found:
                if candidate.codec in rows:
                    then = candidate_of(rows[candidate.codec], elements, is_first=name == names[0])
                    yield dataclasses.replace(candidate, tokens=tokens, then=then)
            return

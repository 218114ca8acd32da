"""A plan is measured before it is believed."""

from __future__ import annotations

import dataclasses

from made_up import plain_table, vision_profile
from serverlight.link import LinkConfig
from serverlight.search.confirm import ALIKE, Observed, confirm
from serverlight.search.constraints import Constraints
from serverlight.search.optimise import SearchResult, optimise
from serverlight.search.prediction import Prediction

CAPS = Constraints(latency_ms=90, device_memory_mib=3.5)


def found() -> SearchResult:
    device, server = vision_profile(0.5), vision_profile(4.0)
    link = LinkConfig.parse("2mbit,10ms")
    return optimise(device=device, server=server, table=plain_table(device), link=link, constraints=CAPS)


def as_predicted(p: Prediction, later_ms: float = 0.0) -> Observed:
    return Observed(
        latency_ms=p.latency_ms + later_ms, uplink_bytes=p.uplink_bytes, server_ms=p.server_busy_ms, loss_pp=p.loss_pp
    )


def test_true_predictions_take_one_measurement() -> None:
    """What comes out as it was predicted is chosen at once: the best plan, or one as good with more room."""
    result = found()
    confirmed = confirm(result, as_predicted, most=10)
    assert len(confirmed.observed) == 1
    assert confirmed.best is not None
    assert confirmed.best.server_busy_ms <= result.best.server_busy_ms * (1 + ALIKE)


def test_plan_that_breaks_a_cap_is_left() -> None:
    """Where the device is slower than its profile said, the measured plans show it, and a shallower cut is chosen that holds."""
    result = found()

    def slow(p: Prediction) -> Observed:
        return as_predicted(p, later_ms=0.3 * p.head_ms)

    confirmed = confirm(result, slow, most=10)
    assert confirmed.best is not None
    assert confirmed.best.latency_ms <= 90
    assert confirmed.best.head_ms < result.best.head_ms
    truth = [p for p in result.predictions if slow(p).latency_ms <= 90 and p.device_memory_mib <= 3.5]
    assert confirmed.best.server_busy_ms <= min(p.server_busy_ms for p in truth) * (1 + ALIKE)


def test_what_loses_too_much_is_not_tried_with_fewer_bytes() -> None:
    """Where settings lose more than was predicted, those at the same cut that send less are not measured either."""
    splits = tuple(p for p in found().predictions if p.candidate.way == "split")
    result = dataclasses.replace(found(), predictions=splits, constraints=Constraints(max_quality_loss=1.0))

    def lossy(p: Prediction) -> Observed:
        return dataclasses.replace(as_predicted(p), loss_pp=p.loss_pp + 6000 / p.uplink_bytes)

    confirmed = confirm(result, lossy, most=50)
    tried = [(p.candidate.cut, p.uplink_bytes) for p, _ in confirmed.observed]
    assert len(tried) > 1
    for i, (cut, num_bytes) in enumerate(tried):
        assert all(num_bytes > before for at, before in tried[:i] if at == cut)
    assert confirmed.best is not None


def test_dearer_settings_are_there_where_none_was_to_lose_anything() -> None:
    """A table that foretells no loss at all still leaves dearer settings to try, those of less divergence."""
    device = vision_profile(0.5)
    table = plain_table(device)
    lossless = dataclasses.replace(table, rows=tuple(dataclasses.replace(row, loss_pp=0.0) for row in table.rows))
    caps = Constraints(max_quality_loss=0.3)
    result = optimise(device=device, server=vision_profile(4.0), table=lossless, constraints=caps)
    result = dataclasses.replace(result, predictions=tuple(p for p in result.predictions if p.candidate.way == "split"))
    dearest = {row.cut: row.frame_bytes for row in table.rows}  # the last of each cut

    def lossy(p: Prediction) -> Observed:
        assert p.candidate.cut is not None
        is_dearest = p.candidate.frame_bytes == dearest[p.candidate.cut]
        return dataclasses.replace(as_predicted(p), loss_pp=0.0 if is_dearest else 0.5)

    assert confirm(result, lossy, most=50).best is not None


def test_measurements_are_bounded() -> None:
    """However wrong the predictions are, no more is measured than is allowed, and no plan that breaks a cap is called best."""
    confirmed = confirm(found(), lambda p: as_predicted(p, later_ms=1000.0), most=4)
    assert len(confirmed.observed) == 4
    assert confirmed.best is None

"""Tests of serverlight.evaluation.resampled and .uplink, and of their tables."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import numpy as np
import pytest

from serverlight.apps.bench_tables import as_markdown
from serverlight.apps.uplink_tables import uplink_sections
from serverlight.codec.rivals import family
from serverlight.evaluation.bounds import RateDistortion, rel_mse
from serverlight.evaluation.codec_bench import Comparison, TaskReport, bench_task
from serverlight.evaluation.rates import JPEG_INPUT, RAW_INPUT, RateRow, Scale
from serverlight.evaluation.resampled import Draws, bits_in_resamples, cheapest_bits
from serverlight.evaluation.search import QUALITIES, jpeg_rows
from serverlight.evaluation.tasks import Feature, LossyInput, Quality, RawInput
from serverlight.evaluation.tasks.task import NUM_RESAMPLES, Ints, bootstrap, percentiles, resamples
from serverlight.evaluation.uplink import UplinkRow, uplink_row, uplink_rows

OURS = "ours"


class SampledTask:
    """Its loss in points is a hundred times the mean over the messages of the relative error; inputs are pictures of a kind."""

    name, model, cut, position, base_metric = "sampled", "none", "anywhere", "early", 90.0

    def __init__(self, num_messages: int = 30) -> None:
        rng = np.random.default_rng(0)
        scales = rng.uniform(0.2, 2, num_messages)
        self._features = [(s * rng.laplace(size=(1, 12, 32))).astype(np.float32) for s in scales]

    @property
    def raw_input(self) -> RawInput:
        return RawInput(format="nothing", sizes=np.full(len(self._features), 100))

    def as_jpeg(self, quality: int) -> LossyInput | None:
        rng = np.random.default_rng(1)
        noise = (rng.normal(size=x.shape).astype(np.float32) * x.std() / quality for x in self._features)
        spoiled = [x + e for x, e in zip(self._features, noise, strict=True)]
        return LossyInput(sizes=np.full(len(spoiled), 50 + quality), features=spoiled)

    @property
    def calibration(self) -> None:
        return None

    def features(self) -> Sequence[Feature]:
        return self._features

    def evaluate(self, received: Sequence[Feature]) -> Quality:
        losses = np.array([100 * rel_mse([x], [y]) for x, y in zip(self._features, received, strict=False)])
        deltas = bootstrap(len(losses), lambda chosen: -losses[chosen].mean(1))
        return Quality(
            metric=90 - losses.mean(), delta_pp=-losses.mean(), interval_pp=percentiles(deltas),
            kl=float(losses.mean()) / 100, deltas_pp=deltas, num_samples=len(losses),
        )  # fmt: skip


@pytest.fixture(scope="module")
def report() -> TaskReport:
    codecs = [family(name) for name in ("uniform-rans", "int-token", "q80", "fp16")]
    return bench_task(SampledTask(), codecs, reference="uniform-rans", rounds=1)


# -- resamples ---------------------------------------------------------------------------------------


def test_each_resample_chooses_its_own_setting() -> None:
    """A cheap setting counts where it keeps the quality; where nothing does, the least loss does."""
    cheap = Draws(np.array([1.0, 1.1, 0.9]), np.array([-0.9, -1.1, -5.0]))
    dear = Draws(np.array([4.0, 4.2, 4.4]), np.array([-0.1, -0.2, -3.0]))
    assert cheapest_bits([cheap, dear], 1.0).tolist() == [1.0, 4.2, 4.4]
    assert cheapest_bits([cheap, dear], 0.1).tolist() == [4.0, 4.2, 4.4]
    assert cheapest_bits([cheap], 1.0).tolist() == [1.0, 1.1, 0.9]


def test_bits_of_a_resample_by_hand() -> None:
    """Bytes over elements of the samples drawn, all messages of a sample together."""
    sizes, elements = np.array([10, 20, 30, 60]), np.array([8, 8, 16, 16])
    drawn = bits_in_resamples(sizes, elements, 2)
    by_hand = [sum((15.0, 22.5)[i] * (16, 32)[i] for i in row) / sum((16, 32)[i] for i in row) for row in resamples(2)]
    assert drawn == pytest.approx(by_hand)
    assert drawn.shape == (NUM_RESAMPLES,)


def test_resamples_are_always_the_same() -> None:
    """Two statistics see the same draws, so their difference is that of the paired values."""
    values = np.random.default_rng(1).normal(size=50)
    first, second = (bootstrap(50, lambda chosen, k=k: k * values[chosen].mean(1)) for k in (1, 3))
    assert second == pytest.approx(3 * first)
    with pytest.raises(ValueError, match="read-only"):
        resamples(50)[0] = 0


def test_intervals_hold_the_figures(report: TaskReport) -> None:
    """Every codec's bits and its ratio to the reference lie in their intervals; the reference's ratio to itself is exactly 1."""
    ours = report.best_of("uniform-rans")
    assert ours is not None
    for comparison in report.comparisons:
        assert comparison.best is not None
        assert comparison.bits_interval is not None
        assert comparison.share_interval is not None
        low, high = comparison.bits_interval
        assert low <= comparison.best.bits_per_element <= high
        low, high = comparison.share_interval
        assert low <= ours.bits_per_element / comparison.best.bits_per_element <= high
    shares = {c.codec: c.share_interval for c in report.comparisons}
    assert shares["uniform-rans"] == (1.0, 1.0)


def test_a_fixed_codec_is_certain(report: TaskReport) -> None:
    """Messages of one size have the same bits in every resample."""
    interval = next(c.bits_interval for c in report.comparisons if c.codec == "q80")
    assert interval is not None
    assert interval[0] == pytest.approx(interval[1])


def test_intervals_survive_the_file(report: TaskReport) -> None:
    """A report that was JSON in between has the same table; one of an earlier version has no intervals, and is read."""
    fields = json.loads(json.dumps({**report.to_dict(), "rows": [row.to_dict() for row in report.rows]}))
    again = TaskReport.from_dict(fields, fields["rows"])
    assert again.comparisons == report.comparisons
    assert uplink_row(again) == uplink_row(report)
    for name in ("bits_interval", "share_interval"):
        for summary in fields["best"]:
            del summary[name]
    del fields["position"]
    old = TaskReport.from_dict(fields, fields["rows"])
    assert {c.bits_interval for c in old.comparisons} == {None}
    assert uplink_rows([old]) == []


# -- inputs ------------------------------------------------------------------------------------------


def test_jpeg_at_its_best_quality(report: TaskReport) -> None:
    """The coarsest quality that keeps the figure is found, with its neighbours measured and the far ones not."""
    scale = Scale(SampledTask())
    kept = [q for q in QUALITIES if (row := scale.measure_jpeg(q)) is not None and row.keeps()]
    best = report.best_of(JPEG_INPUT)
    assert best is not None
    assert best.config == {"quality": min(kept)}
    assert best.bits_per_element == 8 * (50 + min(kept)) / 384
    tried = [row.config["quality"] for row in report.rows if row.codec == JPEG_INPUT]
    assert tried == sorted(tried)
    assert len(tried) < len(QUALITIES)


def test_inputs_that_are_no_images() -> None:
    """There is no JPEG of a text, and nothing is measured."""

    class Texts(SampledTask):
        def as_jpeg(self, quality: int) -> LossyInput | None:
            return None

    assert jpeg_rows(Scale(Texts()), lambda row: row.keeps()) == ()
    assert bench_task(Texts(4), [family("q80")], reference="q80").best_of(JPEG_INPUT) is None


def test_raw_inputs_have_an_interval(report: TaskReport) -> None:
    """What is sent raw loses nothing, in any resample."""
    raw = next(c for c in report.comparisons if c.codec == RAW_INPUT)
    assert raw.bits_interval == pytest.approx((8 * 100 / 384,) * 2)


# -- who sends least -----------------------------------------------------------------------------------


def comparison(
    codec: str, bits: float | None, share: tuple[float, float] | None = None, equal: float | None = None
) -> Comparison:
    if bits is None:
        return Comparison(codec=codec, best=None, bits_at_equal_kl=None)
    row = RateRow(
        task="t", model="m", cut="c", codec=codec, config={}, bits_per_element=bits, ratio_vs_fp16=16 / bits, quality=90.0,
        quality_delta_pp=-0.5, quality_interval_pp=(-0.8, 0.1), kl=0.1, rel_mse=0.1, ecsq_bits_per_element=None,
    )  # fmt: skip
    return Comparison(
        codec=codec, best=row, bits_at_equal_kl=equal, bits_interval=(bits * 0.9, bits * 1.1), share_interval=share
    )


def table_row(*comparisons: Comparison) -> UplinkRow:
    nothing = RateDistortion(np.ones(1), np.zeros(1))
    made = TaskReport(
        task="t", model="m", cut="c", position="late", num_messages=5, elements_per_message=10.0, base_metric=90.0,
        reference=OURS, equal_kl=0.1, comparisons=comparisons, rows=(), probes=(), ecsq=nothing, rate_distortion=nothing,
    )  # fmt: skip
    return uplink_row(made)


def test_best() -> None:
    """The reference is best where no other comes near it, and the closest is named."""
    row = table_row(
        comparison(OURS, 1.0, (1, 1)), comparison("far", 8.0, (0.1, 0.2)), comparison("near", 1.25, (0.7, 0.9))
    )
    assert (row.best, row.verdict) == (OURS, "best")
    assert row.reason == "ours needs 0.80 (0.70 to 0.90) of the bits of near"
    cell = row.cell(OURS)
    assert (cell.reduction, cell.loss_pp, cell.loss_interval_pp) == (16, 0.5, (-0.1, 0.8))
    assert cell.reduction_interval == pytest.approx((16 / 1.1, 16 / 0.9))


@pytest.mark.parametrize(
    ("bits", "share"),
    [(0.9, (0.95, 1.2)), (1.2, (0.7, 1.02)), (0.99, (1.005, 1.02)), (1.02, (0.97, 0.99))],
    ids=["interval above", "interval below", "step above", "step below"],
)
def test_tied(bits: float, share: tuple[float, float]) -> None:
    """What has 1 in its interval is a tie, and so is what is less than a step of the search apart; on either side."""
    row = table_row(comparison(OURS, 1.0, (1, 1)), comparison("other", bits, share, equal=1.0))
    assert (row.verdict, row.tied_with) == ("tied", ("other",))
    assert row.cell("other").is_tied
    assert row.best == ("other" if bits < 1 else OURS)


def test_beaten_and_why() -> None:
    """Who wins is named; whether it wins at equal divergence too, and what it has; a tie beside it changes nothing."""
    row = table_row(
        comparison(OURS, 1.0, (1, 1), equal=1.0),
        comparison("tied", 1.0, (0.9, 1.1)),
        comparison("fourier-rans", 0.8, (1.1, 1.4), equal=0.9),
    )
    assert (row.best, row.verdict, row.tied_with) == ("fourier-rans", "beaten", ("tied",))
    assert row.reason == (
        "ours needs 1.25 (1.10 to 1.40) of the bits of fourier-rans, and 1.11 of them at equal divergence: "
        "its waves reach over whole planes, where neighbours are alike"
    )
    lucky = table_row(comparison(OURS, 1.0, (1, 1), equal=1.0), comparison("fourier-rans", 0.8, (1.1, 1.4), equal=1.25))
    assert lucky.verdict == "beaten"
    assert lucky.reason.endswith(
        "and 0.80 of them at equal divergence: fourier-rans gets away with a larger divergence on these samples"
    )


def test_reference_without_a_setting() -> None:
    """Where every setting of the reference loses too much, it is beaten by whoever does not; where all lose, by nobody."""
    row = table_row(comparison(OURS, None), comparison("other", 8.0))
    assert (row.best, row.verdict, row.reason) == (
        "other",
        "beaten",
        "no setting of ours is within the loss, one of other is",
    )
    row = table_row(comparison(OURS, None), comparison("other", None))
    assert (row.best, row.verdict, row.reason) == (None, "beaten", "")


def test_inputs_do_not_win_but_are_told() -> None:
    """A shorter input is no codec of a feature: the row says that it takes less, and what that costs."""
    row = table_row(
        comparison(OURS, 1.0, (1, 1)),
        comparison("near", 2.0, (0.4, 0.6)),
        comparison(JPEG_INPUT, 0.5, (1.9, 2.1)),
        comparison(RAW_INPUT, 4.0, (0.25, 0.25)),
    )
    assert (row.best, row.verdict) == (OURS, "best")
    assert row.reason.endswith("; jpeg input sends 2 times less, to a server that runs the whole model")


def test_tables(report: TaskReport) -> None:
    """The verdicts fit a terminal; the wide tables have a column for each codec; a cell has figure and interval; what is
    missing is told.
    """
    row = uplink_row(report)
    verdicts, reductions, losses = uplink_sections([row], 1.0, ["SqN-mid"])
    assert [section.is_wide for section in (verdicts, reductions, losses)] == [False, True, True]
    assert verdicts.note.endswith("Not measured: SqN-mid.")
    assert verdicts.rows[0][:2] == ("none", "early: anywhere")
    for section in (reductions, losses):
        assert section.columns == (
            "model", "cut", "uniform-rans", "int-token", "q80", "fp16", "jpeg input", "raw input", "best",
        )  # fmt: skip
        assert {len(cells) for cells in section.rows} == {len(section.columns)}
    cell = row.cell("q80")
    assert cell.reduction is not None
    assert reductions.rows[0][4].startswith(f"{cell.reduction:.1f} ({cell.reduction:.1f} to ")
    assert uplink_sections([], 1.0) == []
    page = as_markdown([verdicts, reductions, losses], "x")
    assert all("None" not in line and "nan" not in line for line in page.splitlines())


def test_row_is_ready_for_json(report: TaskReport) -> None:
    """All of a row goes to JSON, cell by cell."""
    fields = json.loads(json.dumps(uplink_row(report).to_dict(), allow_nan=False))
    assert {cell["codec"] for cell in fields["cells"]} == {c.codec for c in report.comparisons}
    assert fields["position"] == "early"
    assert dataclasses.fields(UplinkRow)


def test_sizes_of_messages_make_samples() -> None:
    """Two messages a sample, as of sentence pairs, are drawn together."""
    sizes: Ints = np.array([1, 3, 5, 7])
    assert bits_in_resamples(sizes, np.full(4, 8), 2).min() == pytest.approx(2.0)

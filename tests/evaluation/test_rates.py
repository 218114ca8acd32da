"""Tests of serverlight.evaluation.rates, .codec_bench and .speed."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from serverlight.codec import inspect
from serverlight.codec.config import LONG_STEPS
from serverlight.codec.rivals import Family, family
from serverlight.codec.rivals.integers import Integer
from serverlight.codec.rivals.uniform import Uniform
from serverlight.errors import ConfigError
from serverlight.evaluation.bounds import rel_mse
from serverlight.evaluation.checks import rate_checks
from serverlight.evaluation.codec_bench import TaskReport, _for_task, bench_task
from serverlight.evaluation.contenders import Contender, OwnCodec, StraightforwardTorch, contenders
from serverlight.evaluation.rates import Probe, ProbeSize, RateRow, Scale, bits_at_kl
from serverlight.evaluation.search import Walk, _find_border
from serverlight.evaluation.speed import SWEEP_BYTES, sample_feature, sweep_shape, time_codecs
from serverlight.evaluation.tasks import Calibration, Feature, LossyInput, Quality, RawInput, load_task


class ToyTask:
    """A model whose loss in points is a thousand times the relative error of the features it gets."""

    name, model, cut, position, base_metric = "toy", "none", "anywhere", "middle", 90.0

    def __init__(self, num_messages: int = 20) -> None:
        rng = np.random.default_rng(0)
        self._features = [rng.laplace(size=(1, 12, 32)).astype(np.float32) for _ in range(num_messages)]
        self.times_judged = 0

    @property
    def raw_input(self) -> RawInput:
        return RawInput(format="nothing", sizes=np.full(len(self._features), 4 * 384))

    def as_jpeg(self, quality: int) -> LossyInput | None:
        return None

    @property
    def calibration(self) -> Calibration | None:
        return None

    def features(self) -> Sequence[Feature]:
        return self._features

    def evaluate(self, received: Sequence[Feature]) -> Quality:
        self.times_judged += 1
        error = rel_mse(self._features[: len(received)], received)
        loss = 100 * error
        return Quality(metric=90 - loss, delta_pp=-loss, interval_pp=(-loss, -loss), kl=error)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spoiled(Integer):
    """May lose all that it was sent."""

    spoiled: bool = False

    def _unpack(self, body: bytes, shape: tuple[int, ...]) -> np.ndarray:
        return super()._unpack(body, shape) * np.float32(not self.spoiled)


UNIFORM = Family(name="uniform", make=Uniform, axes={"levels": tuple(range(3, 80))})
INTEGERS = Family(
    name="integers",
    make=Integer,
    axes={"bits": (2, 3, 4, 5, 6, 8), "scope": ("token", "channel", "tensor")},
    pinned=({"bits": 8, "scope": "tensor"},),
)


def probe(bits: float, kl: float) -> Probe:
    return Probe(codec="x", config={}, bits_per_element=bits, kl=kl, rel_mse=0.0)


# -- one setting -------------------------------------------------------------------------------------


def test_row_counts_every_byte() -> None:
    """Bits are those of the whole messages; the ratio is to 16; the ideal quantiser stands beside them."""
    task, rival = ToyTask(), Integer(bits=4)
    row = Scale(task).measure(rival)
    sent = [rival.encode(x) for x in task.features()]
    assert row.bits_per_element == 8 * sum(map(len, sent)) / (20 * 12 * 32)
    assert row.ratio_vs_fp16 == 16 / row.bits_per_element
    assert row.rel_mse == rel_mse(task.features(), [rival.decode(message) for message in sent])
    assert (row.quality_delta_pp, row.kl) == (-100 * row.rel_mse, row.rel_mse)
    assert row.ecsq_bits_per_element is not None
    assert 0 < row.ecsq_bits_per_element < row.bits_per_element
    assert json.loads(json.dumps(row.to_dict()))["config"] == {"bits": 4, "scope": "token", "ranges": "absmax"}


def test_no_bound_is_claimed_for_lossless_codecs() -> None:
    """Where the error is finer than the finest quantiser looked at, there is no figure, and JSON has no NaN."""
    row = Scale(ToyTask()).measure(family("fp16").make())
    assert row.ecsq_bits_per_element is None


def test_equal_features_are_judged_once() -> None:
    """Codecs that differ in their bytes only share one run of the tail."""
    task = ToyTask()
    scale = Scale(task)
    rows = [scale.measure(family(name).make(bits=4, ranges="absmax")) for name in ("int-token", "int-token-rans")]
    assert task.times_judged == 1
    assert rows[0].kl == rows[1].kl
    assert rows[1].bits_per_element < rows[0].bits_per_element


def test_probes_are_of_the_first_messages() -> None:
    """A probe of large features sends as few messages as it was told to."""
    task, rival = ToyTask(), Integer(bits=4)
    scale = Scale(task, probes=ProbeSize(elements=1, messages=3))
    sketch = scale.sketch(rival)
    assert task.times_judged == 0
    found = scale.probe(sketch)
    assert found.rel_mse == rel_mse(task.features()[:3], [rival.decode(rival.encode(x)) for x in task.features()[:3]])
    assert (found.kl, found.bits_per_element) == (found.rel_mse, sketch.bits_per_element)


def test_keeps_up_to_and_with_the_limit() -> None:
    """A loss of exactly the limit is within it, also where rounding made it a little more."""
    row = Scale(ToyTask()).measure(Integer(bits=8))
    assert row.keeps()
    assert not row.keeps(0.9 * -row.quality_delta_pp)
    assert row.keeps(-row.quality_delta_pp * (1 - 1e-12))


# -- the search --------------------------------------------------------------------------------------


@pytest.mark.parametrize("found", [UNIFORM, INTEGERS], ids=lambda f: f.name)
@pytest.mark.parametrize("max_loss_pp", [0.5, 3.0, 10.0])
def test_finds_what_trying_everything_finds(found: Family, max_loss_pp: float) -> None:
    """On a well-behaved task the walk ends at the cheapest setting of the whole grid, and measures far fewer in full."""
    scale = Scale(ToyTask())
    walk = Walk(scale, found)
    best = walk.cheapest(lambda row: row.keeps(max_loss_pp))
    points = [dict(zip(found.axes, indices, strict=True)) for indices in np.ndindex(*map(len, found.axes.values()))]
    everything = [scale.measure(found.at(point)) for point in points]
    kept = [row.bits_per_element for row in everything if row.keeps(max_loss_pp)]
    assert best is not None
    assert best.bits_per_element <= 1.02 * min(kept)
    assert len(walk.rows) < len(everything)


def test_second_look_finds_what_lies_below_a_gap() -> None:
    """A cheap setting that is good by chance, with worse ones above it, is found by its divergence, with a few more runs."""
    walk = Walk(Scale(ToyTask()), UNIFORM)
    lucky = {row.config["levels"]: row for row in (walk._measure_at(place) for place in range(len(walk.probes)))}
    levels = sorted(lucky)

    def is_good(row: RateRow) -> bool:
        return row.config["levels"] == levels[4] or row.config["levels"] >= levels[20]

    again = Walk(Scale(ToyTask()), UNIFORM)
    first = again.cheapest(is_good, lucky[levels[20]].kl)
    assert first is not None
    assert first.config["levels"] == levels[20]
    num_rows = len(again.rows)
    second = again.cheapest_near(is_good, 1.001 * lucky[levels[4]].kl)
    assert second is not None
    assert second.config["levels"] == levels[4]
    assert len(again.rows) <= num_rows + 2 * 3


def test_no_setting_is_good_enough() -> None:
    """A codec that always loses too much has no best row, but rows that show it."""
    walk = Walk(Scale(ToyTask()), Family(name="coarse", make=Uniform, axes={"levels": (3, 4, 5, 6)}))
    assert walk.cheapest(lambda row: row.keeps(0.01)) is None
    assert walk.rows


def test_family_of_one_setting() -> None:
    """A codec without knobs is measured as it is."""
    walk = Walk(Scale(ToyTask()), family("q80"))
    best = walk.cheapest(lambda row: row.keeps(1.0))
    assert best is not None
    assert [row.codec for row in walk.rows] == ["q80"]


def test_pinned_settings_are_measured() -> None:
    """A pinned setting has its row whether or not it is near the border."""
    walk = Walk(Scale(ToyTask()), INTEGERS)
    assert [row.config["bits"] for row in walk.rows] == [8]


def test_rows_ascend_and_are_distinct() -> None:
    """Rows come by ascending bits, each setting once, however often it was asked for."""
    walk = Walk(Scale(ToyTask()), INTEGERS)
    for limit in (1.0, 5.0, 1.0):
        walk.cheapest(lambda row, limit=limit: row.keeps(limit))
    bits = [row.bits_per_element for row in walk.rows]
    configs = [str(row.config) for row in walk.rows]
    assert bits == sorted(bits)
    assert len(set(configs)) == len(configs)


@given(st.integers(1, 40), st.integers(0, 45), st.integers(0, 39))
def test_search_asks_at_the_border(count: int, border: int, start: int) -> None:
    """Where all from the border on pass, the border and the one below it are asked about, from wherever the search starts."""
    asked: set[int] = set()

    def passes(i: int) -> bool:
        asked.add(i)
        return i >= border

    _find_border(count, passes, min(start, count - 1))
    assert min(border, count - 1) in asked
    assert border == 0 or border >= count or border - 1 in asked
    assert len(asked) <= 2 * math.log2(count + 1) + 4


def test_a_good_guess_saves_questions() -> None:
    """From next to the border on, it is found by a handful of questions however many settings there are."""
    asked: list[int] = []

    def passes(i: int) -> bool:
        asked.append(i)
        return i >= 700

    _find_border(1000, passes, 701)
    assert set(asked) <= set(range(697, 702))


def test_search_looks_below_a_noisy_border() -> None:
    """A setting that passes a little below one that fails is found."""
    asked: set[int] = set()

    def passes(i: int) -> bool:
        asked.add(i)
        return i in (6, 7) or i >= 9

    _find_border(16, passes, 8)
    assert {6, 5, 4, 3} <= asked


# -- equal divergence --------------------------------------------------------------------------------


def test_bits_at_kl() -> None:
    """Between two settings the bits are linear in the logarithm of the divergence; a beaten setting does not count."""
    rows = [probe(1.0, 0.1), probe(2.0, 0.3), probe(3.0, 0.001)]
    assert bits_at_kl(rows, 0.1) == pytest.approx(1.0)
    assert bits_at_kl(rows, 0.01) == pytest.approx(2.0)
    assert bits_at_kl(rows, 0.2) is None
    assert bits_at_kl(rows, 0.0005) is None
    assert bits_at_kl([], 0.1) is None
    with pytest.raises(ConfigError, match="kl: must be positive"):
        bits_at_kl(rows, 0)


def test_report_of_a_task() -> None:
    """Rows, best settings, equal divergence and bounds come together, ready for JSON; the reference meets itself."""
    families = [family(name) for name in ("int-token-rans", "uniform-rans", "q80")]
    report = bench_task(ToyTask(), families, reference="uniform-rans")
    fields = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    best = {entry["codec"]: entry for entry in fields["best"]}
    assert list(best) == ["int-token-rans", "uniform-rans", "q80", "jpeg input", "raw input"]
    assert best["jpeg input"]["bits_per_element"] is None
    assert fields["equal_kl"] > 0
    assert best["uniform-rans"]["bits_at_equal_kl"] == pytest.approx(best["uniform-rans"]["bits_per_element"])
    assert best["int-token-rans"]["bits_at_equal_kl"] is not None
    assert best["q80"]["bits_at_equal_kl"] is None
    assert {row.codec for row in report.rows} == set(best) - {"jpeg input"}
    assert fields["ecsq"][0][1] > fields["ecsq"][-1][1] == 0
    assert all(row.keys() == RateRow.__dataclass_fields__.keys() for row in (row.to_dict() for row in report.rows))


def test_raw_input_is_a_row() -> None:
    """What a full server would be sent stands beside the codecs: lossless, in bits per element of the feature."""
    report = bench_task(ToyTask(), [family("q80"), family("uniform-rans")], reference="uniform-rans")
    raw = report.best_of("raw input")
    assert raw is not None
    assert (raw.bits_per_element, raw.quality_delta_pp, raw.kl, raw.rel_mse) == (32, 0, 0, 0)
    assert raw.quality == 90
    assert report.rows[-1] is raw
    assert report.ratio_at_equal_kl("raw input") == pytest.approx(report.ratio_at_equal_kl("q80") or 0, abs=1)


def test_report_survives_its_file() -> None:
    """A report that was JSON in between is the same."""
    report = bench_task(ToyTask(), [family("int-token-rans"), family("q80")], reference="int-token-rans")
    fields = json.loads(json.dumps({**report.to_dict(), "rows": [row.to_dict() for row in report.rows]}))
    again = TaskReport.from_dict(fields, fields["rows"])
    assert (again.to_dict(), again.rows, again.comparisons) == (report.to_dict(), report.rows, report.comparisons)


def test_hopeless_settings_do_not_reach_the_tail() -> None:
    """A setting with many times the error of one with no more bits is sketched, never judged."""
    task = ToyTask()
    Walk(Scale(task), Family(name="spoiled", make=Spoiled, axes={"bits": (4, 5, 6), "spoiled": (False, True)}))
    assert task.times_judged == 3


def test_equal_divergence_far_from_the_border() -> None:
    """A reference that is far finer than the loss allowed makes the others measure settings as fine."""
    fine = Family(name="fine", make=Integer, axes={"bits": (6,)})
    report = bench_task(ToyTask(), [fine, family("uniform-rans")], reference="fine")
    bits = report.comparisons[1].bits_at_equal_kl
    assert report.equal_kl is not None
    assert report.equal_kl < 0.002
    assert bits is not None
    assert 6 < bits < 8


class CalibratedTask(ToyTask):
    """The same with channels that say much the same, and other samples like that."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(1)
        mixing = rng.normal(size=(4, 32)).astype(np.float32)
        self._features, self._others = (
            [(rng.laplace(size=(1, 12, 4)) @ mixing).astype(np.float32) for _ in range(20)] for _ in range(2)
        )

    @property
    def calibration(self) -> Calibration:
        return Calibration(features=self._others, gradients=self._others)


def test_a_basis_is_calibrated_where_there_are_samples() -> None:
    """A codec with a basis is a row beside the others, at fewer bits where channels say the same, and checked beside SLICER;
    without samples it is left out.
    """
    families = [family(name) for name in ("serverlight", "serverlight-basis", "slicer-rans")]
    report = bench_task(CalibratedTask(), families, reference="serverlight", rounds=1)
    plain, turned = report.best_of("serverlight"), report.best_of("serverlight-basis")
    assert plain is not None
    assert turned is not None
    assert turned.bits_per_element < 0.7 * plain.bits_per_element
    assert len(turned.config["basis"]) == 16
    ratio = report.ratio_at_equal_kl("slicer-rans", "serverlight-basis")
    assert ratio is not None
    found = {check.name: check.value for check in rate_checks([report], 1.0)}
    assert found["serverlight-basis: bits over those of slicer-rans at equal KL, worst task (toy)"] == ratio
    assert ratio < found["serverlight: bits over those of slicer-rans at equal KL, worst task (toy)"]
    none = bench_task(ToyTask(4), families[:2], reference="serverlight", rounds=0)
    assert "serverlight-basis" not in {comparison.codec for comparison in none.comparisons}


def test_a_trellis_is_measured_on_tokens_only() -> None:
    """There it is a row of its own, at fewer bits; of feature maps it would be the same as without."""
    families = [family(name) for name in ("serverlight", "serverlight-trellis", "slicer-rans")]
    task = ToyTask()
    report = bench_task(task, families, reference="serverlight", rounds=1)
    plain, led = (report.ratio_at_equal_kl("slicer-rans", name) for name in ("serverlight", "serverlight-trellis"))
    assert plain is not None
    assert led is not None
    assert led < plain
    found = {check.name: check.value for check in rate_checks([report], 1.0)}
    assert found["serverlight-trellis: bits over those of slicer-rans at equal KL, worst task (toy)"] == led
    task._features = [x.reshape(1, 6, 8, 8) for x in task._features]
    maps = bench_task(task, families[:2], reference="serverlight", rounds=0)
    assert "serverlight-trellis" not in {comparison.codec for comparison in maps.comparisons}


def test_the_best_form_is_checked() -> None:
    """Of each task that of its forms which needs the fewest bits at equal divergence."""
    families = [family(name) for name in ("serverlight", "serverlight-trellis", "slicer-rans")]
    report = bench_task(ToyTask(), families, reference="serverlight", rounds=1)
    found = {check.name: check.value for check in rate_checks([report], 1.0)}
    forms = [
        f"{form}: bits over those of slicer-rans at equal KL, worst task (toy)"
        for form in ("serverlight", "serverlight-trellis")
    ]
    best = "serverlight in the best of its forms: bits over those of slicer-rans at equal KL, worst task (toy)"
    assert found[best] == min(found[form] for form in forms)


def test_waves_are_measured_on_feature_maps_only() -> None:
    """Where maps have negative elements they are a row of their own, with a trellis and without."""
    families = [family(name) for name in ("serverlight", "serverlight-cosine")]
    assert [one.name for one in _for_task(families, ToyTask(4))] == ["serverlight"]
    rival = families[1].make(sparsity=0.5, trellis=True)
    x = np.random.default_rng(0).standard_normal((1, 6, 8, 8)).astype(np.float32)
    assert inspect(rival.encode(x)).config["transform"] == "cosine"
    assert rival.decode(rival.encode(x)).shape == x.shape


def test_longer_steps_are_measured_on_feature_maps_only() -> None:
    """There they are a row of their own, whose cheapest setting is no dearer than that of the default step, which is among them."""
    families = [family(name) for name in ("serverlight", "serverlight-steps")]
    assert [one.name for one in _for_task(families, ToyTask(4))] == ["serverlight"]
    task = ToyTask(8)
    task._features = [np.abs(x.reshape(1, 6, 8, 8)) for x in task._features]
    assert [one.name for one in _for_task(families, task)] == ["serverlight", "serverlight-steps"]
    assert families[1].at({"sparsity": 20, "distortion": 0}).config == families[0].at({"sparsity": 20}).config
    assert families[1].at({"sparsity": 20, "distortion": 3}).config["distortion"] == LONG_STEPS[-1]


def test_report_of_the_demo() -> None:
    """The whole way with the shipped model."""
    torch.set_num_threads(1)
    report = bench_task(load_task("demo", limit=30), [family("int-channel")], reference="none", rounds=0)
    assert report.comparisons[0].best is not None
    assert (report.equal_kl, report.num_messages, report.elements_per_message) == (None, 30, 8192)


# -- speed -------------------------------------------------------------------------------------------


class FakeClock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1e-6
        return self.now


class Slow:
    """A codec that takes as long as it says."""

    def __init__(self, name: str, clock: FakeClock, encode_s: float, decode_s: float) -> None:
        self.name, self._clock, self._encode_s, self._decode_s = name, clock, encode_s, decode_s

    def encode(self, x: torch.Tensor) -> bytes:
        self._clock.now += self._encode_s
        self._x = x
        return bytes(x.numel())

    def decode(self, message: bytes) -> torch.Tensor:
        self._clock.now += self._decode_s
        return self._x


def test_times_are_medians_of_the_clock() -> None:
    """A codec's figures are its own time, rates are of the tensor's bytes, and rounds are never fewer than three."""
    clock = FakeClock()
    codecs: list[Contender] = [Slow("one", clock, 0.004, 0.002), Slow("two", clock, 0.5, 0.1)]
    one, two = time_codecs(codecs, (1, 1000), seconds=0.0, clock=clock)
    assert (one.codec, two.codec, one.rounds) == ("one", "two", 3)
    assert one.encode_us == pytest.approx(4000, rel=0.01)
    assert one.encode_first_us == pytest.approx(4000, rel=0.01)
    assert two.decode_first_us == pytest.approx(1e5, rel=0.01)
    assert two.decode_us == pytest.approx(1e5, rel=0.01)
    assert one.encode_gb_s == pytest.approx(4000 / 0.004 / 1e9, rel=0.01)
    assert one.bits_per_element == 8
    assert one.encode_vs_memcpy / one.decode_vs_memcpy == pytest.approx(2, rel=0.01)
    assert json.loads(json.dumps(one.to_dict()))["dtype"] == "float32"


def test_a_codec_that_takes_too_long_is_left_out() -> None:
    """One slow codec does not hold up the others."""
    clock = FakeClock()
    codecs: list[Contender] = [Slow("slow", clock, 9.0, 9.0), Slow("quick", clock, 0.01, 0.01)]
    rows = time_codecs(codecs, (8,), seconds=0.1, max_call_s=1.0, clock=clock)
    assert [row.codec for row in rows] == ["quick"]


@pytest.mark.filterwarnings("ignore")
def test_every_contender_gives_the_tensor_back() -> None:
    """Whatever is timed does its work: shape and dtype return, and half of the elements nearly unchanged at least."""
    x = sample_feature((1, 8, 16, 16))
    for codec in contenders():
        y = codec.decode(codec.encode(x))
        assert (y.shape, y.dtype) == (x.shape, torch.float32), codec.name
        assert ((y - x) ** 2).sum() < 0.2 * (x**2).sum(), codec.name


def test_straightforward_codec_by_hand() -> None:
    """Bitmap, three bits of group, a sign and four bits of code for each survivor, and eight ranges."""
    x = sample_feature((4, 64))
    assert len(StraightforwardTorch(sparsity=0.5).encode(x)) == 32 + 128 * 8 // 8 + 64


def test_own_codec_is_named_by_profile_and_backend() -> None:
    """Each backend of each profile is a contender of its own."""
    names = {codec.name for codec in contenders() if isinstance(codec, OwnCodec)}
    assert {"slicer (reference)", "fp16"} <= names


def test_samples_are_like_features() -> None:
    """Maps are one-sided and smooth; tokens are signed with long tails; sizes are as asked for."""
    feature_map, tokens = sample_feature((1, 8, 32, 32)), sample_feature((64, 512))
    assert feature_map.min() == 0
    assert 0.1 < (feature_map == 0).float().mean() < 0.25
    neighbours = np.corrcoef(feature_map[..., 1:].reshape(-1), feature_map[..., :-1].reshape(-1))[0, 1]
    assert neighbours > 0.2
    assert tokens.abs().max() > 8 * tokens.std()
    assert [4 * math.prod(sweep_shape(size)) for size in SWEEP_BYTES] == list(SWEEP_BYTES)

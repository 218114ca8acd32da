"""Tests of serverlight.codec.rivals."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serverlight.codec import calibrate_basis
from serverlight.codec.rivals import Family, Rival, compiled, families, family
from serverlight.codec.rivals.blocks import DYNAMIC_CODEBOOK, Q80, BlockwiseInt8
from serverlight.codec.rivals.halves import Halves
from serverlight.codec.rivals.integers import EntropyCodedInteger, Integer, RotatedInteger, hadamard
from serverlight.codec.rivals.low_rank import EntropyCodedLowRank, LowRank, scaled_factors
from serverlight.codec.rivals.plain_slicer import PlainSlicer
from serverlight.codec.rivals.rans import Stream, Table, pack_streams, unpack_streams
from serverlight.codec.rivals.rival import as_tokens, from_tokens, read_shape, shape_bytes
from serverlight.codec.rivals.spectral import EntropyCodedSpectrum, Spectrum, waves
from serverlight.codec.rivals.threshold_split import ThresholdSplit
from serverlight.codec.rivals.topk import TopK
from serverlight.codec.rivals.uniform import SparseUniform, Uniform
from serverlight.errors import ConfigError

COMPILED = [
    *(("rans", name) for name in ("decode_rans", "encode_rans", "normalise", "write_frequencies")),
    *((module, "quantise_groups") for module in ("plain_slicer", "threshold_split")),
]
RIVALS = [found for found in families() if not found.name.startswith("serverlight")]


def middle(found: Family) -> Rival:
    return found.at({axis: len(values) // 2 for axis, values in found.axes.items()})


def feature(*shape: int, one_sided: bool = False, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).laplace(size=shape).astype(np.float32)
    return np.maximum(x, 0) if one_sided else x


# -- what all rivals promise -------------------------------------------------------------------------


@pytest.mark.parametrize("found", RIVALS, ids=lambda f: f.name)
@pytest.mark.parametrize(
    "shape", [(1, 6, 7, 5), (3, 11, 13), (1, 9, 24), (9, 24), (1, 96), (1, 1, 50), (1,), (40,)], ids=str
)
def test_round_trip(found: Family, shape: tuple[int, ...]) -> None:
    """Every rival gives back shape and dtype from its bytes alone, and is finite and deterministic."""
    x = feature(*shape)
    rival = middle(found)
    message = rival.encode(x)
    y = rival.decode(message)
    assert isinstance(message, bytes)
    assert (y.shape, y.dtype) == (x.shape, np.float32)
    assert np.isfinite(y).all()
    assert rival.encode(x) == message


@pytest.mark.parametrize("found", RIVALS, ids=lambda f: f.name)
@pytest.mark.parametrize("one_sided", [False, True])
def test_finest_setting_is_close(found: Family, one_sided: bool) -> None:
    """At its finest setting every rival stays within a percent of the signal's energy."""
    finest = {"sparsity": 0, "distortion": 0, "num_groups": 1, "step": 0}
    rival = found.at({axis: finest.get(axis, len(values) - 1) for axis, values in found.axes.items()})
    x = feature(1, 16, 8, 8, one_sided=one_sided)
    error = rival.decode(rival.encode(x)) - x
    assert (error**2).sum() < 0.01 * (x**2).sum()


@pytest.mark.parametrize("found", RIVALS, ids=lambda f: f.name)
def test_zeros_stay_zeros(found: Family) -> None:
    """A tensor of zeros is no special case for the user."""
    rival = middle(found)
    assert not rival.decode(rival.encode(np.zeros((2, 3, 4), np.float32))).any()


@pytest.mark.parametrize("found", RIVALS, ids=lambda f: f.name)
def test_pinned_settings_are_on_the_grid(found: Family) -> None:
    """Whatever is always measured can also be found by the search."""
    for pinned in found.pinned:
        assert pinned.keys() == found.axes.keys()
        assert all(value in found.axes[axis] for axis, value in pinned.items())


def test_family_by_name() -> None:
    """Names are unique and lead to their family; an unknown one is answered with the list."""
    names = [found.name for found in families()]
    assert len(set(names)) == len(names)
    assert family("uniform-rans").name == "uniform-rans"
    with pytest.raises(ConfigError, match=r"codec: unknown codec 'zip'; choose from .*uniform-rans"):
        family("zip")


def test_a_basis_is_given_to_the_codec_that_needs_one() -> None:
    """Without one it says so; with one its frames name it, and it is another codec with another setting in tables."""
    turned, x = family("serverlight-basis"), feature(30, 12)
    with pytest.raises(ConfigError, match="codec: serverlight-basis needs a basis"):
        middle(turned)
    basis = calibrate_basis([feature(200, 12, seed=1)])
    rival = middle(turned.with_basis(basis))
    assert (rival.name, rival.config["basis"]) == ("serverlight-basis", basis.digest.hex())
    assert basis.digest[:4] in rival.encode(x)
    error = rival.decode(rival.encode(x)) - x
    assert (error**2).sum() < 0.5 * (x**2).sum()


def test_config_is_ready_for_json() -> None:
    """A rival's setting is its fields by name."""
    assert TopK(sparsity=0.3).config == {"sparsity": 0.3, "positions": "bitmap"}
    assert family("slicer").at({"sparsity": 0, "num_groups": 1, "distortion": 2}).config["profile"] == "slicer"


# -- rates that can be told by hand ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rival", "num_bytes"),
    [
        (Halves(), 5 + 2 * 8192),
        (BlockwiseInt8(block=64), 5 + 8192 + 4 * 128),
        (BlockwiseInt8(block=4096), 5 + 8192 + 4 * 2),
        (Q80(), 5 + 8192 + 2 * 256),
        (Integer(bits=4, scope="token"), 5 + 4096 + 2 * 512),
        (Integer(bits=3, scope="channel"), 5 + 3072 + 2 * 16),
        (Integer(bits=4, scope="tensor", ranges="minmax"), 5 + 4096 + 4),
        (RotatedInteger(bits=4, scope="token"), 5 + 4096 + 2 * 512),
        (TopK(sparsity=0.5), 5 + 2 + 1024 + 2 * 4096),
        # No outliers in one row of counts; for each token a width of 4 bits, two halves, and no code at all.
        (ThresholdSplit(threshold=1000, distortion=0.5, levels="middle"), 5 + 1 + 2 + 512 // 2 + 4 * 512),
        (Spectrum(rows=0.5, columns=0.25), 5 + 2 * 16 * 8 * 8),
        (LowRank(rank=3), 5 + 2 * 3 * (512 + 16)),
    ],
    ids=lambda v: str(getattr(v, "name", v)),
)
def test_size_by_hand(rival: Rival, num_bytes: int) -> None:
    """Fixed-length rivals need exactly their codes, their scales and the shape."""
    assert len(shape_bytes((16, 16, 32))) == 4
    assert len(rival.encode(feature(16, 16, 32))) == num_bytes - 1


def test_csr_is_shorter_than_a_bitmap_where_little_is_kept() -> None:
    """Columns cost more bits than a bitmap at half density, and fewer at two percent."""
    x = feature(1, 64, 16, 16)
    sizes = {(p, s): len(TopK(positions=p, sparsity=s).encode(x)) for p in ("bitmap", "csr") for s in (0.5, 0.98)}  # type: ignore[arg-type]
    assert sizes["csr", 0.5] > sizes["bitmap", 0.5]
    assert sizes["csr", 0.98] < sizes["bitmap", 0.98]


def test_top_k_keeps_exactly_the_largest() -> None:
    """K is exact, what is kept are halves, and zeros are never sent as survivors."""
    y = TopK(sparsity=0.7).decode(TopK(sparsity=0.7).encode(np.float32([5, -7, 1, 2, -3, 0, 0, 0, 0, 0.5])))
    assert y.tolist() == [5, -7, 0, 0, -3, 0, 0, 0, 0, 0]
    few = np.zeros(64, np.float32)
    few[3] = 1
    assert len(TopK(sparsity=0.5).encode(few)) == len(shape_bytes((64,))) + 1 + 8 + 2


def test_sparse_uniform_has_the_values_of_the_dense_one() -> None:
    """Both forms of the uniform rival carry the same codes."""
    x = feature(1, 16, 16, 16, one_sided=True)
    dense, sparse = Uniform(levels=19), SparseUniform(levels=19)
    assert np.array_equal(dense.decode(dense.encode(x)), sparse.decode(sparse.encode(x)))


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.97])
@pytest.mark.parametrize("num_groups", [1, 3, 8])
@pytest.mark.parametrize("distortion", [0.01, 0.1, 0.6])
@pytest.mark.parametrize("levels", ["middle", "ends"])
def test_plain_slicer(sparsity: float, num_groups: int, distortion: float, levels: str) -> None:
    """All codings carry the same values; K is exact; each group's mean error is within the budget of its range."""
    x = feature(1, 8, 8, 8)
    settings = {"sparsity": sparsity, "num_groups": num_groups, "distortion": distortion, "levels": levels}
    packed, *others = (PlainSlicer(coding=coding, **settings) for coding in ("bitmap", "csr", "rans"))  # type: ignore[arg-type]
    y = packed.decode(packed.encode(x)).reshape(-1)
    for other in others:
        assert np.array_equal(other.decode(other.encode(x)).reshape(-1), y)
    kept = np.flatnonzero(y)
    assert len(kept) == math.ceil((1 - sparsity) * x.size)
    magnitudes, errors = np.abs(x.reshape(-1)[kept]), np.abs(x.reshape(-1)[kept] - y[kept])
    for members in np.array_split(np.argsort(magnitudes, kind="stable"), num_groups):
        span = magnitudes[members].max() - magnitudes[members].min()
        assert errors[members].mean() <= 1.01 * distortion * span + 4e-3  # ranges are rounded to halves


def test_plain_slicer_in_the_middle_is_the_profile() -> None:
    """With values in the middle of their cells the rival is profile ``slicer``, but for ranges in halves."""
    x = feature(1, 8, 8, 8)
    plain = PlainSlicer(sparsity=0.5, num_groups=2, distortion=0.07)
    profile = family("slicer").make(sparsity=0.5, num_groups=2, distortion=0.14)  # it counts what truncation drops
    error = plain.decode(plain.encode(x)) - profile.decode(profile.encode(x))
    assert np.abs(error).max() < 0.01


def test_plain_slicer_by_hand() -> None:
    """Bitmap, labels, signs and codes at their widths, and five bytes for each group's range."""
    x = feature(1, 8, 8, 8)
    message = PlainSlicer(sparsity=0.5, num_groups=4, distortion=0.13, levels="ends").encode(x)
    # 256 survivors at 1 bit of sign, 2 of label, and 2 of code: the mean error of evenly spread values is 1 / 12 of the range.
    assert len(message) == 5 + 1 + 4 * 5 + 2 + 1 + 512 // 8 + 256 * (1 + 2 + 2) // 8


def test_entropy_coding_changes_bytes_only() -> None:
    """The codes are the same with and without rANS."""
    x = feature(1, 16, 16, 16)
    plain, coded = Integer(bits=4, scope="channel"), EntropyCodedInteger(bits=4, scope="channel")
    assert np.array_equal(plain.decode(plain.encode(x)), coded.decode(coded.encode(x)))
    assert len(coded.encode(x)) < len(plain.encode(x))


def test_ranges_that_do_not_straddle_zero() -> None:
    """With ``minmax`` a one-sided feature gets as many levels as a signed one with twice the bits' range."""
    x = feature(1, 16, 16, 16, one_sided=True)
    errors = {
        ranges: ((Integer(bits=4, ranges=ranges).decode(Integer(bits=4, ranges=ranges).encode(x)) - x) ** 2).sum()
        for ranges in ("absmax", "minmax")
    }
    assert errors["minmax"] < 0.5 * errors["absmax"]


def test_rotation_spreads_an_outlier() -> None:
    """The transform keeps lengths and undoes itself; one large channel becomes equal shares of all."""
    x = feature(5, 96)
    assert hadamard(hadamard(x)) == pytest.approx(x, abs=1e-5)
    assert (hadamard(x) ** 2).sum() == pytest.approx((x**2).sum(), rel=1e-5)
    spike = np.zeros((1, 64), np.float32)
    spike[0, 7] = 8
    assert np.abs(hadamard(spike)) == pytest.approx(np.ones((1, 64)))
    x[:, 3] *= 8
    errors = [((rival.decode(rival.encode(x)) - x) ** 2).sum() for rival in (Integer(bits=4), RotatedInteger(bits=4))]
    assert errors[1] < 0.5 * errors[0]


def test_bits_are_checked() -> None:
    """A width outside 2 to 8 is a ConfigError that names the field."""
    with pytest.raises(ConfigError, match="bits: must be from 2 to 8, got 9"):
        Integer(bits=9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ThresholdSplit(threshold=0), "threshold: must be positive, got 0; 1000 takes no outliers out"),
        (lambda: ThresholdSplit(distortion=1), "distortion: must be from 0 to below 1, got 1"),
        (lambda: Spectrum(rows=0), "rows: must be above 0 and at most 1, got 0"),
        (lambda: Spectrum(columns=1.5), r"columns: must be above 0 and at most 1, got 1\.5"),
        (lambda: EntropyCodedSpectrum(rows=-1), "rows: must be above 0"),
        (lambda: EntropyCodedSpectrum(step=0), "step: must be positive, got 0"),
        (lambda: LowRank(rank=0), "rank: must be at least 1, got 0"),
        (lambda: EntropyCodedLowRank(rank=0), "rank: must be at least 1, got 0"),
        (lambda: EntropyCodedLowRank(step=-1), "step: must be positive, got -1"),
    ],
)
def test_settings_are_checked(make: Callable[[], Rival], message: str) -> None:
    """A setting that means nothing is a ConfigError that names the field."""
    with pytest.raises(ConfigError, match=message):
        make()


# -- outliers and rows with widths of their own --------------------------------------------------------


@st.composite
def features(draw: st.DrawFn) -> np.ndarray:
    """Small tensors of any rank up to four, some with a few very large elements, some without negative ones."""
    shape = draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    x = np.random.default_rng(draw(st.integers(0, 99))).laplace(size=(1, *shape)).astype(np.float32)
    x *= np.float32(draw(st.sampled_from((1e-3, 1.0, 50.0))))
    x.reshape(-1)[:: draw(st.integers(1, 40))] *= np.float32(draw(st.sampled_from((0, 1, 20))))
    return np.maximum(x, 0) if draw(st.booleans()) else x


NEW_RIVALS = [family(f"{name}{suffix}") for name in ("ts-tabq", "fourier", "low-rank") for suffix in ("", "-rans")]


@settings(max_examples=60, deadline=None)
@given(features(), st.sampled_from(NEW_RIVALS), st.data())
def test_any_feature_at_any_setting(x: np.ndarray, found: Family, data: st.DataObject) -> None:
    """Shape, type and bytes are as promised wherever the search may look, and nothing becomes infinite."""
    rival = found.at({axis: data.draw(st.integers(0, len(values) - 1)) for axis, values in found.axes.items()})
    message = rival.encode(x)
    y = rival.decode(message)
    assert (y.shape, y.dtype) == (x.shape, np.float32)
    assert np.isfinite(y).all()
    assert rival.encode(x) == message


@settings(max_examples=60, deadline=None)
@given(
    features(), st.sampled_from((2.0, 4.0, 1000.0)), st.sampled_from((0.005, 0.03, 0.2)),
    st.sampled_from(("token", "channel")), st.sampled_from(("middle", "ends")),
)  # fmt: skip
def test_threshold_split(x: np.ndarray, threshold: float, distortion: float, scope: str, levels: str) -> None:
    """Outliers come back as halves; the mean error of a row's rest is within its budget; both codings carry the same values."""
    packed, coded = (
        ThresholdSplit(threshold=threshold, distortion=distortion, scope=scope, levels=levels, coding=coding)  # type: ignore[arg-type]
        for coding in ("packed", "rans")
    )
    y = packed.decode(packed.encode(x))
    assert np.array_equal(coded.decode(coded.encode(x)), y)
    rows, restored = (as_tokens(z) if scope == "token" else as_tokens(z).T for z in (x, y))
    is_outlier = (np.abs(rows) >= threshold * np.sqrt(np.mean(np.square(rows, dtype=np.float64)))) & (rows != 0)
    assert np.array_equal(restored[is_outlier], rows[is_outlier].astype(np.float16).astype(np.float32))
    rest = np.where(is_outlier, 0, rows)
    spans, errors = np.ptp(rest, axis=1), np.abs(np.where(is_outlier, 0, restored - rows)).mean(1)
    rounding = 1e-3 * np.abs(rest).max(1) + 1e-7  # of ranges to halves
    assert (errors <= distortion * spans + rounding + spans / 1024).all()  # no width is above ten


def test_widths_follow_the_tokens() -> None:
    """A token of two values takes fewer bits than one whose values fill its range evenly."""
    x = np.float32([[0, 1] * 32, np.linspace(0, 1, 64)])
    rival = ThresholdSplit(threshold=1000, distortion=0.01)
    sizes = [len(rival.encode(x[[i, i]])) for i in (0, 1)]
    assert sizes[1] - sizes[0] == 2 * 64 * (5 - 1) // 8  # 32 levels are 0.008 of the range off on average


# -- low frequencies, low ranks ------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40))
def test_waves_are_an_orthonormal_basis(count: int) -> None:
    """Every row has length 1 and is square to the others; the first is constant."""
    assert waves(count) @ waves(count).T == pytest.approx(np.eye(count), abs=1e-5)
    assert np.ptp(waves(count)[0]) == 0


@pytest.mark.parametrize("count", [7, 8])
def test_low_waves_are_low_frequencies(count: int) -> None:
    """The first 2 k + 1 waves give back what is left of a spectrum when all frequencies above k are dropped."""
    x = feature(count)
    for k in range(count // 2):
        spectrum = np.fft.fft(x)
        spectrum[k + 1 : count - k] = 0
        kept = waves(count)[: 2 * k + 1]
        assert kept.T @ (kept @ x) == pytest.approx(np.fft.ifft(spectrum).real, abs=1e-5)


def test_a_map_is_transformed_plane_by_plane() -> None:
    """A plane that is constant in space takes one coefficient; channels are not mixed."""
    x = np.ones((1, 3, 8, 8), np.float32) * np.float32([1, 5, -2])[None, :, None, None]
    rival = Spectrum(rows=0.125, columns=0.125)
    assert rival.decode(rival.encode(x)) == pytest.approx(x, rel=1e-3)
    assert len(rival.encode(x)) == len(shape_bytes(x.shape)) + 2 * 3


@settings(max_examples=40, deadline=None)
@given(features(), st.sampled_from((0.3, 0.5, 1.0)), st.sampled_from((0.3, 1.0)))
def test_dropping_frequencies_is_a_projection(x: np.ndarray, rows: float, columns: float) -> None:
    """No energy is added, and what came back once comes back again."""
    rival = Spectrum(rows=rows, columns=columns)
    y = rival.decode(rival.encode(x))
    size = float(np.abs(x).max()) + 1e-3
    assert (y.astype(np.float64) ** 2).sum() <= (x.astype(np.float64) ** 2).sum() * 1.01 + 1e-6
    assert rival.decode(rival.encode(y)) == pytest.approx(y, abs=0.01 * size)


@settings(max_examples=40, deadline=None)
@given(features(), st.sampled_from((0.125, 0.5, 2.0)))
def test_quantised_waves_err_by_half_a_step(x: np.ndarray, step: float) -> None:
    """With all waves kept, the mean squared error of the feature is at most that of half a step in every coefficient."""
    rival = EntropyCodedSpectrum(rows=1.0, columns=1.0, step=step)
    half_step = step / 2 * np.sqrt(np.mean(np.square(x, dtype=np.float64)))
    error = rival.decode(rival.encode(x)).astype(np.float64) - x
    assert np.sqrt(np.mean(error**2)) <= 1.001 * half_step + 1e-6


@settings(max_examples=40, deadline=None)
@given(features(), st.integers(1, 6))
def test_low_rank_is_the_best_of_its_rank(x: np.ndarray, rank: int) -> None:
    """The error is that of the singular values left out, within the rounding of halves."""
    matrix = as_tokens(x).astype(np.float64)
    left_out = np.linalg.svd(matrix, compute_uv=False)[rank:]
    rival = LowRank(rank=rank)
    error = as_tokens(rival.decode(rival.encode(x))).astype(np.float64) - matrix
    assert np.sqrt((error**2).sum()) == pytest.approx(
        np.sqrt((left_out**2).sum()), abs=2e-3 * np.abs(matrix).sum() + 1e-6
    )


@pytest.mark.parametrize("shape", [(40, 12), (12, 40)])
def test_scaled_factors(shape: tuple[int, int]) -> None:
    """Tall or wide, both factors are singular vectors times their values, and their product over the values is the matrix."""
    x = feature(*shape)
    left, right, values = scaled_factors(x, 99)
    assert (left.shape, right.shape, values.shape) == ((shape[0], 12), (shape[1], 12), (12,))
    assert left / values @ right.T == pytest.approx(x, abs=1e-4)
    assert np.linalg.norm(left, axis=0) == pytest.approx(values, rel=1e-4)
    assert np.linalg.norm(right, axis=0) == pytest.approx(values, rel=1e-4)


def test_quantised_factors_err_alike() -> None:
    """A step is worth as much in columns of small singular values as in those of large ones."""
    x = feature(64, 3) @ np.diag(np.float32([100, 10, 1])) @ feature(3, 32, seed=1)
    errors = []
    for rank in (1, 2, 3):
        best = LowRank(rank=rank)
        coded = EntropyCodedLowRank(rank=rank, step=0.02)
        error = coded.decode(coded.encode(x)) - best.decode(best.encode(x))
        errors.append(float((error**2).sum()) / rank)
    assert max(errors) < 2.5 * min(errors)


def test_dynamic_codebook() -> None:
    """256 ascending values from -0.99 to 1 with zero among them, finer near zero, symmetric but for the one."""
    assert len(DYNAMIC_CODEBOOK) == 256
    assert (np.diff(DYNAMIC_CODEBOOK) > 0).all()
    assert {0.0, 1.0} < set(DYNAMIC_CODEBOOK.tolist())
    assert set((-DYNAMIC_CODEBOOK[DYNAMIC_CODEBOOK < 0]).tolist()) == set(
        DYNAMIC_CODEBOOK[DYNAMIC_CODEBOOK > 0][:-1].tolist()
    )


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("block", [64, 4096])
def test_blockwise_int8_is_that_of_bitsandbytes(block: int) -> None:
    """Values agree with the package whose layout this rival has, but for codes on the edge between two levels."""
    import bitsandbytes.functional
    import torch

    x = feature(16, 64, 56)
    packed, state = bitsandbytes.functional.quantize_blockwise(torch.from_numpy(x), blocksize=block)
    theirs = bitsandbytes.functional.dequantize_blockwise(packed, state).numpy()
    ours = BlockwiseInt8(block=block).decode(BlockwiseInt8(block=block).encode(x))
    assert (np.abs(ours - theirs) > 1e-5).mean() < 0.01
    assert ((ours - x) ** 2).sum() == pytest.approx(((theirs - x) ** 2).sum(), rel=1e-3)


# -- parts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "tokens"),
    [
        ((1, 16, 8, 8), (64, 16)),
        ((16, 8, 8), (64, 16)),
        ((1, 12, 384), (12, 384)),
        ((1, 4096), (1, 4096)),
        ((), (1, 1)),
    ],
)
def test_tokens_of_a_feature(shape: tuple[int, ...], tokens: tuple[int, int]) -> None:
    """A map's places are tokens, leading ones are a batch, and the way back is exact."""
    x = feature(*shape)
    assert as_tokens(x).shape == tokens
    assert np.array_equal(from_tokens(as_tokens(x), shape), x)


def test_shape_takes_few_bytes() -> None:
    """Five bytes for a feature map, and the next byte is told."""
    assert len(shape_bytes((1, 64, 56, 56))) == 5
    assert read_shape(shape_bytes((1, 300, 4096)) + b"rest") == ((1, 300, 4096), 6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(-300, 300), max_size=200), min_size=1, max_size=3))
def test_rans_round_trip(parts: list[list[int]]) -> None:
    """Any symbols of any streams come back, tables included."""
    streams = [Stream(s, Table.fit(s)) for s in (np.array(part, np.int32) for part in parts)]
    asked = [(len(s.symbols), Table.from_bytes(s.table.to_bytes(), 0)[0]) for s in streams]
    for stream, decoded in zip(streams, unpack_streams(pack_streams(streams), asked), strict=True):
        assert np.array_equal(stream.symbols, decoded)


@pytest.mark.parametrize("scale", [0.1, 0.5, 2.0, 20.0])
def test_rans_is_near_the_entropy(scale: float) -> None:
    """Streams cost at most 0.5 % and six bytes over the entropy of their symbols; tables are on top of that."""
    symbols = np.rint(np.random.default_rng(0).laplace(scale=scale, size=20_000)).astype(np.int32)
    counts = np.bincount(symbols - symbols.min())
    counts = counts[counts > 0]
    entropy_bytes = (counts * np.log2(len(symbols) / counts)).sum() / 8
    stream = Stream(symbols, Table.fit(symbols))
    assert len(pack_streams([stream])) < 1.005 * entropy_bytes + 6
    assert len(pack_streams([stream, stream])) < 1.005 * 2 * entropy_bytes + 6


def test_compiled_loops_are_the_functions_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Numba the rivals write the same bytes."""
    x = feature(1, 4, 6, 6)
    rivals: list[Rival] = [
        SparseUniform(levels=9),
        PlainSlicer(coding="rans"),
        PlainSlicer(levels="ends", num_groups=3),
    ]
    for rival in [*rivals, ThresholdSplit()]:
        message, y = rival.encode(x), rival.decode(rival.encode(x))
        with monkeypatch.context() as patch:
            for module, name in COMPILED:
                patch.setattr(f"serverlight.codec.rivals.{module}.{name}", getattr(compiled, name).py_func)
            assert rival.encode(x) == message
            assert np.array_equal(rival.decode(message), y)

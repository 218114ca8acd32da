"""Tests of serverlight.codec.rivals."""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serverlight.codec.rivals import Family, Rival, compiled, families, family
from serverlight.codec.rivals.blocks import DYNAMIC_CODEBOOK, Q80, BlockwiseInt8
from serverlight.codec.rivals.halves import Halves
from serverlight.codec.rivals.integers import EntropyCodedInteger, Integer, RotatedInteger, hadamard
from serverlight.codec.rivals.plain_slicer import PlainSlicer
from serverlight.codec.rivals.rans import Stream, Table, pack_streams, unpack_streams
from serverlight.codec.rivals.rival import as_tokens, from_tokens, read_shape, shape_bytes
from serverlight.codec.rivals.topk import TopK
from serverlight.codec.rivals.uniform import SparseUniform, Uniform
from serverlight.errors import ConfigError

COMPILED = [
    *(("rans", name) for name in ("decode_rans", "encode_rans", "normalise", "write_frequencies")),
    ("plain_slicer", "quantise_groups"),
]
RIVALS = [found for found in families() if found.name != "serverlight"]


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
    finest = {"sparsity": 0, "distortion": 0, "num_groups": 1}
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
    for rival in (SparseUniform(levels=9), PlainSlicer(coding="rans"), PlainSlicer(levels="ends", num_groups=3)):
        message, y = rival.encode(x), rival.decode(rival.encode(x))
        with monkeypatch.context() as patch:
            for module, name in COMPILED:
                patch.setattr(f"serverlight.codec.rivals.{module}.{name}", getattr(compiled, name).py_func)
            assert rival.encode(x) == message
            assert np.array_equal(rival.decode(message), y)

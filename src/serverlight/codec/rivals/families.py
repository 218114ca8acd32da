"""Every codec of the comparison with the grid of settings in which its best one is looked for."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from serverlight.codec.basis import Basis
from serverlight.codec.config import CORRECTED_STEPS, LONG_STEPS, PROFILES, CodecConfig
from serverlight.codec.layout import Layout
from serverlight.codec.rivals import zstd
from serverlight.codec.rivals.blocks import Q80, BlockwiseInt8
from serverlight.codec.rivals.halves import Halves, ShuffledHalves
from serverlight.codec.rivals.integers import EntropyCodedInteger, EntropyCodedRotatedInteger, Integer, RotatedInteger
from serverlight.codec.rivals.low_rank import EntropyCodedLowRank, LowRank
from serverlight.codec.rivals.plain_slicer import PlainSlicer
from serverlight.codec.rivals.profiles import Profile
from serverlight.codec.rivals.rival import Rival
from serverlight.codec.rivals.spectral import EntropyCodedSpectrum, Spectrum
from serverlight.codec.rivals.threshold_split import ThresholdSplit
from serverlight.codec.rivals.topk import TopK
from serverlight.codec.rivals.uniform import SparseUniform, Uniform
from serverlight.errors import ConfigError

__all__ = ["Family", "families", "family"]

Axes = Mapping[str, tuple[Any, ...]]

BITS = (2, 3, 4, 5, 6, 8)
SPARSITIES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.92, 0.93, 0.94, 0.95, 0.96, 0.97)
FINE_SPARSITIES = (*(i / 40 for i in range(2, 34)), *(i / 100 for i in range(84, 99)))
LEVELS = (3, 4, 5, 6, 7, 8, 9, 11, 13, 16, 19, 23, 27, 32, 38, 45, 54, 64, 76, 91, 108, 128, 152, 181, 215, 256)
SCOPES = ("token", "channel", "tensor")
RANKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
EIGHTHS = tuple(i / 8 for i in range(1, 9))
STEPS = tuple(round(0.125 * 2 ** (i / 4), 4) for i in range(24))
"""Steps in units of the root mean square, from 1/8 to 6.7."""

SPLITS: Axes = {
    "threshold": (4.0, 6.0, 9.0, 14.0, 1000.0),
    "distortion": (0.003, 0.005, 0.008, 0.012, 0.017, 0.025, 0.036, 0.05, 0.08, 0.13),
    "scope": ("token", "channel"),
    "levels": ("middle", "ends"),
}
"""Thresholds in units of the root mean square; at the last nothing is split off."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """One codec over all its settings."""

    name: str
    """What the codec is called in tables."""

    make: Callable[..., Rival]
    """Takes one value for each axis, by name."""

    axes: Axes
    """Settings to choose from, each in ascending order where there is one; neighbours are alike."""

    pinned: tuple[Mapping[str, Any], ...] = ()
    """Settings that are always measured in full, besides the best."""

    takes_basis: bool = False
    """Whether it needs a calibrated basis, which :meth:`with_basis` gives it."""

    only_for: Layout | None = None
    """What features it differs from another one for, if not for all; others need not be measured."""

    def at(self, point: Mapping[str, int]) -> Rival:
        """The codec at a point of the grid: an index for each axis."""
        if self.takes_basis:
            raise ConfigError("codec", f"{self.name} needs a basis; give it one")
        return self.make(**{axis: self.axes[axis][i] for axis, i in point.items()})

    def with_basis(self, basis: Basis) -> Family:
        """The same codec with a basis that was calibrated for the features to come."""
        return dataclasses.replace(self, make=functools.partial(self.make, basis=basis), takes_basis=False)


PROFILE_AXES: dict[str, Axes] = {
    "slicer": {
        "sparsity": SPARSITIES,
        "num_groups": (1, 2, 4, 8),
        # A group of full range takes one bit a survivor from 0.25 on, two from 0.125, three from 0.0625.
        "distortion": (0.01, 0.02, 0.03, 0.05, 0.07, 0.09, 0.13, 0.2, 0.26),
    },
}
"""Grids of this package's profiles that have more than one knob to turn; the others are walked by sparsity."""


def families() -> tuple[Family, ...]:
    """All codecs that can run here: this package's profiles first, then the rivals."""
    return (*_profiles(), *_rivals())


def family(name: str) -> Family:
    """The codec of that name; raises :class:`ConfigError` for a name that is not there."""
    known = {found.name: found for found in families()}
    if name not in known:
        raise ConfigError("codec", f"unknown codec {name!r}; choose from {', '.join(known)}")
    return known[name]


def _profiles() -> list[Family]:
    found = []
    for profile in PROFILES:
        if profile != "fp16":
            axes = PROFILE_AXES.get(profile, {"sparsity": FINE_SPARSITIES})
            found.append(Family(name=profile, make=_profile(profile), axes=axes))
    return [
        *found,
        Family(
            name="serverlight-basis", make=_profile("serverlight"), axes={"sparsity": FINE_SPARSITIES}, takes_basis=True
        ),
        Family(
            name="serverlight-trellis",
            make=_profile("serverlight", trellis=True),
            axes={"sparsity": FINE_SPARSITIES},
            only_for=Layout.TOKENS,
        ),
        Family(
            name="serverlight-trellis-basis",
            make=_profile("serverlight", trellis=True),
            axes={"sparsity": FINE_SPARSITIES},
            takes_basis=True,
            only_for=Layout.TOKENS,
        ),
        Family(
            name="serverlight-steps",
            make=_profile("serverlight"),
            axes={"sparsity": FINE_SPARSITIES, "distortion": (None, *LONG_STEPS)},
            only_for=Layout.PLANES,
        ),
        Family(
            name="serverlight-corrected",
            make=_profile("serverlight", bias_correction=True),
            axes={"sparsity": FINE_SPARSITIES, "distortion": CORRECTED_STEPS},
            only_for=Layout.PLANES,
        ),
        Family(
            name="serverlight-cosine",
            make=_profile("serverlight", transform="cosine"),
            axes={"sparsity": FINE_SPARSITIES, "trellis": (False, True)},
            only_for=Layout.PLANES,
        ),
    ]


def _profile(profile: str, **fixed: Any) -> Callable[..., Rival]:
    def make(*, basis: Basis | None = None, **settings: Any) -> Rival:
        # Rivals have no checksum either.
        return Profile(CodecConfig(profile=profile, checksum=False, **fixed, **settings), basis=basis)

    return make


def _rivals() -> list[Family]:
    packed: Axes = {"bits": BITS, "ranges": ("absmax", "minmax")}
    slicer: Axes = {**PROFILE_AXES["slicer"], "levels": ("middle", "ends")}
    rotated: Axes = {"bits": BITS, "scope": SCOPES}
    blocks: Axes = {"rows": (0.5, 0.75, 1.0), "columns": (0.5, 0.75, 1.0), "step": STEPS}
    found = [
        Family(name="fp16", make=Halves, axes={}),
        Family(name="blockwise-int8", make=BlockwiseInt8, axes={"block": (64, 4096)}, pinned=({"block": 64},)),
        Family(name="q80", make=Q80, axes={}),
        *(_integers(scope, packed) for scope in ("token", "channel")),
        *(_integers(scope, packed, coded=True) for scope in ("token", "channel")),
        Family(name="rotated", make=RotatedInteger, axes=rotated, pinned=({"bits": 4, "scope": "token"},)),
        Family(name="rotated-rans", make=EntropyCodedRotatedInteger, axes=rotated),
        Family(name="topk-fp16-bitmap", make=_topk("bitmap"), axes={"sparsity": SPARSITIES}),
        Family(name="topk-fp16-csr", make=_topk("csr"), axes={"sparsity": SPARSITIES}),
        *(Family(name=f"slicer-{c}", make=_plain_slicer(c), axes=slicer) for c in ("bitmap", "csr", "rans")),
        Family(name="uniform-rans", make=Uniform, axes={"levels": LEVELS}),
        Family(name="uniform-csr-rans", make=SparseUniform, axes={"levels": LEVELS}),
        Family(name="ts-tabq", make=_threshold_split("packed"), axes=SPLITS),
        Family(name="ts-tabq-rans", make=_threshold_split("rans"), axes=SPLITS),
        Family(name="fourier", make=Spectrum, axes={"rows": EIGHTHS, "columns": EIGHTHS}),
        Family(name="fourier-rans", make=EntropyCodedSpectrum, axes=blocks),
        Family(name="low-rank", make=LowRank, axes={"rank": RANKS}),
        Family(name="low-rank-rans", make=EntropyCodedLowRank, axes={"rank": RANKS, "step": STEPS}),
    ]
    if zstd.is_available():
        found.insert(1, Family(name="fp16-zstd", make=ShuffledHalves, axes={"level": (1, 19)}))
    return found


def _integers(scope: str, axes: Axes, *, coded: bool = False) -> Family:
    def make(**settings: Any) -> Rival:
        return (EntropyCodedInteger if coded else Integer)(scope=scope, **settings)  # type: ignore[arg-type]

    pinned = () if coded else tuple({"bits": bits, "ranges": "absmax"} for bits in (4, 8))
    return Family(name=f"int-{scope}{'-rans' if coded else ''}", make=make, axes=axes, pinned=pinned)


def _plain_slicer(coding: str) -> Callable[..., Rival]:
    def make(**settings: Any) -> Rival:
        return PlainSlicer(coding=coding, **settings)  # type: ignore[arg-type]

    return make


def _threshold_split(coding: str) -> Callable[..., Rival]:
    def make(**settings: Any) -> Rival:
        return ThresholdSplit(coding=coding, **settings)  # type: ignore[arg-type]

    return make


def _topk(positions: str) -> Callable[..., Rival]:
    def make(sparsity: float) -> Rival:
        return TopK(sparsity=sparsity, positions=positions)  # type: ignore[arg-type]

    return make

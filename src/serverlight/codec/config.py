"""The codec's knobs, theta = (s, lambda, M, delta)."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from serverlight.errors import ConfigError

__all__ = ["CodecConfig"]

PROFILES = ("serverlight", "slicer", "fp16")
POSITIONS = ("auto", "bitmap", "csr", "rice")
ASYMMETRY_MODES = ("score", "budget")
TRANSFORMS = ("none", "cosine")
FORMS: dict[str, Any] = {"trellis": False, "transform": "none", "bias_correction": False}
"""Options of profile ``serverlight`` by field, with what they are where nobody asks for them."""
MAX_GROUPS = 256

LONG_STEPS = (0.45, 0.6, 0.8)
"""Distortions worth trying for feature maps beside the default, whose step has the least squared error for its bits. What averages
over a map, as the last layers of many networks do, hardly minds coarse numbers, but misses what the filter drops."""

CORRECTED_STEPS = (None, 0.6)
"""Those worth trying with a bias correction, which gives back some of what they take."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CodecConfig:
    """Settings of the three stages: filter, groups, allocate and quantise.

    >>> CodecConfig(sparsity=0.75).num_kept(4096)
    1024
    """

    profile: str = "serverlight"
    """Which codec writes the frame: ``serverlight`` is ours, ``slicer`` the paper's, ``fp16`` ships plain half floats."""

    sparsity: float = 0.75
    """Share ``s`` of the elements that the filter drops, in [0, 1)."""

    asymmetry: float = 1.0
    """Worth ``lambda`` of a negative element beside a positive one of equal magnitude, > 0."""

    asymmetry_mode: str = "score"
    """What ``lambda`` weighs: ``score`` the magnitude of each negative element, all elements competing for one budget of ``K``;
    ``budget`` their number, so that positive and negative elements have budgets of their own (:meth:`num_kept_by_sign`)."""

    num_groups: int = 1
    """Number ``M`` of magnitude groups of equal cardinality, 1 to 256; ``serverlight`` forms its groups by size instead."""

    distortion: float | None = None
    """Budget ``delta`` of the mean quantisation error, > 0: as a share of a group's range (``slicer``), or of the filter's
    threshold (``serverlight``). ``None`` lets the profile choose: 0.05, or what suits the kind of tensor. With a budget
    ``serverlight`` seeks the least squared error; without one, for signed tokens, what networks that normalise do best with.
    Feature maps before a mean over the map do best with 0.45 to 0.8, which :func:`serverlight.calibrate` finds out."""

    positions: str = "auto"
    """How a frame says which elements are kept: ``auto`` takes the cheapest of ``bitmap``, ``csr`` and ``rice``."""

    trellis: bool = False
    """Whether ``serverlight`` leads signed tokens along a trellis: two to six percent fewer bits at equal quality, five to fifteen
    times as long to encode. The filter's share is not held then: each path has the numbers that are worth their bits. Tensors that
    it is not for (feature maps, single tokens, one-sided or extreme ones) are written without."""

    transform: str = "none"
    """What ``serverlight`` codes of feature maps: ``none`` the elements; ``cosine`` the waves that each plane is made of, which are
    what the filter keeps or drops then. On the linear bottlenecks of MobileNetV2 that takes 17 to 28 percent fewer bits at equal
    divergence. Tensors that it is not for (rectified maps, tokens) are written without."""

    bias_correction: bool = False
    """Whether ``serverlight`` sends beside a feature map what each plane lacks in the mean, in about three bits a plane. Before
    the mean over the map with which many networks end that takes up to two fifths of the bits at equal divergence, in the middle of
    some it adds to them; :func:`serverlight.calibrate` finds out. What is no feature map, or is coded as waves, has none."""

    checksum: bool = True
    """Whether a CRC-32 of four bytes ends the frame."""

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise ConfigError("profile", f"must be one of {', '.join(PROFILES)}, got {self.profile!r}")
        _check_number("sparsity", self.sparsity, lambda s: 0.0 <= s < 1.0, "in [0, 1)")
        _check_number("asymmetry", self.asymmetry, lambda a: 0.0 < a < math.inf, "positive and finite")
        if self.asymmetry_mode not in ASYMMETRY_MODES:
            raise ConfigError(
                "asymmetry_mode", f"must be one of {', '.join(ASYMMETRY_MODES)}, got {self.asymmetry_mode!r}"
            )
        if self.distortion is not None:
            _check_number("distortion", self.distortion, lambda d: 0.0 < d < math.inf, "positive and finite")
        if not isinstance(self.num_groups, int) or not 1 <= self.num_groups <= MAX_GROUPS:
            raise ConfigError("num_groups", f"must be a whole number from 1 to {MAX_GROUPS}, got {self.num_groups!r}")
        if self.positions not in POSITIONS:
            raise ConfigError("positions", f"must be one of {', '.join(POSITIONS)}, got {self.positions!r}")
        if not isinstance(self.trellis, bool):
            raise ConfigError("trellis", f"must be true or false, got {self.trellis!r}")
        if self.transform not in TRANSFORMS:
            raise ConfigError("transform", f"must be one of {', '.join(TRANSFORMS)}, got {self.transform!r}")
        if not isinstance(self.bias_correction, bool):
            raise ConfigError("bias_correction", f"must be true or false, got {self.bias_correction!r}")
        if not isinstance(self.checksum, bool):
            raise ConfigError("checksum", f"must be true or false, got {self.checksum!r}")
        self._check_forms()

    def _check_forms(self) -> None:
        """What only one profile has, and what weighs all elements alike."""
        is_weighed = self.asymmetry != 1.0 or self.asymmetry_mode != "score"
        for field, without in FORMS.items():
            if getattr(self, field) == without:
                continue
            if self.profile != "serverlight":
                raise ConfigError(
                    field, f"profile {self.profile} has none; choose profile serverlight, or leave it out"
                )
            if is_weighed and field != "bias_correction":
                raise ConfigError(
                    field, "weighs all elements alike; choose an asymmetry of 1 in mode 'score', or leave it out"
                )

    def num_kept(self, num_elements: int) -> int:
        """``K = ceil((1 - s) n)``, exactly: the decimal that the user wrote counts, not its nearest float.

        >>> CodecConfig(sparsity=0.7).num_kept(10)  # in floats (1 - 0.7) * 10 is above 3
        3
        """
        numerator, denominator = _share_kept(float(self.sparsity))
        return -(-numerator * num_elements // denominator)

    def num_kept_by_sign(self, num_positive: int, num_negative: int, num_elements: int) -> tuple[int, int]:
        """``K+`` and ``K-`` of mode ``budget``: ``K``, or all that is not zero, in the ratio ``n+ : lambda n-``, exactly.

        ``K+`` is rounded half up; what one side has no elements for goes to the other.

        >>> CodecConfig(sparsity=0.5, asymmetry=0.5, asymmetry_mode="budget").num_kept_by_sign(60, 40, 100)
        (38, 12)
        """
        num_kept = min(self.num_kept(num_elements), num_positive + num_negative)
        if num_kept == 0:
            return 0, 0
        worth = Fraction(repr(float(self.asymmetry)))
        share = Fraction(num_kept * num_positive) / (num_positive + worth * num_negative)
        num_kept_positive = max(num_kept - num_negative, min(math.floor(share + Fraction(1, 2)), num_positive))
        return num_kept_positive, num_kept - num_kept_positive

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> CodecConfig:
        """The inverse of :meth:`to_dict`; an unknown field is a :class:`ConfigError`."""
        known = {field.name for field in dataclasses.fields(cls)}
        for name in fields:
            if name not in known:
                raise ConfigError(name, f"unknown codec setting; choose from {', '.join(sorted(known))}")
        return cls(**fields)


@functools.lru_cache(maxsize=256)
def _share_kept(sparsity: float) -> tuple[int, int]:
    """``1 - s`` as numerator and denominator."""
    return (1 - Fraction(repr(sparsity))).as_integer_ratio()


def _check_number(field: str, value: object, allowed: Callable[[float], bool], wanted: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not allowed(value):
        raise ConfigError(field, f"must be {wanted}, got {value!r}")

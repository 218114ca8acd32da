"""A calibrated basis: channels of a feature turned so that fewer of them matter, before the codec sees them.

Features of language models are correlated across channels, and no context of an entropy coder sees that. A basis from calibration
samples (a Karhunen-Loeve transform) does. It lies beside the plan on both sides; a frame only names it. What a reader computes
is exact in integers but for the last roundings (docs/wire-format.md, section 6.8); what a writer computes is its own business.
"""

# Shapes: D = channels, R = rows (all dimensions but the last).

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import pathlib
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from serverlight.codec.activity import MAX_SPREAD, NO_SPREADS, Spreads, spreads_of
from serverlight.codec.backends import Float32
from serverlight.codec.tensors import Tensor, to_float32
from serverlight.errors import ConfigError, InconsistentFrame, UnknownBasis, UnsupportedTensor

__all__ = ["DIGEST_BYTES", "MAX_WIDTH", "Basis", "calibrate_basis"]

Float64 = npt.NDArray[np.float64]

DIGEST_BYTES = 8
MAX_WIDTH = 1 << 14
"""Up to this width every sum of a reader fits 63 bits, whatever a frame holds."""

MAX_EXPONENT = 30
LARGEST_ENTRY = 32767
EXACT_IN_DOUBLE = float(1 << 53)
DAMPING = 0.1
"""Share of the mean sensitivity that every direction has at least: directions that seem harmless in a sample are not."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Basis:
    """Directions in the space of channels, and the mean; bases are equal if their digests are.

    >>> basis = Basis(vectors=np.array([[1, 1], [1, -1]], np.int16), exponent=0, mean=np.array([5.0, 5.0], np.float32))
    >>> basis.width, basis.digest.hex()
    (2, '309d31952c90d8b6')
    """

    vectors: npt.NDArray[np.int16]
    """Row ``i`` is what one unit of coefficient ``i`` adds to the channels, times ``2 ** exponent``; int16, at most 32767
    in magnitude, shape (D, D)."""

    exponent: int
    """0 to 30."""

    mean: Float32
    """What a feature is if all its coefficients are zero; finite, shape (D,)."""

    spreads: Spreads = field(default_factory=lambda: NO_SPREADS)
    """How large the coefficients of each direction are beside the others, as indices of docs/wire-format.md, section 6.8, 0 to
    127, shape (D,); or none, of shape (0,). With them even a single token has contexts."""

    def __post_init__(self) -> None:
        vectors, mean = self.vectors, self.mean
        if vectors.dtype != np.int16 or vectors.ndim != 2 or vectors.shape != (len(vectors), len(vectors)):
            raise ConfigError("vectors", f"must be a square matrix of int16, got {vectors.dtype} {vectors.shape}")
        if not 1 <= len(vectors) <= MAX_WIDTH:
            raise ConfigError("vectors", f"must have 1 to {MAX_WIDTH} rows, got {len(vectors)}")
        if vectors.min() < -LARGEST_ENTRY:
            raise ConfigError("vectors", f"must be at most {LARGEST_ENTRY} in magnitude")
        if not isinstance(self.exponent, int) or not 0 <= self.exponent <= MAX_EXPONENT:
            raise ConfigError("exponent", f"must be a whole number from 0 to {MAX_EXPONENT}, got {self.exponent!r}")
        if mean.dtype != np.float32 or mean.shape != (len(vectors),) or not np.isfinite(mean).all():
            raise ConfigError("mean", f"must be {len(vectors)} finite float32, got {mean.dtype} {mean.shape}")
        spreads = self.spreads
        if spreads.dtype != np.uint8 or spreads.shape not in ((0,), (len(vectors),)) or (spreads > MAX_SPREAD).any():
            raise ConfigError(
                "spreads",
                f"must be none or {len(vectors)} of uint8 up to {MAX_SPREAD}, got {spreads.dtype} {spreads.shape}",
            )
        for name in ("vectors", "mean", "spreads"):
            own = np.array(getattr(self, name))
            own.setflags(write=False)
            object.__setattr__(self, name, own)

    @property
    def width(self) -> int:
        """Channels ``D``."""
        return len(self.vectors)

    @functools.cached_property
    def digest(self) -> bytes:
        """What frames and plans name the basis by: 8 bytes (section 6.8)."""
        parts = hashlib.blake2b(digest_size=DIGEST_BYTES)
        parts.update(b"serverlight basis" + self.width.to_bytes(4, "little") + bytes((self.exponent,)))
        parts.update(self.vectors.astype("<i2").tobytes())
        parts.update(self.mean.astype("<f4").tobytes())
        parts.update(self.spreads.tobytes())
        return parts.digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Basis) and other.digest == self.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def coefficients(self, values: Float32, shape: tuple[int, ...]) -> Float32:
        """What the codec is to encode for flat ``values`` of a tensor of that shape; as flat.

        Raises:
            UnsupportedTensor: the last dimension is not as wide as the basis.
        """
        if not shape or shape[-1] != self.width:
            raise UnsupportedTensor(
                f"a tensor of shape {shape} under a basis of width {self.width}; encode features whose last dimension has that size"
            )
        with np.errstate(over="ignore", invalid="ignore"):  # the codec refuses what is not finite
            turned = (values.reshape(-1, self.width) - self.mean) @ self._forward
        return np.ascontiguousarray(turned, np.float32).reshape(-1)

    def values(self, units: Float32, step: float) -> Float64:
        """Values of a frame before they are held within its dtype (section 6.8).

        Args:
            units: the coefficients in 64ths of the step: whole numbers in float32, flat.
            step: the frame's step.
        """
        rows, vectors = units.reshape(-1, self.width), self.vectors
        largest_sum = float(np.abs(rows).sum(axis=1, dtype=np.float64).max(initial=0)) * LARGEST_ENTRY
        if largest_sum < EXACT_IN_DOUBLE:  # then no partial sum is rounded, in whatever order it is made
            sums = rows.astype(np.float64) @ self._vectors_in_double
        else:
            sums = (rows.astype(np.int64) @ vectors.astype(np.int64)).astype(np.float64)
        return (sums * (step * 2.0 ** (-6 - self.exponent)) + self.mean.astype(np.float64)).reshape(-1)

    @functools.cached_property
    def _forward(self) -> Float32:
        """From features less their mean to coefficients, shape (D, D)."""
        try:
            inverse = np.linalg.inv(self._vectors_in_double * 2.0**-self.exponent)
        except np.linalg.LinAlgError:
            raise ConfigError("vectors", "have no inverse; calibrate the basis with more rows") from None
        return inverse.astype(np.float32)

    @functools.cached_property
    def _vectors_in_double(self) -> Float64:
        return self.vectors.astype(np.float64)

    def save(self, path: str | pathlib.Path) -> None:
        """Writes the basis as an ``npz`` file, to lie beside the plan that names it."""
        with pathlib.Path(path).open("wb") as file:  # NumPy would add a suffix to a bare name
            arrays: dict[str, Any] = {"vectors": self.vectors, "exponent": np.int64(self.exponent), "mean": self.mean}
            if self.spreads.size:
                arrays["spreads"] = self.spreads
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: str | pathlib.Path) -> Basis:
        """Reads a file that :meth:`save` wrote; nothing in it is executed. Raises :class:`ConfigError`."""
        try:
            with pathlib.Path(path).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                found = {name: arrays[name] for name in ("vectors", "exponent", "mean")}
                spreads = arrays.get("spreads", NO_SPREADS)
            return cls(vectors=found["vectors"], exponent=int(found["exponent"]), mean=found["mean"], spreads=spreads)
        except OSError as exc:
            raise ConfigError("basis", f"cannot read {path}: {exc.strerror or exc}") from None
        except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as exc:
            if isinstance(exc, ConfigError):
                raise
            raise ConfigError("basis", f"{path} is no basis ({exc}); give a file that Basis.save wrote") from None


def named(basis: Basis | None, digest: bytes, shape: Sequence[int]) -> Basis:
    """The basis that a frame names by its digest, or the start of it.

    Raises:
        UnknownBasis: it is not the one at hand.
        InconsistentFrame: the frame's tensor is not as wide.
    """
    if basis is None or basis.digest[: len(digest)] != digest:
        at_hand = "none" if basis is None else basis.digest.hex()
        raise UnknownBasis(
            f"the frame needs basis {digest.hex()}, this reader has {at_hand}; pass the one that lies beside the sender's plan"
        )
    if not shape or shape[-1] != basis.width:
        raise InconsistentFrame(f"a tensor of shape {tuple(shape)} under a basis of width {basis.width}")
    return basis


def calibrate_basis(features: Iterable[Tensor], *, gradients: Iterable[Tensor] | None = None) -> Basis:
    """The basis that fits some features: their principal directions, those of the largest variance first.

    Take features of text like that to come: in another domain a basis gains less, and for random tokens nothing. A few thousand
    rows, and more than ten times the channels, are enough.

    Args:
        features: tensors with channels last, of one width D, at the cut that the basis is for.
        gradients: for these or other features, the gradient of what the tail makes of them, of the same width: for a language
            model of the log-probability of tokens drawn from its own distribution. Directions to which the output is more
            sensitive are then held more exactly.

    Raises:
        ConfigError: nothing to calibrate with, or widths that differ.
        UnsupportedTensor: a tensor that the codec cannot carry.
    """
    rows = _rows("features", features)
    mean = rows.mean(axis=0)
    centred = rows - mean
    weight, unweight = _weights(gradients, rows.shape[1])
    variances, directions = np.linalg.eigh(weight @ (centred.T @ centred / len(rows)) @ weight)
    vectors = directions[:, np.argsort(-variances, kind="stable")].T @ unweight
    # The sign of a direction is arbitrary; let the largest entry be positive.
    vectors *= np.sign(np.take_along_axis(vectors, np.abs(vectors).argmax(axis=1)[:, None], axis=1))
    exponent = min(MAX_EXPONENT, max(0, math.floor(math.log2(LARGEST_ENTRY / np.abs(vectors).max()))))
    entries = np.clip(np.rint(vectors * 2.0**exponent), -LARGEST_ENTRY, LARGEST_ENTRY)
    basis = Basis(vectors=entries.astype(np.int16), exponent=exponent, mean=mean.astype(np.float32))
    coefficients = basis.coefficients(rows.astype(np.float32).reshape(-1), rows.shape).reshape(rows.shape)
    return dataclasses.replace(basis, spreads=spreads_of(np.abs(coefficients).mean(axis=0, dtype=np.float64)))


def _rows(field: str, tensors: Iterable[Tensor]) -> Float64:
    parts: list[Any] = []
    for x in tensors:
        values, shape, _ = to_float32(x)
        if not shape or shape[-1] == 0 or (parts and parts[0].shape[1] != shape[-1]):
            raise ConfigError(field, f"a tensor of shape {shape} has no channels, or others than the one before")
        parts.append(values.reshape(-1, shape[-1]).astype(np.float64))
    rows = np.concatenate(parts) if parts else np.zeros((0, 1))
    if not len(rows) or not np.isfinite(rows).all():
        raise ConfigError(field, "need at least one row of finite values")
    return rows


def _weights(gradients: Iterable[Tensor] | None, width: int) -> tuple[Float64, Float64]:
    """A symmetric matrix that makes equal errors in all directions harm alike, half-way; and its inverse."""
    if gradients is None:
        return np.eye(width), np.eye(width)
    rows = _rows("gradients", gradients)
    if rows.shape[1] != width:
        raise ConfigError("gradients", f"have {rows.shape[1]} channels, the features {width}")
    harm, directions = np.linalg.eigh(rows.T @ rows)
    harm = np.maximum(harm, 0) / max(harm.mean(), 1e-300) + DAMPING
    # The full weight would be the square root of the sensitivity; its root again does better out of the sample.
    scale = harm**0.25
    return (directions * scale) @ directions.T, (directions / scale) @ directions.T

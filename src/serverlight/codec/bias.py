"""Bias correction: what a plane of a feature map lacks in the mean once it is coded, sent beside it and given back.

What the filter drops and what a coarse step rounds leave each plane a little too small or too large, and a network that takes the
mean over its maps, as the last layers of many do, sees little else. Nagel et al. ("Data-free quantization through weight
equalization and bias correction", 2019) correct the outputs of quantised weights so; here it is the feature, and its own error
(docs/wire-format.md, section 6.11).
"""

# Shapes: P = planes (all dimensions but the last two), of N elements each.

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from serverlight.codec import rice
from serverlight.codec.backends import Float32
from serverlight.codec.layout import Layout, natural_layout
from serverlight.codec.wire import Reader, Writer
from serverlight.errors import InconsistentFrame

__all__ = ["check_shape", "corrected", "corrections_of", "packed", "read", "suits"]

Ints = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

PART = "corrections"

LEAST_PLANE = 16
"""Smaller planes have none: a correction takes about three bits."""

UNITS = 4
"""A correction is in 16ths of the step: so many 64ths."""

MOST = 1 << 20
"""No correction is larger: a reader's sums are exact then."""

UNARY_BITS = 8
"""Bits of quotients that there may be for each plane; the parameter with the fewest bytes has about two."""

MAX_PARAMETER = 15
LARGEST_SCALED = float(1 << 40)
"""What is further out is no matter of a mean."""


def suits(shape: tuple[int, ...]) -> bool:
    """Whether a writer that is asked to corrects a tensor."""
    return natural_layout(shape) is Layout.PLANES and math.prod(shape[-2:]) >= LEAST_PLANE


def check_shape(shape: tuple[int, ...]) -> None:
    """Raises :class:`InconsistentFrame` for a shape without planes, or with too small ones."""
    if len(shape) < 2 or math.prod(shape[-2:]) < LEAST_PLANE:
        raise InconsistentFrame(f"a bias correction of shape {shape}; it has planes of at least {LEAST_PLANE} elements")


def corrections_of(values: Float32, units: Float32, step: float, shape: tuple[int, ...]) -> Ints:
    """Mean of what each plane lacks, in 16ths of the step, rounded half up: shape (P,).

    Args:
        values: the elements, finite, flat.
        units: what a reader makes of them, in 64ths of the step: whole numbers, flat.
        step: the frame's step.
        shape: of the tensor.
    """
    size = math.prod(shape[-2:])
    with np.errstate(over="ignore"):
        scaled = np.clip(values.astype(np.float64) * (64 / step), -LARGEST_SCALED, LARGEST_SCALED)
    lacking = (np.rint(scaled).astype(np.int64) - units.astype(np.int64)).reshape(-1, size).sum(axis=1)
    corrections: Ints = np.clip((2 * lacking + UNITS * size) // (2 * UNITS * size), -MOST, MOST)
    return corrections


def packed(corrections: Ints) -> bytes:
    """Corrections as a frame has them; nothing if they are all zero, or too unlike each other for what a frame may have."""
    numbers = np.where(corrections > 0, 2 * corrections - 1, -2 * corrections)
    parameter = min(rice.best_parameter(numbers)[0], MAX_PARAMETER)
    if not numbers.any() or rice.unary_bits_of(numbers, parameter) > UNARY_BITS * len(numbers):
        return b""
    writer = Writer()
    writer.byte(parameter, PART)
    rice.write(writer, numbers, parameter, PART)
    return b"".join(writer.parts)


def read(reader: Reader, shape: tuple[int, ...]) -> Ints:
    """Reads and proves the corrections of a tensor whose shape is proved: shape (P,)."""
    parameter, num_planes = reader.byte(PART), math.prod(shape[:-2])
    if parameter > MAX_PARAMETER:
        raise InconsistentFrame(f"{PART}: parameter {parameter}; at most {MAX_PARAMETER} is allowed")
    numbers = rice.read(
        reader, num_planes, parameter, most_unary_bits=UNARY_BITS * num_planes, below=2 * MOST + 1, part=PART
    )
    return np.where(numbers % 2 == 1, (numbers + 1) // 2, -(numbers // 2))


def corrected(units: Float32, corrections: Ints, step: float, *, one_sided: bool) -> Float64:
    """Values of a frame before they are held within its dtype (section 6.11), flat.

    Args:
        units: the elements in 64ths of the step: whole numbers in float32, flat.
        corrections: as :func:`read` gives them.
        step: the frame's step.
        one_sided: whether no element is negative.
    """
    if not len(corrections):
        return units.astype(np.float64)
    values: Float64 = units.reshape(len(corrections), -1) + (UNITS * corrections).astype(np.float64)[:, None]
    values *= step * 2.0**-6
    return np.maximum(values, 0.0, out=values).reshape(-1) if one_sided else values.reshape(-1)

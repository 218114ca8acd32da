"""Bit widths per group under the distortion budget: decided once, for all backends."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["REFERENCE_BITS", "integer_guard"]

REFERENCE_BITS = 12
"""``Q0``: 2^-12 of a group's range is finer than a float16 resolves within one binade, so nothing wider is of use."""


def integer_guard(
    code_errors: npt.NDArray[np.int64], group_sizes: npt.NDArray[np.int64], distortion: float
) -> npt.NDArray[np.uint8]:
    """The least width of each group whose code error keeps within the budget (the paper's ABQ guard).

    Args:
        code_errors: ``g[m, Q]``, int64 of shape (M, Q0 + 1): the summed distance between the codes at the reference
            width and those at width ``Q``, shifted back up.
        group_sizes: members of each group, int64 of shape (M,).
        distortion: ``delta``; a group may err by ``delta * size * 2**Q0`` in all.

    Returns:
        Widths ``Q`` in bits, uint8 of shape (M,).

    >>> integer_guard(np.array([[9, 4, 0]]), np.array([2]), distortion=0.5)
    array([1], dtype=uint8)
    """
    reference_bits = code_errors.shape[1] - 1
    budgets = distortion * group_sizes.astype(np.float64) * 2.0**reference_bits
    within = code_errors <= budgets[:, None]
    widths: npt.NDArray[np.uint8] = np.argmax(within, axis=1).astype(np.uint8)
    return widths

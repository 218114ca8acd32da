"""Codec settings worth trying: only those knobs that do something in a profile, at values that span what they can do."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from serverlight.codec import CodecConfig
from serverlight.search.profile import Kind

__all__ = ["candidate_configs"]

SPARSITIES = {
    "single-shot": (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.93, 0.96),
    "language-model": (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7),
}
"""Convolutional features after a ReLU bear far more of it than hidden states."""

STEPS = {"single-shot": (None, 0.15, 0.6), "language-model": (None, 0.15)}
"""Distortions of profile ``serverlight``: the optimum, a step of less than half of it, and for feature maps one of nearly twice."""

FORMS: dict[Kind, tuple[dict[str, Any], ...]] = {
    "single-shot": ({"transform": "cosine"}, {"bias_correction": True}),
    "language-model": (),
}
"""What else profile ``serverlight`` writes of feature maps; where a cut has none of it the frames are those of the others."""

ASYMMETRIES = (1.0, 0.7)

SLICER_SPARSITIES = {
    "single-shot": (0.3, 0.5, 0.7, 0.8, 0.9, 0.95),
    "language-model": (0.05, 0.1, 0.2, 0.3, 0.4, 0.5),
}
SLICER_GROUPS = (1, 2, 4)
SLICER_DISTORTIONS = (0.04, 0.1)


def candidate_configs(kind: Kind = "single-shot") -> tuple[CodecConfig, ...]:
    """The grid that is calibrated unless another is given.

    In profile ``serverlight`` the threshold sets the step and the sizes the groups, so sparsity, distortion and asymmetry are
    all there is, and the forms of feature maps; what writes the same frames, as asymmetry does where no element is negative, is
    measured once. In ``slicer`` all four knobs matter. ``asymmetry_mode`` and ``positions`` are left alone: the first moves the
    same elements about, the second is chosen best by itself.

    >>> {config.profile for config in candidate_configs("language-model")} == {"serverlight", "slicer"}
    True
    """
    return (*_serverlight(kind), *_slicer(kind))


def _serverlight(kind: Kind) -> Iterator[CodecConfig]:
    for sparsity, distortion, asymmetry in itertools.product(SPARSITIES[kind], STEPS[kind], ASYMMETRIES):
        if distortion is None or asymmetry == 1:
            yield CodecConfig(sparsity=sparsity, distortion=distortion, asymmetry=asymmetry)
    for sparsity, form in itertools.product(SPARSITIES[kind], FORMS[kind]):
        yield CodecConfig(sparsity=sparsity, **form)


def _slicer(kind: Kind) -> Iterator[CodecConfig]:
    for sparsity, groups, distortion in itertools.product(SLICER_SPARSITIES[kind], SLICER_GROUPS, SLICER_DISTORTIONS):
        yield CodecConfig(profile="slicer", sparsity=sparsity, num_groups=groups, distortion=distortion)

"""The whole search in one call: what is not given is measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from serverlight.link import LinkConfig
from serverlight.models.loader import is_language_model
from serverlight.search.constraints import Constraints, Objective, Workload
from serverlight.search.measure import profile_model
from serverlight.search.optimise import SearchResult, optimise
from serverlight.search.profile import Profile
from serverlight.search.quality import QualityTable

__all__ = ["search"]


def search(
    model: str,
    calibration: QualityTable | Sequence[Any] | torch.Tensor,
    *,
    labels: Sequence[Any] | None = None,
    constraints: Constraints | None = None,
    link: LinkConfig | None = None,
    workload: Workload | None = None,
    objective: Objective | None = None,
    device: Profile | None = None,
    server: Profile | None = None,
) -> SearchResult:
    """Where to cut a model and how to compress what crosses: profile, calibrate, choose.

    The result has the ``plan``, which :meth:`SearchResult.save` writes, a ``frontier`` for a device to move along while its link
    changes, and the reasons. All on the device, and the raw input to a full server, are among the choices.

    Args:
        model: what the commands take for MODEL.
        calibration: inputs of one call each with a batch of 1, or one tensor with all of them, of a language model texts as token
            ids; or the table that was made of them (:func:`calibrate_table`).
        labels: the right class of each sample, where quality is to be accuracy; else it is agreement with the uncut model.
        constraints: the caps; none by default.
        link: rate, delay and jitter; without limit by default.
        workload: how many devices ask for what.
        objective: what is minimised: the server's compute time by default.
        device: its profile; by default this machine's, which is measured once (:func:`profile_model`).
        server: the same of the server.

    Raises:
        Infeasible: no plan keeps all caps; says which bind and what comes nearest.
        ConfigError: a cap on what is not known, or nothing to calibrate on.
        ModelError: there is no such model, or it cannot be loaded.
    """
    measured = profile_model(model) if device is None or server is None else None
    device, server = device or measured, server or measured
    assert device is not None
    assert server is not None
    if not isinstance(calibration, QualityTable):
        calibration = _calibrate(model, calibration, [cut.name for cut in device.cuts], labels)
    return optimise(
        device=device,
        server=server,
        table=calibration,
        link=link,
        workload=workload,
        constraints=constraints,
        objective=objective,
    )


def _calibrate(
    model: str, samples: Sequence[Any] | torch.Tensor, cuts: Sequence[str], labels: Sequence[Any] | None
) -> QualityTable:
    from serverlight.generation import LoadedDecoder
    from serverlight.models import load_model
    from serverlight.search.calibrate import calibrate_table

    if not is_language_model(model):
        return calibrate_table(load_model(model), samples, cuts=cuts, labels=labels)
    ends = (
        LoadedDecoder.head(model, cuts[-1], dtype=torch.float32),
        LoadedDecoder.tail(model, cuts[0], dtype=torch.float32),
    )
    return calibrate_table(ends, samples, cuts=cuts)

"""The whole search in one call: what is not given is measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from serverlight.codec.config import CodecConfig
from serverlight.generation import LoadedDecoder
from serverlight.link import LinkConfig
from serverlight.models.loader import is_language_model, load_model
from serverlight.partition.graph import partition
from serverlight.partition.names import OUTPUT
from serverlight.search.calibrate import calibrate_table
from serverlight.search.constraints import Constraints, Objective, Workload
from serverlight.search.measure import profile_model
from serverlight.search.optimise import SearchResult, optimise
from serverlight.search.profile import Profile
from serverlight.search.quality import QualityTable
from serverlight.search.settle import settle

__all__ = ["search"]

BUDGET = 0.1
"""Runs of the tail for the table, as a share of what all its rows would take."""


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
    """Where to cut a model and how to compress what crosses: profile, calibrate, choose, and measure in full what was chosen.

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
    sides = {"device": device, "server": server}

    def choose(table: QualityTable) -> SearchResult:
        return optimise(
            **sides, table=table, link=link, workload=workload, constraints=constraints, objective=objective
        )

    if isinstance(calibration, QualityTable):
        return choose(calibration)
    calibrate = _calibrator(model, calibration, labels)
    cuts = [cut.name for cut in device.cuts if cut.name != OUTPUT]
    return settle(calibrate(cuts, None, BUDGET), choose, lambda cut, codec: calibrate([cut], [codec], None))[0]


Calibrate = Callable[[Sequence[str], Sequence[CodecConfig] | None, float | None], QualityTable]
"""From cuts, settings (by default a grid) and a budget (none: all in full)."""


def _calibrator(model: str, samples: Sequence[Any] | torch.Tensor, labels: Sequence[Any] | None) -> Calibrate:
    """Loads the model once."""
    if not is_language_model(model):
        loaded = load_model(model)
        parts = partition(loaded.module, loaded.example_inputs)
        return lambda cuts, configs, budget: calibrate_table(
            loaded, samples, cuts=cuts, configs=configs, labels=labels, budget=budget, parts=parts
        )
    tail = LoadedDecoder.tail(model, "layers.0", dtype=torch.float32)
    head = LoadedDecoder.head(model, f"layers.{tail.part.num_layers}", dtype=torch.float32)
    return lambda cuts, configs, budget: calibrate_table(
        (head, tail), samples, cuts=cuts, configs=configs, labels=labels, budget=budget
    )

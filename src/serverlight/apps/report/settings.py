"""What a report is about and how much time it may take."""

from __future__ import annotations

import os
import pathlib
from dataclasses import dataclass
from typing import Literal, Self

from serverlight.errors import ConfigError, ServerlightError

__all__ = ["FULL", "QUICK", "Budget", "Settings", "Subject"]

Kind = Literal["images", "language"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """Limits of the stages. Those of :data:`FULL` are for an hour on two cores with the shared data."""

    tasks: tuple[str, ...] | None
    """Of the codec's comparison; ``None`` for every one whose data is there."""

    codecs: str
    """``all``, or some with commas between them."""

    samples: int
    """Images, sentence pairs or windows of each task, at most."""

    large_samples: int
    """The same where a sample takes several times longer: images of ImageNet, windows of demo-lm."""

    coarse: bool
    """Whether grids of settings are not refined."""

    ablation_tasks: tuple[str, ...] | None
    """Of the ablation, likewise."""

    ablation_samples: int | None
    """At most; ``None`` for as many as each task takes there."""

    speed_s: float
    """Spent on each codec and size."""

    clients: tuple[int, ...]
    """Devices on a server."""

    turn_s: float
    """How long each number of them is looked at."""

    tokens: int
    """Of a text on a loaded server."""

    quality_samples: int
    """Images, for what settings lose at each cut."""

    quality_texts: int
    drift_tokens: int
    drift_windows: int
    drift_texts: int
    drift_rates: tuple[float, ...]
    drift_chunks: tuple[int, ...]
    questions: int
    """Of each task of a language model."""

    questionnaires: tuple[str, ...]
    devices: int
    """Of the simulated fleet of a model of images; of a language model a five hundredth."""

    hours: float
    """Simulated."""


FULL = Budget(
    tasks=None, codecs="all", samples=120, large_samples=50, coarse=True, ablation_tasks=None, ablation_samples=60, speed_s=0.3,
    clients=(1, 2, 4, 8, 16, 32), turn_s=2.0, tokens=64, quality_samples=200, quality_texts=24, drift_tokens=512,
    drift_windows=4, drift_texts=4, drift_rates=(1, 2, 4), drift_chunks=(1, 16, 128), questions=60,
    questionnaires=("hellaswag", "piqa", "arc_easy", "boolq"), devices=100_000, hours=0.1,
)  # fmt: skip

QUICK = Budget(
    tasks=("demo", "R56-mid", "ST-3", "LM-0.26M"), codecs="serverlight,slicer,slicer-rans,fp16,int-token,uniform-csr-rans",
    samples=30, large_samples=30, coarse=True, ablation_tasks=("demo", "LM-0.26M"), ablation_samples=24, speed_s=0.05,
    clients=(1, 8), turn_s=0.6, tokens=16, quality_samples=40, quality_texts=6, drift_tokens=160, drift_windows=2, drift_texts=2,
    drift_rates=(2, 4), drift_chunks=(1, 16), questions=6, questionnaires=("piqa",), devices=2000, hours=0.02,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """A model that is reported on as a whole."""

    spec: str
    """What the commands take for MODEL."""

    data: str | None = None
    """Its labelled images, or text; ``None`` for what it brings."""

    kind: Kind | None = None
    """``None`` where the model is not there."""

    layers: int = 0
    """Of a language model."""

    problem: str = ""
    """Why it is not there."""

    @property
    def name(self) -> str:
        """The last part of what may be a path, without its ending."""
        return pathlib.PurePath(self.spec).name.removesuffix(".safetensors")

    @classmethod
    def parse(cls, text: str) -> Self:
        """``MODEL`` or ``MODEL=DATA``; raises :class:`ConfigError` where nothing is named."""
        spec, _, data = text.strip().partition("=")
        if not spec:
            raise ConfigError(
                "models", f"cannot read {text!r}; give MODEL or MODEL=DATA, several with commas between them"
            )
        return cls.read(spec, data or None)

    @classmethod
    def read(cls, spec: str, data: str | None = None) -> Self:
        """Finds out what it is."""
        from serverlight.huggingface import SETTINGS_FILES, find_folder, read_config
        from serverlight.models.loader import is_language_model

        try:
            if not is_language_model(spec):
                return cls(spec=spec, data=data, kind="images")
            config = read_config(spec, find_folder(spec, SETTINGS_FILES))
            return cls(spec=spec, data=data, kind="language", layers=config.num_hidden_layers)
        except ServerlightError as error:
            return cls(spec=spec, data=data, problem=str(error))


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """All that a report is made from."""

    out: pathlib.Path
    """Folder of the page and of what was measured."""

    data: pathlib.Path | None
    """Folder of the tasks' models and data."""

    subjects: tuple[Subject, ...]
    budget: Budget

    def __post_init__(self) -> None:
        names = [subject.name for subject in self.subjects]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError("models", f"two are called {twice[0]!r}; rename one of them")

    @property
    def jobs(self) -> int:
        """Parts that run at a time where no time is measured."""
        return max(1, min(2, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))

    @property
    def is_quick(self) -> bool:
        """Whether it is but a look."""
        return self.budget is QUICK

    def of_kind(self, kind: Kind) -> tuple[Subject, ...]:
        """The models of one kind."""
        return tuple(subject for subject in self.subjects if subject.kind == kind)

    def told(self, text: str) -> str:
        """A text without the folders of this machine."""
        for path, word in ((self.out, "OUT"), (self.data, "DATA")):
            text = text if path is None else text.replace(str(path), word)
        return text

"""What a cut and a codec setting cost a sentence encoder in bytes and in rank correlation with people's judgement."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from serverlight.codec import Codec, CodecConfig, decode
from serverlight.errors import ConfigError, CutNotFound
from serverlight.evaluation.paired import PairedRow, PairedScore, Progress, Settings, ignore_progress
from serverlight.evaluation.statistics import PairedDifference
from serverlight.evaluation.tasks.sentences import ScoredPairs, SentenceTask
from serverlight.evaluation.tasks.task import Feature, Quality
from serverlight.huggingface import read_json
from serverlight.models import LoadedModel

__all__ = ["evaluate_similarity"]

METRIC = "Spearman"

POOLING_FILE = pathlib.Path("1_Pooling", "config.json")
MEAN = "pooling_mode_mean_tokens"
"""How sentence-transformers says that an embedding is the mean of all tokens' states."""


def evaluate_similarity(
    model: LoadedModel,
    folder: pathlib.Path,
    pairs: ScoredPairs,
    settings: Settings,
    *,
    progress: Progress | None = None,
) -> tuple[PairedRow, ...]:
    """One row for each ``(cut name, codec settings)``, in the order given: Spearman's correlation of similarities with scores.

    Each sentence crosses by itself, in one frame of as many tokens as it has. Its embedding is the mean of its tokens' last
    states, and two are as similar as the cosine between them. Intervals are those of a bootstrap over pairs that draws the same
    pairs for both models.

    Args:
        model: An encoder in the shape of BERT: ``embeddings``, then ``encoder.layer``.
        folder: Its files, a ``tokenizer.json`` among them.
        pairs: Pairs of sentences with their scores.
        settings: Cuts such as ``encoder.layer.2``, and codec settings.
        progress: Called after each sentence and setting.

    Raises:
        ConfigError: the model is of another shape, or makes embeddings otherwise.
        CutNotFound: no layer of that name.
        ModelError: no tokenizer.
    """
    _check_model(model, folder)
    layers = {cut: _layers(model, cut) for cut, _ in settings}
    count = _Count(progress or ignore_progress, len(pairs.sentences) * len(settings))
    rows: dict[int, PairedRow] = {}
    for cut, num_layers in layers.items():
        task = SentenceTask(name=cut, title=model.name, model=model, folder=folder, layers=num_layers, pairs=pairs)
        task.check()
        uncut = task.base_metric / 100
        for i, (name, config) in enumerate(settings):
            if name == cut:
                rows[i] = _row(task, cut, config, uncut, count)
    return tuple(rows[i] for i in range(len(settings)))


def _row(task: SentenceTask, cut: str, config: CodecConfig, uncut: float, count: _Count) -> PairedRow:
    codec, features = Codec(config), task.features()
    received: list[Feature] = []
    num_bytes = 0
    for feature in features:
        frame = codec.encode(feature)
        received.append(np.asarray(decode(frame, like="numpy")))
        num_bytes += len(frame)
        count.add()
    return PairedRow.of(
        cut,
        config,
        (_score(task.evaluate(received), uncut),),
        num_samples=len(features),
        num_elements=sum(feature.size for feature in features),
        num_bytes=num_bytes,
    )


def _score(quality: Quality, uncut: float) -> PairedScore:
    low, high = quality.interval_pp
    return PairedScore(
        metric=METRIC,
        uncut=uncut,
        cut=quality.metric / 100,
        difference=PairedDifference(value=quality.delta_pp / 100, low=low / 100, high=high / 100),
    )


class _Count:
    """Work done so far."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def add(self) -> None:
        self._done += 1
        self._progress(self._done, self._total)


def _check_model(model: LoadedModel, folder: pathlib.Path) -> None:
    module: Any = model.module
    if not hasattr(module, "embeddings") or not hasattr(getattr(module, "encoder", None), "layer"):
        raise ConfigError(
            "model", f"{type(module).__name__} is no encoder in the shape of BERT; give one, such as a MiniLM"
        )
    pooling = read_json(folder / POOLING_FILE)
    if pooling and not pooling.get(MEAN):
        raise ConfigError(
            "model", f"{model.name!r} makes embeddings otherwise than as the mean of tokens; give another"
        )


def _layers(model: LoadedModel, cut: str) -> int:
    """How many layers lie before a cut."""
    module: Any = model.module
    names: Sequence[str] = [f"encoder.layer.{i}" for i in range(len(module.encoder.layer))]
    if cut not in names:
        raise CutNotFound(cut, (names[0], names[-1]))
    return names.index(cut) + 1

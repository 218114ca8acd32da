"""What a cut changes in the figures of lm-evaluation-harness: question by question against the uncut model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serverlight.errors import ConfigError
from serverlight.evaluation.statistics import PairedTest, paired_test

__all__ = ["TaskScore", "compare_results", "linearised"]

Floats = NDArray[np.float64]

PER_UNIT = {"word_perplexity", "byte_perplexity", "bits_per_byte"}
"""Metrics of sums: of each question the log-likelihood and how many words or bytes it has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskScore:
    """One metric of one task, cut and uncut."""

    task: str
    metric: str
    filter: str
    """How answers were read out of the text, ``none`` where there is nothing to read."""

    num_samples: int
    uncut: float
    uncut_stderr: float
    cut: float
    cut_stderr: float
    difference: PairedTest
    """Of cut less uncut, on the same questions."""

    same_answers: float | None
    """Share of questions in which both models answer with the same choice or text; ``None`` where nothing is chosen."""


def compare_results(cut: Mapping[str, Any], uncut: Mapping[str, Any]) -> list[TaskScore]:
    """Every metric of every task, from two results of the harness with samples.

    Raises :class:`ConfigError` where they are not of the same questions.
    """
    return [
        score
        for task, samples in uncut["samples"].items()
        for score in _compare_task(task, cut["samples"].get(task, []), samples)
    ]


def linearised(metric: str, samples: Sequence[Any]) -> Floats:
    """One number for each question, whose mean is the metric and whose spread gives its standard error.

    Means are that already. Perplexities are taken to the first order around their value, as the delta method does.

    >>> float(linearised("acc", [1.0, 0.0]).mean())
    0.5
    >>> float(linearised("bits_per_byte", [(-2 * np.log(2), 1), (-4 * np.log(2), 2)]).mean())
    2.0
    """
    if metric == "perplexity":
        samples = [(logprob, 1) for logprob in samples]
    elif metric not in PER_UNIT:
        return np.asarray(samples, np.float64)
    logprobs, units = (np.asarray(column, np.float64) for column in zip(*samples, strict=True))
    nats = -logprobs.sum() / units.sum()
    influence = -(logprobs + nats * units) / units.mean()
    if metric == "bits_per_byte":
        values: Floats = (nats + influence) / np.log(2)
        return values
    perplexity = np.exp(nats)
    return np.asarray(perplexity * (1 + influence), np.float64)


def _compare_task(task: str, cut: Sequence[Any], uncut: Sequence[Any]) -> list[TaskScore]:
    scores = []
    for name in dict.fromkeys(sample["filter"] for sample in uncut):
        ours, theirs = ({s["doc_id"]: s for s in samples if s["filter"] == name} for samples in (cut, uncut))
        if ours.keys() != theirs.keys():
            raise ConfigError("samples", f"the results of {task!r} are of different questions; run both alike")
        pairs = [(_answer(ours[i]), _answer(theirs[i])) for i in theirs]
        same = None if pairs[0][1] is None else float(np.mean([one == other for one, other in pairs]))
        for metric in next(iter(theirs.values()))["metrics"]:
            pair = [linearised(metric, [samples[i][metric] for i in theirs]) for samples in (ours, theirs)]
            scores.append(_score(task, metric, name, pair[0], pair[1], same))
    return scores


def _score(task: str, metric: str, name: str, cut: Floats, uncut: Floats, same: float | None) -> TaskScore:
    return TaskScore(
        task=task,
        metric=metric,
        filter=name,
        num_samples=len(uncut),
        uncut=float(uncut.mean()),
        uncut_stderr=_stderr(uncut),
        cut=float(cut.mean()),
        cut_stderr=_stderr(cut),
        difference=paired_test(cut, uncut),
        same_answers=same,
    )


def _stderr(values: Floats) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def _answer(sample: Mapping[str, Any]) -> Any:
    """The choice that was found likeliest, of a single text whether it is the greedy one, what was written, or ``None``."""
    answers = sample["filtered_resps"]
    match answers[0]:
        case float():
            return None
        case (_, is_likeliest) if len(answers) == 1:
            return is_likeliest
        case (float(), _):
            return int(np.argmax([answer[0] for answer in answers]))
    return answers

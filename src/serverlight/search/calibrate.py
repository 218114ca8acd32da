"""A table of qualities from few runs: a look at every setting on a few samples, full runs of a few settings, the rest predicted.

The bytes of a setting, and how it ranks, show on a twentieth of the samples. What cannot be seen there is measured in full where
it matters most: on the front of bits and divergence, below a loss that anybody would want. Other settings, drawn by lot and kept
from the fit, say how wrong the predictions are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from serverlight.codec import CodecConfig
from serverlight.errors import ConfigError
from serverlight.generation import LoadedDecoder
from serverlight.models import LoadedModel
from serverlight.partition import Partition
from serverlight.search.crossings import Crossing, Kept, LanguageSubject, SingleShotSubject, Subject
from serverlight.search.figures import Figures, Judge, measure
from serverlight.search.grid import candidate_configs
from serverlight.search.quality import QualityTable
from serverlight.search.rows import Key, Run, State, make_table
from serverlight.search.surrogate import LEAST_KL, Look, tame_mean

__all__ = ["Run", "Source", "calibrate_table", "fill_table"]

LEAST_PP, USEFUL_PP = 0.2, 15.0
"""Full runs go to settings that are expected to lose so much: less is nothing, more is nothing that anybody wants."""

Progress = Callable[[int, int], None]
"""Told how many samples have gone through a tail, and how many will have in the end, about."""


def calibrate_table(
    model: LoadedModel | tuple[LoadedDecoder, LoadedDecoder],
    samples: Sequence[Any] | torch.Tensor,
    *,
    cuts: Sequence[str],
    configs: Sequence[CodecConfig] | None = None,
    labels: Sequence[Any] | None = None,
    budget: float | None = 0.1,
    seed: int = 0,
    parts: Partition | None = None,
    progress: Progress = lambda done, total: None,
) -> QualityTable:
    """Bits, distortion and loss of every cut with every setting, on a calibration set.

    Args:
        model: a single-shot model; or a language model's head, with the layers before the deepest cut, and its tail, with those
            behind the shallowest, in float32.
        samples: inputs of one call each, with a batch of 1, or one tensor with all of them; of a language model texts, as token
            ids. A few hundred, or a few thousand tokens.
        cuts: names of cut points.
        configs: the settings; by default :func:`candidate_configs`.
        labels: the right class of each sample. Loss is then of accuracy, without them of agreement with the uncut model.
        budget: tail runs, as a share of what the whole grid would take, in (0, 1]; each cut has three full runs at least.
            ``None`` measures everything.
        seed: draws the samples that are looked at and the settings that are held out.
        parts: a partition of the single-shot model, where there is one already.
        progress: called now and then.

    Raises:
        ConfigError: nothing to measure, or an argument that does not fit the others.
        CutNotFound: the model has no such cut.
    """
    subject, kind = _subject(model, samples, parts)
    if labels is not None and (kind == "language-model" or len(labels) != subject.num_samples):
        raise ConfigError("labels", "need one for each sample of a classifier; leave them out to judge by agreement")
    configs = (
        candidate_configs("language-model" if kind == "language-model" else "single-shot")
        if configs is None
        else configs
    )
    source = _Live(subject, configs, labels)
    return fill_table(
        source,
        Run(
            model=subject.name,
            revision=subject.revision,
            metric="agreement" if labels is None else "accuracy",
            num_samples=subject.num_samples,
            cuts=tuple(cuts),
            configs=tuple(configs),
            budget=budget,
            seed=seed,
        ),
        progress,
    )


def _subject(model: Any, samples: Any, parts: Partition | None) -> tuple[Subject, str]:
    if not len(samples):
        raise ConfigError("samples", "need at least one")
    if isinstance(model, LoadedModel):
        samples = list(torch.split(samples, 1)) if isinstance(samples, torch.Tensor) else samples
        return SingleShotSubject(model, samples, parts), "single-shot"
    head, tail = model
    return LanguageSubject(head, tail, samples), "language-model"


def _ignore(done: int) -> None:
    """Nobody counts."""


class Source(Protocol):
    """Where figures come from: a model, or a record of one."""

    def figures(
        self, cut: str, settings: Sequence[int], samples: Sequence[int], note: Callable[[int], None] | None
    ) -> list[Figures]:
        """Of some settings of the grid on some samples; ``note`` is told of tail runs; without it there are none."""


class _Live:
    """Runs the model; one cut is open at a time."""

    def __init__(self, subject: Subject, configs: Sequence[CodecConfig], labels: Sequence[Any] | None) -> None:
        self._subject, self._configs = subject, configs
        self._judge = Judge(labels=labels, uncut=Kept())
        self._open: tuple[str, Crossing] | None = None

    def figures(
        self, cut: str, settings: Sequence[int], samples: Sequence[int], note: Callable[[int], None] | None
    ) -> list[Figures]:
        if self._open is None or self._open[0] != cut:
            self._open = None  # the features of one cut may fill the memory
            self._open = cut, self._subject.open(cut)
        return measure(
            self._open[1], [self._configs[i] for i in settings], samples, self._judge if note else None, note or _ignore
        )


def fill_table(source: Source, run: Run, progress: Progress = lambda done, total: None) -> QualityTable:
    """As :func:`calibrate_table`, from any source of figures."""
    rng = np.random.default_rng(run.seed)
    order = rng.permutation(run.num_samples).tolist()
    state, count = State(run=run), _Count(run, progress)
    for cut in run.cuts:
        for i, figures in _look(source, run, cut, order[: run.num_few], count):
            state.few[cut, i] = figures
            state.looks[cut, i] = Look(
                cut=cut, kl=tame_mean(figures.kl), rel_mse=figures.rel_mse, bits_per_element=figures.bits_per_element
            )
        _measure_some(source, state, cut, order[run.num_few :], rng, count)
    return make_table(state, tail_share=count.done / (len(state.looks) * run.num_samples))


def _look(source: Source, run: Run, cut: str, samples: Sequence[int], count: _Count) -> Iterator[tuple[int, Figures]]:
    """Each setting on a few samples; of those that write the same frames only the first."""
    everything = range(len(run.configs))
    frames = source.figures(cut, everything, samples, None)
    first = {
        (one.num_bytes.sum(), one.error.sum()): i for i, one in reversed(list(zip(everything, frames, strict=True)))
    }
    settings = sorted(first.values())
    yield from zip(settings, source.figures(cut, settings, samples, count), strict=True)


def _measure_some(
    source: Source, state: State, cut: str, rest: Sequence[int], rng: np.random.Generator, count: _Count
) -> None:
    """Full runs of one cut: some drawn by lot and held out, then one after the other where least is known."""
    keys = [key for key in state.looks if key[0] == cut]
    num_full = state.run.num_full(len(keys))
    if not rest or num_full == len(keys):
        _measure(source, state, keys, rest, count)
        return
    num_held_out = max(1, num_full // 3)
    useful = [key for key in keys if state.few[key].loss_pp <= USEFUL_PP]
    lots = useful if len(useful) >= num_full else keys
    held_out = [lots[i] for i in rng.choice(len(lots), num_held_out, replace=False)]
    _measure(source, state, held_out, rest, count)
    state.held_out.update(held_out)
    for _ in range(num_full - len(held_out)):
        _measure(source, state, [_next(state, cut)], rest, count)


def _measure(source: Source, state: State, keys: Sequence[Key], rest: Sequence[int], count: _Count) -> None:
    few = [state.few[key] for key in keys]
    if rest:
        cut, settings = keys[0][0], [i for _, i in keys]
        further = source.figures(cut, settings, rest, count)
        few = [one.then(more) for one, more in zip(few, further, strict=True)]
    state.full.update(zip(keys, few, strict=True))


def _next(state: State, cut: str) -> Key:
    """Of the useful settings of a cut, the one whose divergence is farthest from those that were measured."""
    surrogate = state.surrogate(frozenset(state.held_out))
    known = [math.log(max(state.full[key].mean_kl, LEAST_KL)) for key in state.full if key[0] == cut]
    expected = {key: surrogate.kl(look) for key, look in state.looks.items() if key[0] == cut and key not in state.full}
    front = [
        key for key in _front(state, cut, expected) if LEAST_PP <= surrogate.loss_pp(state.looks[key]) <= USEFUL_PP
    ]
    logs = {key: math.log(max(expected[key], LEAST_KL)) for key in front or expected}
    return max(logs, key=lambda key: min(abs(logs[key] - log) for log in known))


def _front(state: State, cut: str, expected: Mapping[Key, float]) -> Iterator[Key]:
    """The settings that no other beats in both bits and divergence, measured ones among the rivals."""
    kl = {**{key: figures.mean_kl for key, figures in state.full.items() if key[0] == cut}, **expected}
    least = math.inf
    for key in sorted(kl, key=lambda key: (state.looks[key].bits_per_element, kl[key])):
        if kl[key] < least:
            least = kl[key]
            if key in expected:
                yield key


class _Count:
    """Tail runs so far."""

    def __init__(self, run: Run, progress: Progress) -> None:
        self.done, self._progress = 0, progress
        pairs = len(run.configs) * len(run.cuts)
        full = run.num_full(len(run.configs)) * len(run.cuts)
        self._total = pairs * run.num_few + full * (run.num_samples - run.num_few)

    def __call__(self, samples: int) -> None:
        self.done += samples
        self._progress(min(self.done, self._total), self._total)

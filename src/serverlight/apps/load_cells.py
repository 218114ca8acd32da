"""What ``serverlight bench runtime`` puts side by side: systems, cuts, and what devices send, recorded beforehand."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from serverlight.apps.demo.settings import choose_cuts, codec_for
from serverlight.apps.vision import JPEG_QUALITY, load_model_images
from serverlight.codec import CodecConfig
from serverlight.errors import ConfigError
from serverlight.evaluation.load import Requests, Script, Text, record_features, record_files, record_text
from serverlight.evaluation.load.figures import FP16, FULL, IN_PROCESS, OURS, SERIAL, Workload
from serverlight.evaluation.load.in_process import Batch, image_batches, text_batches
from serverlight.evaluation.tasks.tokens import token_ids
from serverlight.generation import LANGUAGE_CODEC, LoadedDecoder, check_length, layer_of
from serverlight.huggingface import SHIPPED, find_folder
from serverlight.models import load_model
from serverlight.models.images import encode_jpeg
from serverlight.partition import Partition, partition

__all__ = ["Cell", "Load", "lm_load", "vision_load"]

CURVES = (FULL, FP16, OURS)
"""Measured with every number of devices; the others only where the claim is."""

CLAIMED_CLIENTS: dict[Workload, int] = {"vision": 32, "lm": 16}
HALVES = CodecConfig(profile="fp16")
SHALLOW_WORK = 0.2
"""Share of the multiply-accumulates before the shallow cut of a single-shot model."""

NUM_IMAGES, NUM_TEXTS = 64, 16
PROMPT_TOKENS = (20, 200)
"""Shortest and longest prompt."""

ID_BYTES = 4
FULL_LM_NOTE = (
    f"cut at layers.0 in halves; the uplink is counted as {ID_BYTES} bytes a token, as if token ids were sent"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One row to be: a system with a number of devices."""

    workload: Workload
    system: str
    scripts: tuple[Script, ...]
    """One for each device."""

    server: Literal["batched", "serial"] | None = "batched"
    """Which server they talk to; ``None`` for none."""

    batches: Callable[[], list[Batch]] | None = None
    """Without a server: makes what is run instead."""

    note: str = ""

    @property
    def cuts(self) -> tuple[str, ...]:
        """Where devices have cut."""
        return tuple(dict.fromkeys(script.plan.cut for script in self.scripts))

    @property
    def device_ms(self) -> float:
        """A device's own work on an item."""
        return statistics.fmean(script.device_ms for script in self.scripts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """All cells of a workload, and the cuts that its servers must serve."""

    model: str
    cuts: tuple[str, ...]
    cells: tuple[Cell, ...]
    is_language: bool


def vision_load(spec: str, clients: Sequence[int], wanted: list[str], data: str | None) -> Load:
    """Records images of a single-shot model.

    Raises :class:`CutNotFound` for a cut that it does not have, and :class:`ConfigError` where it takes no images.
    """
    model = load_model(spec)
    parts = partition(model.module, model.example_inputs)
    images = load_model_images(model, data, NUM_IMAGES).images
    deep = wanted or [cut.name for cut in choose_cuts(spec, parts, [])]
    files = record_files(model, parts, [encode_jpeg(image, JPEG_QUALITY) for image in images])
    halves = record_features(model, parts, _shallow_cut(parts), HALVES, images)
    coded = [record_features(model, parts, cut, codec_for(spec, cut, "serverlight"), images) for cut in deep]
    scripts: dict[str, list[Requests]] = {FULL: [files], FP16: [halves], OURS: coded}
    cuts = {script.plan.cut: None for group in scripts.values() for script in group}
    return Load(
        model=spec,
        cuts=tuple(cuts),
        cells=_cells("vision", clients, scripts, {}, functools.partial(image_batches, parts)),
        is_language=False,
    )


def lm_load(
    spec: str, clients: Sequence[int], wanted: list[str], text: str, steps: int, dtype: torch.dtype | None
) -> Load:
    """Records texts of a language model.

    Raises :class:`ContextExceeded` where prompt and steps are more than the model holds, :class:`NotBatchable` for a model
    whose sequences run alone, and what loading raises.
    """
    num_layers = LoadedDecoder.head(spec, "layers.0", dtype=dtype).part.num_layers
    deep = wanted or [f"layers.{max(1, round(num_layers * sixth / 6))}" for sixth in (1, 2, 3, 4)]
    deep = list(dict.fromkeys(deep))
    shallow = min(deep, key=layer_of)
    head = LoadedDecoder.head(spec, max(deep, key=layer_of), dtype=dtype)
    tail = LoadedDecoder.tail(spec, shallow, dtype=dtype)
    texts = _texts(spec, head, text, steps)

    def record(cuts: Sequence[str], codec: CodecConfig) -> list[Text]:
        return [record_text(head, cuts[i % len(cuts)], codec, *texts[i]) for i in range(min(max(clients), NUM_TEXTS))]

    scripts: dict[str, list[Text]] = {
        FULL: [_as_ids(text) for text in record(["layers.0"], HALVES)],
        FP16: record([shallow], HALVES),
        OURS: record(deep, LANGUAGE_CODEC),
    }
    cuts = {script.plan.cut: None for group in scripts.values() for script in group}
    return Load(
        model=spec,
        cuts=tuple(cuts),
        cells=_cells("lm", clients, scripts, {FULL: FULL_LM_NOTE}, functools.partial(text_batches, tail)),
        is_language=True,
    )


def _cells(
    workload: Workload,
    clients: Sequence[int],
    scripts: dict[str, list[Requests]] | dict[str, list[Text]],
    notes: dict[str, str],
    batches: Callable[[Sequence[Any]], list[Batch]],
) -> tuple[Cell, ...]:
    def devices(system: str, count: int) -> tuple[Script, ...]:
        return tuple(scripts[system][i % len(scripts[system])] for i in range(count))

    found = [
        Cell(workload=workload, system=system, scripts=devices(system, count), note=notes.get(system, ""))
        for count in clients
        for system in CURVES
    ]
    claimed = CLAIMED_CLIENTS[workload] if CLAIMED_CLIENTS[workload] in clients else max(clients)
    ours = devices(OURS, claimed)
    alone = functools.partial(batches, ours)
    return (
        *found,
        Cell(workload=workload, system=SERIAL, scripts=ours, server="serial"),
        Cell(workload=workload, system=IN_PROCESS, scripts=ours, server=None, batches=alone),
    )


def _shallow_cut(parts: Partition) -> str:
    inner = [cut for cut in parts.cuts[1:-1] if cut.is_module_exit and len(cut.tensors) == 1]
    if not inner:
        raise ConfigError("vision", "the model has no place where a single tensor crosses; use another")
    wanted = SHALLOW_WORK * parts.cuts[0].tail_macs
    return min(inner, key=lambda cut: abs(cut.head_macs - wanted)).name


def _texts(spec: str, head: LoadedDecoder, text: str, steps: int) -> list[tuple[list[int], int]]:
    """Token ids and length of the prompt of each text: windows spread over the text, prompts of all lengths."""
    folder = find_folder(spec, ["tokenizer.json"])
    if not (folder / "tokenizer.json").is_file():  # a model without words has numbers all the same
        folder = SHIPPED["demo-lm"]
    ids = [token % head.part.vocab_size for token in token_ids(folder, [text])[0]]
    prompts = [round(length) for length in np.linspace(*PROMPT_TOKENS, NUM_TEXTS)]
    spare = len(ids) - prompts[-1] - steps
    if spare < 0:
        raise ConfigError("text", f"has {len(ids)} tokens, {prompts[-1] + steps} are needed; give a longer one")
    starts = [round(spare * i / max(1, NUM_TEXTS - 1)) for i in range(NUM_TEXTS)]
    windows = [ids[start : start + prompt + steps] for start, prompt in zip(starts, prompts, strict=True)]
    check_length(head.part, windows[-1], max_new_tokens=1)
    return list(zip(windows, prompts, strict=True))


def _as_ids(text: Text) -> Text:
    return Text(
        plan=text.plan, prompt=text.prompt, steps=text.steps, prompt_tokens=text.prompt_tokens, bytes_per_token=ID_BYTES
    )

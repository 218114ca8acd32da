"""Labelled images to measure with."""

# Shapes: N = images, H = height, W = width, C = channels.

from __future__ import annotations

import json
import pathlib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serverlight.errors import ConfigError, InputMismatch
from serverlight.models.demo_vision import DEMO_VISION, demo_images
from serverlight.models.images import open_image

__all__ = ["ImageSet", "load_images"]

LABELS_FILE = "labels.json"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ImageSet:
    """Images and what they show."""

    images: NDArray[np.uint8]
    """8-bit images (N, H, W, C)."""

    labels: NDArray[np.int64]
    """Class index of each image (N,)."""

    file_bytes: NDArray[np.int64] | None = None
    """Size of the file of each image (N,); none where the images came as pixels."""

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            got = f"{self.images.dtype} of {self.images.ndim} dimensions"
            raise ConfigError("images", f"must be uint8 (N, H, W, C), got {got}; store 8-bit pixels, channels last")
        if self.labels.dtype != np.int64 or self.labels.shape != self.images.shape[:1]:
            got = f"{self.labels.dtype} {self.labels.shape}"
            raise ConfigError("labels", f"must be int64 of shape ({len(self.images)},), got {got}; one label per image")
        if not len(self.images):
            raise ConfigError("images", "are none; an image set needs at least one image")

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> ImageSet:
        """The first ``count`` images, or all where there are fewer."""
        if count < 1:
            raise ConfigError("count", f"must be at least 1, got {count}")
        sizes = self.file_bytes[:count] if self.file_bytes is not None else None
        return ImageSet(images=self.images[:count], labels=self.labels[:count], file_bytes=sizes)


def load_images(spec: str, *, channels: int = 3) -> ImageSet:
    """The images that ``spec`` names.

    ``spec`` is ``demo-vision`` (the shipped test digits) or ``demo-vision:calibration``; an ``.npz`` file with the
    arrays ``images`` (uint8, N, H, W, C) and ``labels`` (integers, N); or a folder or ``.zip`` file of PNG and JPEG
    files of one size with a ``labels.json``, a list of ``[file, class index, ...]``. ``channels`` (1 or 3) says how to
    read such files. Raises :class:`ConfigError` that names the field and the remedy.

    >>> load_images("demo-vision").images.shape
    (450, 32, 32, 1)
    """
    name, _, split = spec.partition(":")
    if name == DEMO_VISION:
        images, labels = demo_images(split or "test")
        return ImageSet(images=images, labels=labels)
    path = pathlib.Path(spec).expanduser()
    if not path.exists():
        raise ConfigError("data", f"no file or folder {spec!r}; give a path, or {DEMO_VISION!r}")
    if path.suffix == ".npz":
        return _load_npz(path)
    if path.is_dir():
        return _load_files(lambda file: (path / file).read_bytes(), channels)
    if path.suffix == ".zip":
        return _load_zip(path, channels)
    raise ConfigError("data", f"{spec!r} is neither .npz nor .zip nor a folder; convert it to one of these")


def _load_npz(path: pathlib.Path) -> ImageSet:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            for field in ("images", "labels"):
                if field not in arrays:
                    raise ConfigError(field, f"missing from {path.name}; it has {', '.join(arrays.files) or 'nothing'}")
            images, labels = arrays["images"], arrays["labels"]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as exc:
        if isinstance(exc, ConfigError):
            raise
        raise ConfigError("data", f"{path.name} cannot be read: {exc}; write it with numpy.savez") from exc
    if not np.issubdtype(labels.dtype, np.integer):
        raise ConfigError("labels", f"must be whole numbers, got {labels.dtype}; store class indices")
    return ImageSet(images=images, labels=labels.astype(np.int64))


def _load_zip(path: pathlib.Path, channels: int) -> ImageSet:
    try:
        with zipfile.ZipFile(path) as archive:
            return _load_files(archive.read, channels)
    except zipfile.BadZipFile as exc:
        raise ConfigError("data", f"{path.name} cannot be read: {exc}; copy or download it again") from exc


def _load_files(read: Callable[[str], bytes], channels: int) -> ImageSet:
    """Reads ``labels.json`` and the images it lists, in its order."""
    entries = _read_labels(read)
    files = [_read_file(read, file) for file, _ in entries]
    images = [_to_pixels(data, file, channels) for data, (file, _) in zip(files, entries, strict=True)]
    for (file, _), image in zip(entries, images, strict=True):
        if image.shape != images[0].shape:
            raise ConfigError(
                "images", f"differ in size: {file} is {image.shape}, the first {images[0].shape}; resize them"
            )
    if not images:
        raise ConfigError("labels", f"{LABELS_FILE} lists no image; add [file, class index] entries")
    labels, sizes = (np.array(column, np.int64) for column in ([label for _, label in entries], [*map(len, files)]))
    return ImageSet(images=np.stack(images), labels=labels, file_bytes=sizes)


def _read_labels(read: Callable[[str], bytes]) -> list[tuple[str, int]]:
    try:
        entries = json.loads(read(LABELS_FILE))
    except (KeyError, OSError):
        raise ConfigError("labels", f"no {LABELS_FILE} beside the images; add a list of [file, class index]") from None
    except ValueError as exc:
        raise ConfigError("labels", f"{LABELS_FILE} is not JSON: {exc}; write it again") from None
    if not isinstance(entries, list):
        raise ConfigError("labels", f"{LABELS_FILE} must be a list of [file, class index]; write it again")
    return [_check_entry(entry) for entry in entries]


def _check_entry(entry: object) -> tuple[str, int]:
    match entry:
        case [str(file), int(label), *_] if not isinstance(label, bool):
            return file, label
    raise ConfigError("labels", f"{LABELS_FILE} has the entry {entry!r}; make it [file, class index]")


def _read_file(read: Callable[[str], bytes], file: str) -> bytes:
    try:
        return read(file)
    except (KeyError, OSError):
        raise ConfigError("images", f"{file} is in {LABELS_FILE} but not there; add it or remove the entry") from None


def _to_pixels(data: bytes, file: str, channels: int) -> NDArray[np.uint8]:
    try:
        return open_image(data, channels)
    except InputMismatch as exc:
        raise ConfigError("images", f"{file}: {exc}") from exc

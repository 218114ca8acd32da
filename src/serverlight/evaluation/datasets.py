"""Labelled images to measure with."""

# Shapes: N = images, H = height, W = width, C = channels.

from __future__ import annotations

import pathlib
import zipfile
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serverlight.errors import ConfigError, InputMismatch
from serverlight.evaluation.image_files import LabelledFiles, find_labelled, open_archive, open_folder
from serverlight.models.demo_vision import DEMO_VISION, demo_images
from serverlight.models.images import crop_image, open_image

__all__ = ["ImageSet", "load_images"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ImageSet:
    """Images and what they show."""

    images: NDArray[np.uint8]
    """8-bit images (N, H, W, C)."""

    labels: NDArray[np.int64]
    """Class index of each image (N,)."""

    file_bytes: NDArray[np.int64] | None = None
    """Size of the file of each image (N,); none where the images came as pixels."""

    num_classes: int | None = None
    """How many classes there must be, where the labels are places in the order of so many folders."""

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
        return ImageSet(
            images=self.images[:count], labels=self.labels[:count], file_bytes=sizes, num_classes=self.num_classes
        )


def load_images(
    spec: str, *, channels: int = 3, size: tuple[int, int] | None = None, limit: int | None = None
) -> ImageSet:
    """The images that ``spec`` names.

    ``spec`` is ``demo-vision`` (the shipped test digits) or ``demo-vision:calibration``; an ``.npz`` file with the
    arrays ``images`` (uint8, N, H, W, C) and ``labels`` (integers, N); or a folder or ``.zip`` file of PNG and JPEG
    files, which :func:`serverlight.evaluation.image_files.find_labelled` labels: by a ``labels.json``, or by folders of a
    class each.

    Args:
        spec: What to load.
        channels: 1 or 3, how to read image files.
        size: Height and width that image files are cut to (:func:`serverlight.models.images.crop_image`); without it they
            must be of one size.
        limit: No more than so many images, the first ones.

    Raises:
        ConfigError: Something is missing, damaged or contradictory; it names the field and the remedy.

    >>> load_images("demo-vision").images.shape
    (450, 32, 32, 1)
    """
    loaded = _load(spec, channels, size, limit)
    return loaded if limit is None else loaded.first(limit)


def _load(spec: str, channels: int, size: tuple[int, int] | None, limit: int | None) -> ImageSet:
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
        return _load_files(find_labelled(open_folder(path)), channels, size, limit)
    if path.suffix == ".zip":
        with open_archive(path) as files:
            return _load_files(find_labelled(files), channels, size, limit)
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


def _load_files(labelled: LabelledFiles, channels: int, size: tuple[int, int] | None, limit: int | None) -> ImageSet:
    images: list[NDArray[np.uint8]] = []
    sizes: list[int] = []
    entries = labelled.entries[:limit]
    for file, _ in entries:
        data = labelled.read(file)
        image = _to_pixels(data, file, channels, size)
        if images and image.shape != images[0].shape:
            raise ConfigError(
                "images", f"differ in size: {file} is {image.shape}, the first {images[0].shape}; resize them"
            )
        images.append(image)
        sizes.append(len(data))
    return ImageSet(
        images=np.stack(images),
        labels=np.array([label for _, label in entries], np.int64),
        file_bytes=np.array(sizes, np.int64),
        num_classes=labelled.num_classes,
    )


def _to_pixels(data: bytes, file: str, channels: int, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    try:
        image = open_image(data, channels)
    except InputMismatch as exc:
        raise ConfigError("images", f"{file}: {exc}") from exc
    return image if size is None else crop_image(image, *size)

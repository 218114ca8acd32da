"""Image classifiers: one message an image, judged by top-1 accuracy."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from serverlight.errors import ConfigError
from serverlight.evaluation.datasets import ImageSet
from serverlight.evaluation.tasks.task import (
    Feature,
    LossyInput,
    Quality,
    RawInput,
    bootstrap,
    kl_divergence,
    percentiles,
)
from serverlight.models import LoadedModel
from serverlight.models.images import encode_jpeg, encode_png, open_image
from serverlight.partition import Partition

__all__ = ["ImageTask"]

BATCH = 50


class ImageTask:
    """A classifier cut at one point, on labelled images."""

    def __init__(
        self,
        *,
        name: str,
        title: str,
        model: LoadedModel,
        parts: Partition,
        cut: str,
        images: ImageSet,
        position: str = "",
    ) -> None:
        """Takes ``title`` as the model's name in tables; ``parts`` is the partition of ``model`` and knows ``cut``."""
        if model.preprocess is None:
            raise ConfigError("model", f"{model.name!r} has no known image preprocessing; use one that comes with it")
        if len(parts.cut(cut).tensors) != 1:
            raise ConfigError("cut", f"{cut!r} sends several tensors; a task takes a cut with one")
        self.name, self.model, self.cut, self.position = name, title, cut, position
        self._preprocess, self._images = model.preprocess, images
        self._head, self._tail = parts.split(cut)

    @property
    def base_metric(self) -> float:
        """Accuracy of the uncut model, as a percentage."""
        return 100 * float(self._is_right(self._base_logits).mean())

    @functools.cached_property
    def raw_input(self) -> RawInput:
        """The files that the images came in; as PNG where they came in none."""
        sizes = self._images.file_bytes
        if sizes is not None:
            return RawInput(format="image files as they came", sizes=sizes)
        return RawInput(format="PNG", sizes=np.array([len(encode_png(image)) for image in self._images.images]))

    def as_jpeg(self, quality: int) -> LossyInput | None:
        """The pixels as JPEG files, and the features of what is read from them."""
        files = [encode_jpeg(image, quality) for image in self._images.images]
        channels = self._images.images.shape[-1]
        pixels = np.stack([open_image(file, channels) for file in files])
        return LossyInput(sizes=np.array([*map(len, files)]), features=self._features_of(pixels))

    @property
    def calibration(self) -> None:
        """None: channels of feature maps do not come last."""

    def features(self) -> Sequence[Feature]:
        """One message (1, ...) for each image."""
        return self._features

    def evaluate(self, received: Sequence[Feature]) -> Quality:
        """Accuracy and mean KL divergence over the first ``len(received)`` images."""
        logits, base = self._logits(received), self._base_logits[: len(received)]
        right, base_right = self._is_right(logits), self._is_right(base)
        gains = 100.0 * (right.astype(np.float64) - base_right)
        deltas = bootstrap(len(gains), lambda chosen: gains[chosen].mean(1))
        return Quality(
            metric=100 * float(right.mean()),
            delta_pp=float(gains.mean()),
            interval_pp=percentiles(deltas),
            deltas_pp=deltas,
            num_samples=len(gains),
            kl=float(kl_divergence(logits, base).mean()),
        )

    @functools.cached_property
    def _features(self) -> list[Feature]:
        return self._features_of(self._images.images)

    def _features_of(self, images: npt.NDArray[np.uint8]) -> list[Feature]:
        with torch.inference_mode():
            batches = (images[start : start + BATCH] for start in range(0, len(images), BATCH))
            crossing = [self._head(self._preprocess(batch))[0].numpy() for batch in batches]
        return [np.ascontiguousarray(message) for chunk in crossing for message in np.split(chunk, len(chunk))]

    @functools.cached_property
    def _base_logits(self) -> Feature:
        return self._logits(self._features)

    def _logits(self, features: Sequence[Feature]) -> Feature:
        chunks = []
        with torch.inference_mode():
            for start in range(0, len(features), BATCH):
                crossing = torch.from_numpy(np.concatenate(features[start : start + BATCH]))
                chunks.append(self._tail.flat(crossing)[0].numpy())
        return np.concatenate(chunks)

    def _is_right(self, logits: Feature) -> npt.NDArray[np.bool_]:
        return np.asarray(logits.argmax(1) == self._images.labels[: len(logits)])

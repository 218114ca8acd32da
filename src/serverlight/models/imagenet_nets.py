"""Two small ImageNet classifiers: SqueezeNet 1.1 (Iandola et al. 2016) and MobileNetV2 (Sandler et al. 2018).

SqueezeNet keeps the parameter names of the published PyTorch state dicts. MobileNetV2 has its batch norms folded into the
convolutions, so that every convolution has a bias: ``stem``, ``blocks.{i}.{expand,dw,project}``, ``head``, ``fc``.
"""

# Shapes: N = images, C = channels, H = height, W = width.

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from serverlight.errors import ModelError
from serverlight.models.preprocess import Normalize

__all__ = ["IMAGENET_NETS", "MobileNetV2", "SqueezeNet", "is_mobilenet_v2", "is_squeezenet"]

NUM_CLASSES = 1000
MAX_REASON = 300

SQUEEZENET_STAGES = (
    ((64, 16, 64), (128, 16, 64)),
    ((128, 32, 128), (256, 32, 128)),
    ((256, 48, 192), (384, 48, 192), (384, 64, 256), (512, 64, 256)),
)
"""Fire modules between the poolings: channels in, squeezed, and of each expansion."""

MOBILENET_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, channels out, blocks, stride of the first block: table 2 of the paper."""


class Fire(nn.Module):
    """A 1 x 1 squeeze, then 1 x 1 and 3 x 3 expansions side by side."""

    def __init__(self, in_channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(in_channels, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, 2 * expanded, H, W)."""
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))], 1)


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1; takes images normalised by ImageNet's mean and deviation."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, stride=2), nn.ReLU()]
        for stage in SQUEEZENET_STAGES:
            layers += [nn.MaxPool2d(3, stride=2, ceil_mode=True), *(Fire(*sizes) for sizes in stage)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Dropout(0.5), nn.Conv2d(512, NUM_CLASSES, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) to logits (N, 1000)."""
        scores: Tensor = self.classifier(self.features(images))
        return scores.flatten(1)


class SameConv(nn.Conv2d):
    """A convolution that pads as TensorFlow's ``SAME`` does: an odd pixel goes to the bottom and the right."""

    def __init__(self, in_channels: int, out_channels: int, size: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(in_channels, out_channels, size, stride=stride, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        rows, columns = (_same_padding(x.shape[i], self.kernel_size[0], self.stride[0]) for i in (2, 3))
        y: Tensor = super().forward(F.pad(x, (*columns, *rows)) if any((*columns, *rows)) else x)
        return y


def _same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, linear bottleneck; with a shortcut where the shapes allow it."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.expand = SameConv(in_channels, hidden, 1) if expansion > 1 else nn.Identity()
        self.dw = SameConv(hidden, hidden, 3, stride, groups=hidden)
        self.project = SameConv(hidden, out_channels, 1)
        self.expansion = expansion
        self.has_shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        y: Tensor = F.relu6(self.expand(x)) if self.expansion > 1 else x
        y = self.project(F.relu6(self.dw(y)))
        return x + y if self.has_shortcut else y


class MobileNetV2(nn.Module):
    """MobileNetV2 of width 1.0; takes images scaled to [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv(3, 32, 3, 2)
        blocks, channels = [], 32
        for expansion, out_channels, depth, stride in MOBILENET_STAGES:
            for i in range(depth):
                blocks.append(InvertedResidual(channels, out_channels, stride if i == 0 else 1, expansion))
                channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.head = SameConv(channels, 1280, 1)
        self.fc = nn.Linear(1280, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Scaled images (N, 3, H, W) to logits (N, 1000)."""
        x = self.blocks(F.relu6(self.stem(images)))
        logits: Tensor = self.fc(F.relu6(self.head(x)).mean((2, 3)))
        return logits


Net = TypeVar("Net", SqueezeNet, MobileNetV2)

NORMALIZE_SQUEEZENET = Normalize(image_shape=(224, 224, 3), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
NORMALIZE_MOBILENET = Normalize(image_shape=(224, 224, 3), mean=(1.0, 1.0, 1.0), std=(1.0, 1.0, 1.0), scale=1 / 127.5)


def load_squeezenet(state: Mapping[str, Tensor]) -> tuple[SqueezeNet, Normalize]:
    """The network with these weights, and its preprocessing; raises :class:`ModelError` for weights that do not fit."""
    return _load(SqueezeNet(), state), NORMALIZE_SQUEEZENET


def load_mobilenet_v2(state: Mapping[str, Tensor]) -> tuple[MobileNetV2, Normalize]:
    """The network with these weights, and its preprocessing; raises :class:`ModelError` for weights that do not fit."""
    return _load(MobileNetV2(), state), NORMALIZE_MOBILENET


def is_squeezenet(state: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of a :class:`SqueezeNet`."""
    return {"features.0.weight", "features.3.squeeze.weight", "classifier.1.weight"} <= set(state)


def is_mobilenet_v2(state: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of a :class:`MobileNetV2`."""
    return {"stem.weight", "blocks.0.dw.weight", "blocks.0.project.weight", "fc.weight"} <= set(state)


IMAGENET_NETS = ((is_squeezenet, load_squeezenet), (is_mobilenet_v2, load_mobilenet_v2))
"""How each network is recognised by the keys of its state dict, and how it is built."""


def _load(network: Net, state: Mapping[str, Tensor]) -> Net:
    try:
        network.load_state_dict(dict(state))
    except RuntimeError as exc:
        reason = " ".join(str(exc).split())[:MAX_REASON]
        raise ModelError(
            f"the weights do not fit {type(network).__name__}: {reason}; check that the file is complete"
        ) from exc
    return network.eval()

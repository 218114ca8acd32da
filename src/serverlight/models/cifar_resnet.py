"""Residual networks for small images (He et al. 2016, arXiv 1512.03385, section 4.2), with parameter-free shortcuts.

The state-dict names are those of the common CIFAR-10 checkpoints: ``conv1``, ``bn1``,
``layer{1,2,3}.{i}.{conv1,bn1,conv2,bn2}`` and ``linear``.
"""

# Shapes: N = images, C = channels, H = height, W = width.

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from serverlight.errors import ModelError

__all__ = ["CIFAR_MEAN", "CIFAR_STD", "CifarResNet", "is_cifar_resnet"]

CIFAR_MEAN = (0.485, 0.456, 0.406)
"""What the common CIFAR-10 checkpoints were trained with: the ImageNet means."""

CIFAR_STD = (0.229, 0.224, 0.225)
"""The ImageNet standard deviations that belong to :data:`CIFAR_MEAN`."""

NUM_STAGES = 3

MAX_REASON = 300
"""Characters of torch's reason that an error repeats; it may list hundreds of keys."""


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around an identity; a stride or a wider output is bridged by subsampling and zeros."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        added = out_channels - in_channels
        self.channel_padding = (added // 2, added - added // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H / stride, W / stride)."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, *self.channel_padding)) if any(self.channel_padding) else x


class CifarResNet(nn.Module):
    """Three stages of residual blocks, the second and third at half the resolution of the one before.

    >>> CifarResNet(depths=(9, 9, 9)).depth  # ResNet-56
    56
    """

    def __init__(
        self,
        *,
        depths: Sequence[int],
        widths: Sequence[int] = (16, 32, 64),
        in_channels: int = 3,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        if len(depths) != NUM_STAGES or len(widths) != NUM_STAGES or min(depths) < 1:
            raise ModelError(f"needs depths and widths of {NUM_STAGES} stages, at least one block in each")
        self.depths = tuple(depths)
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = _stage(widths[0], widths[0], depths[0], stride=1)
        self.layer2 = _stage(widths[0], widths[1], depths[1], stride=2)
        self.layer3 = _stage(widths[1], widths[2], depths[2], stride=2)
        self.linear = nn.Linear(widths[2], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, C, H, W) to logits (N, num_classes)."""
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits

    @property
    def depth(self) -> int:
        """Weighted layers, as in the name ResNet-56."""
        return 2 * sum(self.depths) + 2

    @property
    def block_names(self) -> tuple[str, ...]:
        """Module paths of the residual blocks in order; each is the name of a cut point."""
        return tuple(f"layer{stage}.{i}" for stage, depth in enumerate(self.depths, 1) for i in range(depth))

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> CifarResNet:
        """Builds the network whose sizes the weights show, and loads them; half-precision weights are widened.

        Raises :class:`ModelError` when keys are missing, left over, or of a wrong shape.
        """
        try:
            model = cls(
                depths=[_count_blocks(state, stage) for stage in range(1, NUM_STAGES + 1)],
                widths=[state[f"layer{stage}.0.conv1.weight"].shape[0] for stage in range(1, NUM_STAGES + 1)],
                in_channels=state["conv1.weight"].shape[1],
                num_classes=state["linear.weight"].shape[0],
            )
            model.load_state_dict(dict(state))  # a plain dict: the norms' batch counters may be missing
        except (KeyError, IndexError, RuntimeError) as exc:
            reason = " ".join(str(exc).split())[:MAX_REASON]
            raise ModelError(
                f"the weights do not fit a CIFAR ResNet: {reason}; check that the file is complete"
            ) from exc
        return model.eval()


def is_cifar_resnet(state: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of a :class:`CifarResNet`."""
    return {"conv1.weight", "bn1.weight", "linear.weight", "layer1.0.conv1.weight", "layer3.0.bn2.weight"} <= set(state)


def _stage(in_channels: int, out_channels: int, depth: int, *, stride: int) -> nn.Sequential:
    first = ResidualBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(ResidualBlock(out_channels, out_channels, 1) for _ in range(depth - 1)))


def _count_blocks(state: Mapping[str, Tensor], stage: int) -> int:
    prefix = f"layer{stage}."
    return len({name.split(".")[1] for name in state if name.startswith(prefix)})

"""A network small enough to check its cuts by hand."""

from __future__ import annotations

from torch import Tensor, nn

from serverlight.partition import Partition


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x) + x)


class SmallNet(nn.Module):
    """A stem, two residual blocks and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2)
        self.blocks = nn.Sequential(Block(), Block())
        self.fc = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


def crossing(parts: Partition, name: str) -> list[str]:
    """Names of what crosses a cut."""
    return [spec.name for spec in parts.cut(name).tensors]

"""One compute thread: test processes that spin on shared cores slow each other down many times over.

Makes tests/decoder_models.py and tests/small_net.py importable under their own names, too.
"""

from __future__ import annotations

import pathlib
import sys

import pytest
import torch

from serverlight.partition import Partition, partition

torch.set_num_threads(1)

TESTS = str(pathlib.Path(__file__).parents[1])
if TESTS not in sys.path:
    sys.path.append(TESTS)

from small_net import SmallNet  # noqa: E402


@pytest.fixture(scope="module")
def net() -> SmallNet:
    torch.manual_seed(0)
    return SmallNet()


@pytest.fixture(scope="module")
def parts(net: SmallNet) -> Partition:
    return partition(net, torch.randn(1, 3, 9, 9))

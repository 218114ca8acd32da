"""One compute thread: test processes that spin on shared cores slow each other down many times over."""

from __future__ import annotations

import torch

torch.set_num_threads(1)

"""Memory that is freed stays for the next batch."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, torch
from serverlight.runtime.memory import keep_freed_memory

def batch():
    return [torch.ones(600_000) for _ in range(16)]

keep_freed_memory()
for _ in range(5):
    batch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    batch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_batches_share_their_memory() -> None:
    """Later batches have hardly a page mapped for them, where otherwise each has nine thousand."""
    ran = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True)
    assert int(ran.stdout) < 1000

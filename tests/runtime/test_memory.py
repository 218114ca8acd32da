"""Memory that is freed stays for the next batch."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, torch
from serverlight.runtime.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()

def batch():
    return [torch.ones(600_000) for _ in range(16)]

batch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    batch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_batches_share_their_memory() -> None:
    """A process that keeps what is freed has hardly a page mapped for its later batches."""

    def faults(how: str) -> int:
        return int(
            subprocess.run([sys.executable, "-c", SCRIPT, how], check=True, capture_output=True, text=True).stdout
        )

    assert faults("kept") < faults("given back") / 5

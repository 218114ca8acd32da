"""What an allocator says when there is no more memory."""

from __future__ import annotations

__all__ = ["is_out_of_memory"]

_CPU_COMPLAINTS = "can't allocate memory", "not enough memory"
"""Of PyTorch's allocators for processors, which raise a plain RuntimeError."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python or PyTorch, on any device, had no memory left.

    >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("shapes differ"))
    (True, False)
    """
    # By name, so that those who only pass messages on need no torch.
    names = {cls.__name__ for cls in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or any(words in str(error) for words in _CPU_COMPLAINTS)

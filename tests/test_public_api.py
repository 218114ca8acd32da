"""The public surface, pinned: what users and outside test benches call."""

from __future__ import annotations

import inspect

import serverlight as sl

PUBLIC = [
    "AdaptiveClient",
    "Basis",
    "Client",
    "Codec",
    "CodecConfig",
    "Constraints",
    "Credentials",
    "CutPoint",
    "FrameInfo",
    "Frontier",
    "LinkConfig",
    "LoadedModel",
    "Loopback",
    "Objective",
    "Partition",
    "Plan",
    "Rules",
    "SearchResult",
    "Security",
    "Server",
    "ServerlightError",
    "SplitCausalLM",
    "Workload",
    "calibrate",
    "calibrate_basis",
    "connect",
    "decode",
    "inspect",
    "load_head",
    "load_model",
    "load_part",
    "load_tail",
    "partition",
    "search",
]


def test_public_names_are_these() -> None:
    """A name is added to or taken from the package's surface on purpose only."""
    assert sl.__all__ == PUBLIC
    assert dir(sl) == PUBLIC


def test_every_public_name_exists_and_is_documented() -> None:
    """Each public name can be imported, is what it says, and has a docstring."""
    for name in PUBLIC:
        value = getattr(sl, name)
        assert callable(value), name
        assert inspect.getdoc(value), name


def test_names_do_not_hide_behind_modules() -> None:
    """A public function stays callable after the module that holds it was imported by somebody else."""
    import serverlight.loopback
    import serverlight.search.optimise  # noqa: F401  (they import nearly every layer)

    assert callable(sl.partition)
    assert callable(sl.inspect)
    assert callable(sl.search)

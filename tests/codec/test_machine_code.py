"""Machine code that is kept on disk is that of the sources as they are."""

from __future__ import annotations

import ast
import pathlib
import sys

import pytest

pytest.importorskip("numba", reason="machine code needs Numba")


def modules_imported_by(file: pathlib.Path) -> set[pathlib.Path]:
    """The codec's modules that a file takes names from."""
    nodes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom) and node.module]
    names = {name for node in nodes for name in (node.module, *(f"{node.module}.{item.name}" for item in node.names))}
    modules = [sys.modules[name] for name in names & sys.modules.keys() if name.startswith("serverlight.codec")]
    return {pathlib.Path(str(module.__file__)) for module in modules}


def test_a_change_of_any_source_makes_new_machine_code() -> None:
    from serverlight.codec.backends.cpu import kernels

    files = set(kernels.source_files())
    imported = set().union(*(modules_imported_by(file) for file in files if file.parent.name == "cpu"))
    assert imported <= files
    assert {"tables.py", "layout.py", "writer.py"} <= {file.name for file in imported}

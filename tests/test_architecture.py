"""The import rules of docs/architecture.md, checked on the source text."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

SRC = pathlib.Path(__file__).parents[1] / "src" / "serverlight"

BASE = {"errors", "json_files", "codec", "huggingface", "partition", "plan", "models", "link", "sampling"}
MAY_IMPORT = {  # layer -> our layers it may import; itself is always allowed
    "errors": set(),
    "json_files": {"errors"},
    "environment": set(),
    "codec": {"errors"},
    "huggingface": {"errors"},
    "partition": {"errors", "huggingface"},
    "models": {"errors", "huggingface"},
    "text": {"errors", "huggingface"},
    "link": {"errors"},
    "faults": {"errors", "link"},
    "chaos": {"errors", "link", "faults"},
    "sampling": {"errors"},
    "calibration": {"errors", "codec"},
    "plan": {"errors", "codec"},
    "generation": BASE - {"link"},
    "loopback": BASE - {"link"},
    "frontier": {"errors", "json_files", "codec", "plan"},
    "runtime": BASE | {"frontier", "generation", "faults"},
    "split_lm": {"errors", "codec", "huggingface", "plan", "sampling", "generation", "runtime"},
    "evaluation": BASE | {"environment", "text", "generation", "loopback", "runtime", "split_lm"},
    "search": BASE | {"calibration", "environment", "frontier", "generation", "loopback", "runtime"},
    "simulation": {"errors", "codec", "frontier", "plan", "link", "search"},
    "apps": BASE
    | {
        "environment",
        "text",
        "faults",
        "chaos",
        "generation",
        "loopback",
        "runtime",
        "evaluation",
        "frontier",
        "search",
        "simulation",
    },
}
ONLY_IN = {  # package -> the files that may import it
    "grpc": {"runtime/grpc_transport.py", "runtime/grpc_security.py", "runtime/grpc_stream.py"},
    "grpc_health": {"runtime/grpc_transport.py"},
    "transformers": {"huggingface.py"},
    "huggingface_hub": {"huggingface.py"},
    "PIL": {"models/images.py"},
    "matplotlib": {
        "apps/plots.py",
        "apps/axes.py",
        "apps/bench_plots.py",
        "apps/search_plots.py",
        "apps/fleet_plots.py",
        "apps/report/figures.py",
    },
    "numba": {
        "codec/backends/cpu/compiled.py",
        "codec/backends/cpu/filter_vectors.py",
        "codec/backends/cpu/plane_vectors.py",
        "codec/backends/cpu/token_vectors.py",
        "codec/backends/cpu/vectors.py",
        "codec/rivals/compiled.py",
        "simulation/compiled.py",
    },
    "triton": {f"codec/backends/gpu/triton_{stage}.py" for stage in ("filter", "coder", "reader")},
    "fastapi": {"apps/openai_api.py"},
    "starlette": {"apps/openai_api.py", "apps/ray_app.py", "apps/watch_http.py"},
    "ray": {"apps/ray_app.py"},
    "pydantic": set(),
    "uvicorn": {"apps/commands/edge.py", "apps/watch_http.py"},
    "prometheus_client": {"runtime/metrics.py"},
    "opentelemetry": {"runtime/tracing.py"},
    "sklearn": set(),
    "psutil": set(),
    "lm_eval": {"evaluation/lm_eval.py"},
    "datasets": set(),
    "pycocotools": {"evaluation/coco.py"},
    "pandas": set(),
    "pynvml": {"search/energy.py"},
}
ONLY_IN_LAYER = {"typer": "apps", "rich": "apps"}
NEVER = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "torchvision"}


def imported_modules(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import; this package writes full names"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(where: pathlib.PurePath, source: str) -> list[str]:
    layer = where.parts[0].removesuffix(".py")
    found = []
    for name in imported_modules(source):
        top, *rest = name.split(".")
        own = rest[0] if top == "serverlight" and rest else "__version__"
        if layer in MAY_IMPORT and not own.startswith("__") and own not in MAY_IMPORT[layer] | {layer}:
            found.append(f"{layer} must not know {rest[0]}")
        if top in ONLY_IN and where.as_posix() not in ONLY_IN[top]:
            found.append(f"{top} belongs in {sorted(ONLY_IN[top])}")
        if top in ONLY_IN_LAYER and layer != ONLY_IN_LAYER[top]:
            found.append(f"{top} belongs in {ONLY_IN_LAYER[top]}/")
        if top in NEVER:
            found.append(f"{top} is not used in this project")
    return found


SOURCES = sorted(path for path in SRC.rglob("*.py") if not path.name.endswith("_pb2.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(SRC)))
def test_module_imports_only_layers_below(path: pathlib.Path) -> None:
    """No module knows a layer above its own, and a heavy package is imported in its one file."""
    assert violations(path.relative_to(SRC), path.read_text()) == []


def test_every_layer_has_a_rule() -> None:
    """A new folder or module at the root of the package must be given its place first."""
    layers = {path.relative_to(SRC).parts[0].removesuffix(".py") for path in SOURCES}
    assert layers - {"__init__", "__main__"} == set(MAY_IMPORT)


@pytest.mark.parametrize(
    ("where", "source", "complaint"),
    [
        ("codec/wire.py", "import serverlight.runtime.client", "codec must not know runtime"),
        ("partition/graph.py", "from serverlight.codec import Codec", "partition must not know codec"),
        (
            "runtime/client.py",
            "import grpc",
            "grpc belongs in ['runtime/grpc_security.py', 'runtime/grpc_stream.py', 'runtime/grpc_transport.py']",
        ),
        ("codec/codec.py", "def f():\n    import rich", "rich belongs in apps/"),
        ("plan.py", "import pickle", "pickle is not used in this project"),
    ],
)
def test_planted_violation_is_found(where: str, source: str, complaint: str) -> None:
    """The checker itself can fail: each kind of forbidden import is noticed."""
    assert violations(pathlib.PurePath(where), source) == [complaint]


@pytest.mark.parametrize("module", ["serverlight", "serverlight.codec"])
def test_import_is_free(module: str) -> None:
    """Importing the package or the codec brings NumPy and nothing heavier."""
    heavy = {"torch", "grpc", "transformers", "triton", "numba", "PIL", "matplotlib", "typer", "rich"}
    script = f"import sys, {module}; print(*sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []

"""Calls one function of this package and writes what it returns as JSON: ``python -m`` this, module, name, arguments, target."""

from __future__ import annotations

import importlib
import json
import os
import pathlib
import sys

from serverlight.errors import ServerlightError

__all__ = ["main"]


def main(module: str, name: str, arguments: str, target: str) -> None:
    """Exits with 2 and a line that begins with ``error:`` for what the package refuses or misses, as the commands do."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        function = getattr(importlib.import_module(module), name)
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(1)
        found = function(**json.loads(arguments))
    except (ServerlightError, ModuleNotFoundError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    pathlib.Path(target).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])

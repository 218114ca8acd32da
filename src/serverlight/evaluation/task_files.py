"""Task files of lm-evaluation-harness that lie beside their data, wherever that is."""

from __future__ import annotations

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator

from serverlight.errors import ConfigError

__all__ = ["PLACEHOLDER", "task_folder"]

PLACEHOLDER = "DATA_DIR"
"""What stands in a task file for the folder of the data: the harness takes paths from wherever it was started."""

SHIPPED = {"humaneval_local.yaml": "humaneval.jsonl"}
"""Task files of our own, and the data that each is for."""


@contextlib.contextmanager
def task_folder(data: str | None) -> Iterator[str | None]:
    """A folder of the task files in ``data`` or right below it, with their paths filled in; gone in the end.

    Task files of our own come along where their data is there; a file of the same name in ``data`` takes their place. Raises
    :class:`ConfigError` where there are none.
    """
    if data is None:
        yield None
        return
    folder = pathlib.Path(data).expanduser().resolve()
    own = [pathlib.Path(__file__).with_name(name) for name, needed in SHIPPED.items() if (folder / needed).is_file()]
    files = [*own, *sorted({*folder.glob("*.yaml"), *folder.glob("*/*.yaml")})]
    if not files:
        raise ConfigError("data", f"no task files (*.yaml) in {data!r} or a folder of it; give one that has some")
    with tempfile.TemporaryDirectory(prefix="serverlight-tasks-") as copies:
        for file in files:
            text = file.read_text().replace(PLACEHOLDER, str(folder))
            (pathlib.Path(copies) / file.name).write_text(text)
        yield copies

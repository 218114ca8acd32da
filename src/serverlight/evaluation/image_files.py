"""Which image files there are in a folder or an archive, and the class of each."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pathlib
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serverlight.errors import ConfigError

__all__ = ["Files", "LabelledFiles", "find_labelled", "open_archive", "open_folder"]

LABELS_FILE = "labels.json"
SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True, kw_only=True, slots=True)
class Files:
    """Files by their paths, with ``/`` between folders."""

    names: Callable[[], Sequence[str]]
    """Lists them; a folder of a million takes a while."""

    read: Callable[[str], bytes]
    """Contents of one; raises ``OSError`` or ``KeyError`` where it is not there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledFiles:
    """Image files in the order in which they are to be used."""

    entries: Sequence[tuple[str, int]]
    """Path and class index of each, at least one."""

    read: Callable[[str], bytes]
    """Contents of one; raises :class:`ConfigError`."""

    num_classes: int | None
    """Number of folders, where the class indices are their places in the order of names."""


def open_folder(folder: pathlib.Path) -> Files:
    """The files of a folder and the folders in it."""

    def names() -> list[str]:
        return [
            (pathlib.Path(where) / name).relative_to(folder).as_posix()
            for where, _, files in os.walk(folder, followlinks=True)
            for name in files
        ]

    return Files(names=names, read=lambda name: (folder / name).read_bytes())


@contextlib.contextmanager
def open_archive(path: pathlib.Path) -> Iterator[Files]:
    """The files of a zip file; raises :class:`ConfigError` where it is none, or damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield Files(names=archive.namelist, read=archive.read)
    except zipfile.BadZipFile as exc:
        raise ConfigError("data", f"{path.name} cannot be read: {exc}; copy or download it again") from exc


def find_labelled(files: Files) -> LabelledFiles:
    """The image files with their class indices.

    A ``labels.json`` tells them: a list of ``[file, class index, ...]``, or an object from folder to class index. Without one
    every folder that holds images is a class, counted from 0 in the order of names, as in ImageNet. Where folders are
    classes, the first image of each comes first, then the second of each and so on, so that the first so many are of all
    classes. Raises :class:`ConfigError` that names the field and the remedy.
    """

    def read(name: str) -> bytes:
        try:
            return files.read(name)
        except (KeyError, OSError):
            raise ConfigError(
                "images", f"{name} is in {LABELS_FILE} but not there; add it or remove the entry"
            ) from None

    labels = _read_labels(files)
    if isinstance(labels, list):
        entries = [_check_entry(entry) for entry in labels]
        if not entries:
            raise ConfigError("labels", f"{LABELS_FILE} lists no image; add [file, class index] entries")
        return LabelledFiles(entries=entries, read=read, num_classes=None)
    folders = _image_folders(files.names())
    indices = {name: i for i, name in enumerate(folders)} if labels is None else _check_indices(labels, folders)
    turns = itertools.zip_longest(*([(file, indices[name]) for file in folders[name]] for name in folders))
    return LabelledFiles(
        entries=[entry for turn in turns for entry in turn if entry is not None],
        read=read,
        num_classes=len(folders) if labels is None else None,
    )


def _read_labels(files: Files) -> Any:
    """What ``labels.json`` holds, a list or an object; ``None`` where there is no such file."""
    try:
        text = files.read(LABELS_FILE)
    except (KeyError, OSError):
        return None
    try:
        labels = json.loads(text)
    except ValueError as exc:
        raise ConfigError("labels", f"{LABELS_FILE} is not JSON: {exc}; write it again") from None
    if not isinstance(labels, list | dict):
        raise ConfigError(
            "labels",
            f"{LABELS_FILE} must be a list of [file, class index], or an object from folder to class index; write it again",
        )
    return labels


def _image_folders(names: Sequence[str]) -> dict[str, list[str]]:
    """Folders that hold images, each with its files, both in the order of names; hidden ones do not count."""
    folders: dict[str, list[str]] = {}
    for name in sorted(names):
        folder, _, file = name.rpartition("/")
        hidden = any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
        if folder and not hidden and file.lower().endswith(SUFFIXES):
            folders.setdefault(folder, []).append(name)
    if not folders:
        raise ConfigError(
            "labels",
            f"no {LABELS_FILE} that lists the images, and no folders of them; add a list of [file, class index]",
        )
    return dict(sorted(folders.items()))


def _check_indices(labels: Mapping[str, Any], folders: Mapping[str, Any]) -> dict[str, int]:
    """Class index of each folder, by its path or by its own name."""
    indices = {}
    for folder in folders:
        index = labels.get(folder, labels.get(folder.rpartition("/")[2]))
        if not isinstance(index, int) or isinstance(index, bool):
            raise ConfigError("labels", f"{LABELS_FILE} has no class index for the folder {folder!r}; add one")
        indices[folder] = index
    return indices


def _check_entry(entry: object) -> tuple[str, int]:
    match entry:
        case [str(file), int(label), *_] if not isinstance(label, bool):
            return file, label
    raise ConfigError("labels", f"{LABELS_FILE} has the entry {entry!r}; make it [file, class index]")

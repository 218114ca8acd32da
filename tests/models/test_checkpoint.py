"""Tests of serverlight.models.checkpoint: what two sides of a checkpoint in several files compare."""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Callable

import pytest
import torch

pytest.importorskip("transformers")
from safetensors.torch import save_file

from serverlight.errors import ModelError, PlanMismatch
from serverlight.models.checkpoint import checkpoint_digest
from serverlight.plan import Plan, same_revision

SHARDS = ("model-1.safetensors", "model-2.safetensors")


@pytest.fixture
def make(tmp_path: pathlib.Path) -> Callable[..., pathlib.Path]:
    """A folder with a checkpoint in two files of one tensor each, filled with the values given."""

    def make(name: str, first: float = 1.0, second: float = 2.0) -> pathlib.Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        index = {"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        for tensor, file, value in zip("ab", SHARDS, (first, second), strict=True):
            save_file({tensor: torch.full((40,), value)}, folder / file)
        return folder

    return make


def test_sides_with_some_files_compare_those(make: Callable[..., pathlib.Path]) -> None:
    """Sides that hold different files agree; where both hold a file with other weights, or none but settings agree, they do not."""
    whole, head, tail, other = (checkpoint_digest(str(make(name))) for name in ("whole", "head", "tail", "other"))
    assert whole == head == tail == other
    folder = make("first only")
    (folder / SHARDS[1]).unlink()
    first_only = checkpoint_digest(str(folder))
    folder = make("second differs", second=3.0)
    second_differs = checkpoint_digest(str(folder))
    assert first_only.endswith(",-")
    assert same_revision(first_only, whole)
    assert same_revision(first_only, second_differs)  # nobody has both of the files that differ
    assert not same_revision(whole, second_differs)
    assert not same_revision(checkpoint_digest(str(make("first differs", first=3.0))), first_only)
    (folder / "config.json").write_text('{"hidden_size": 8}')
    assert not same_revision(checkpoint_digest(str(folder)), second_differs)


def test_plans_tell(make: Callable[..., pathlib.Path]) -> None:
    """Plans of sides with different weights in a file that both hold do not go together."""
    plans = [
        Plan(model="lm", revision=checkpoint_digest(str(make(name, value))), cut="layers.1")
        for name, value in (("ours", 1.0), ("theirs", 5.0))
    ]
    with pytest.raises(PlanMismatch, match="revision"):
        plans[0].check_compatible(plans[1])


@pytest.mark.parametrize(
    ("ours", "theirs"), [("a", "b"), ("a", "a:x"), ("a:x", "a:x,y"), ("a:x,-", "b:x,-"), ("a:-", "a:-,-"), ("", "a")]
)
def test_revisions_that_differ(ours: str, theirs: str) -> None:
    """Another front, or another number of files, is another revision."""
    assert not same_revision(ours, theirs)
    assert not same_revision(theirs, ours)
    assert same_revision(ours, ours)


def test_what_cannot_be_read_is_refused(make: Callable[..., pathlib.Path]) -> None:
    """A file that is here but damaged, and an index that names a file elsewhere, are errors and no other digest."""
    folder = make("damaged")
    (folder / SHARDS[0]).write_bytes(b"\xff" * 20)
    with pytest.raises(ModelError, match="model-1"):
        checkpoint_digest(str(folder))
    shutil.rmtree(folder)
    folder = make("damaged")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../elsewhere"}}')
    with pytest.raises(ModelError, match="elsewhere"):
        checkpoint_digest(str(folder))

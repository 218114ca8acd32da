"""Tests of serverlight.environment."""

from __future__ import annotations

import getpass
import json
import pathlib
import platform

import torch

from serverlight.environment import describe_environment


def test_says_what_a_figure_needs() -> None:
    """Date, processor, threads and versions, as JSON."""
    found = json.loads(json.dumps(describe_environment()))
    assert found["cpu"]
    assert found["torch_threads"] == torch.get_num_threads()
    assert found["versions"]["torch"] == torch.__version__
    assert len(found["date"]) == len("2026-01-31")


def test_names_no_machine() -> None:
    """Results are published: no host name, home folder or path in them."""
    text = json.dumps(describe_environment())
    assert str(pathlib.Path.home()) not in text
    assert platform.node() not in text.split('"')
    assert getpass.getuser() not in text.split('"')

"""Shared fixtures."""

from __future__ import annotations

import os
import pathlib

import pytest

REPO = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real models and data beside the checkout; tests that need it skip without it."""
    folder = pathlib.Path(os.environ.get("SERVERLIGHT_SHARED", REPO.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("needs the shared models and data beside the checkout (../shared/data or SERVERLIGHT_SHARED)")
    return folder

"""Toy releases that the tests of this folder share; nobody changes them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from .toy import write_release

Release = Callable[[str], Path]


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """Return name → the file of a release, each written once."""

    @cache
    def write(name: str) -> Path:
        return write_release(tmp_path_factory.mktemp(name), name)

    return write

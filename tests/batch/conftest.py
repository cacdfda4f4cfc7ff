"""What the tests of batches share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from diffsynth import HunyuanDiTImagePipeline
from diffsynth.batch.cluster import LOOPBACK
from tests.pipelines.toy import load_toy, write_toy

os.environ.update({**LOOPBACK, "RAY_AUTH_MODE": "token"})  # before Ray is imported, and before processes start


@pytest.fixture(scope="session")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> HunyuanDiTImagePipeline:
    """A toy pipeline; nobody changes it."""
    return load_toy(write_toy(tmp_path_factory.mktemp("toy")))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder for images, not made yet."""
    return tmp_path / "out"

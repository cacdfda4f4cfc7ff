"""What tests of several folders share."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import torch

from examples.random_models import write_models

# Toy networks are slower on several threads than on one, in the processes that tests start too.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["DIFFSYNTH_OFFLINE"] = "1"  # no test asks a real hub; those about hubs bring their own
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def toy_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The four files of a small random HunyuanDiT 1.2 in the published layout; read them, do not write to them."""
    return write_models(tmp_path_factory.mktemp("v1.2"))


@pytest.fixture(scope="session")
def toy_files_v1_1(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same of version 1.1, whose denoiser is told the size of the image."""
    return write_models(tmp_path_factory.mktemp("v1.1"), size_conditioning=True, seed=1)


LOGGER = logging.getLogger("diffsynth")
AS_IMPORTED = LOGGER.level, tuple(LOGGER.handlers), LOGGER.propagate


@pytest.fixture(autouse=True)
def logging_as_imported() -> None:
    """Undo what a run of the command line in a test or fixture before does to the logger, which others listen to."""
    level, handlers, propagate = AS_IMPORTED
    LOGGER.setLevel(level)
    LOGGER.handlers[:], LOGGER.propagate = handlers, propagate

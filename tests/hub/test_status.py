"""The catalogue as it stands, where hubs hold different things."""

from __future__ import annotations

from pathlib import Path

from diffsynth.hub.catalog import CATALOG
from diffsynth.hub.status import ModelStatus, catalogue_status
from tests.hub.standin import LISTING, Hub

NAME = "HunyuanDiT-v1.1-ControlNet-Canny"
FILE = "pytorch_model_canny_distill.pt"


def status(folder: Path, *, offline: bool = False) -> ModelStatus:
    """Return the status of one model."""
    [found] = [row for row in catalogue_status(folder, offline=offline) if row.name == NAME]
    return found


def test_a_file_that_the_first_hub_lacks_has_the_size_that_the_second_tells(hub: Hub, tmp_path: Path) -> None:
    repository = CATALOG[NAME].lines[0].repositories["ModelScope"]
    hub.repositories[repository] = {FILE: b"twelve bytes"}
    hub.fault("hidden", LISTING["ModelScope"], times=-1)

    first = status(tmp_path)
    hub.log.clear()
    again = status(tmp_path, offline=True)

    assert (first.bytes, first.files, first.here) == (12, 1, 0)
    assert again == first
    assert hub.log == []

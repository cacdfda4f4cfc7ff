from __future__ import annotations

import os
from pathlib import Path

import pytest

from diffsynth.core.folder import component_folders
from diffsynth.errors import NotACheckpoint


def test_a_name_that_is_too_long_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(NotACheckpoint, match="name too long"):
        component_folders(tmp_path / ("x" * 300))


def test_a_folder_that_may_not_be_read_is_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "part").mkdir()

    def refuse(path: Path) -> None:
        raise PermissionError(13, os.strerror(13), str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)

    with pytest.raises(NotACheckpoint, match=f"{tmp_path}: cannot be opened: Permission denied"):
        component_folders(tmp_path)


def test_each_file_of_a_folder_of_control_networks_is_one_part(tmp_path: Path) -> None:
    files = ("controlnet/canny.pt", "controlnet/pose.pt", "controlnet/notes.txt", "model/ema.pt", "model/module.pt")
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    parts = component_folders(tmp_path)

    assert parts == [tmp_path / "controlnet" / "canny.pt", tmp_path / "controlnet" / "pose.pt", tmp_path / "model"]


@pytest.mark.parametrize("beside", ["model_index.json", "controlnet/diffusion_pytorch_model.safetensors.index.json"])
def test_a_control_network_of_diffusers_or_in_shards_stays_whole(tmp_path: Path, beside: str) -> None:
    (tmp_path / "controlnet").mkdir()
    for name in (beside, "controlnet/a.safetensors", "controlnet/b.safetensors"):
        (tmp_path / name).touch()

    assert component_folders(tmp_path) == [tmp_path / "controlnet"]

"""Without asking a hub: what is there is used, what is missing is told with the command that gets it."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffsynth import download_model, download_models
from diffsynth.errors import DownloadError
from tests.hub.standin import Hub

DIT = "t2i/model/pytorch_model_ema.pt"
LOADED = (
    "t2i/clip_text_encoder/pytorch_model.bin",
    "t2i/mt5/pytorch_model.bin",
    "t2i/model/pytorch_model_ema.pt",
    "t2i/sdxl-vae-fp16-fix/diffusion_pytorch_model.bin",
)


def test_offline_files_that_were_put_there_by_hand_are_used_with_a_warning(
    files: dict[str, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, content in files.items():
        path = tmp_path / "HunyuanDiT" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    found = download_models("HunyuanDiT", local_dir=tmp_path, offline=True)

    assert found == [tmp_path / "HunyuanDiT" / name for name in LOADED]
    assert f"{found[0]} is used unchecked" in caplog.text


def test_offline_a_cut_file_is_found_out(hub: Hub, tmp_path: Path) -> None:
    found = download_models("HunyuanDiT", local_dir=tmp_path)
    found[1].write_bytes(b"cut")

    with pytest.raises(DownloadError) as caught:
        download_models("HunyuanDiT", local_dir=tmp_path, offline=True)

    assert "1 of 6 files are not in place" in str(caught.value)
    assert f"{found[1]}: not what was published (3 bytes here, 600,000 there)" in str(caught.value)


def test_offline_a_folder_that_was_never_listed_is_missing_as_a_whole(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(DownloadError) as caught:
        download_models("HunyuanDiT-v1.2-Diffusers", local_dir=tmp_path, offline=True)

    assert f"{tmp_path}/HunyuanDiT-v1.2-Diffusers/vae/*: not there" in str(caught.value)


def test_offline_the_command_fetches_the_same_revision_from_the_same_hub(tmp_path: Path) -> None:
    with pytest.raises(DownloadError) as caught:
        download_model("o/n", "x.bin", revision="v2", source="HuggingFace", local_dir=tmp_path, offline=True)

    command = f"diffsynth download o/n --models {tmp_path} --revision v2 --hub HuggingFace --files x.bin"
    assert f"`{command}` fetches them" in str(caught.value)


def test_offline_a_part_is_no_model(tmp_path: Path) -> None:
    home = tmp_path / "o" / "n"
    home.mkdir(parents=True)
    (home / "model.bin").write_bytes(b"whole")
    (home / ".model.bin.12345678.0123456789abcdef.part").write_bytes(b"who")

    assert download_model("o/n", local_dir=tmp_path, offline=True) == [home / "model.bin"]

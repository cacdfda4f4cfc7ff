"""Where files go: links, disks without room, folders that cannot be written."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from diffsynth import download_models
from diffsynth.errors import DownloadError
from tests.hub.standin import FILE, LISTING, Hub

DIT = "t2i/model/pytorch_model_ema.pt"
LOADED = (
    "t2i/clip_text_encoder/pytorch_model.bin",
    "t2i/mt5/pytorch_model.bin",
    "t2i/model/pytorch_model_ema.pt",
)


def test_too_little_room_is_told_before_anything_is_fetched(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))

    with pytest.raises(DownloadError, match=r"0.00 GB free, and 0.00 GB are to be fetched. Nothing was fetched"):
        download_models("HunyuanDiT", local_dir=tmp_path)
    assert hub.requests(FILE["ModelScope"]) == []


def test_a_folder_that_cannot_be_written_is_an_error_with_its_name(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file")

    with pytest.raises(DownloadError, match=r"models.* cannot be written"):
        download_models("HunyuanDiT", local_dir=tmp_path / "models")


def test_a_folder_in_the_place_of_a_file_is_an_error_with_its_name(hub: Hub, tmp_path: Path) -> None:
    target = tmp_path / "HunyuanDiT" / LOADED[2]
    target.mkdir(parents=True)

    with pytest.raises(DownloadError, match=r"pytorch_model_ema.*cannot be written: Is a directory"):
        download_models("HunyuanDiT", local_dir=tmp_path)


def test_a_link_inside_a_models_folder_is_not_followed_out_of_it(hub: Hub, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    home = tmp_path / "models" / "HunyuanDiT" / "t2i"
    home.mkdir(parents=True)
    (home / "model").symlink_to(outside)

    with pytest.raises(DownloadError, match="is a link that leads out of"):
        download_models("HunyuanDiT", local_dir=tmp_path / "models")

    assert list(outside.iterdir()) == []


def test_the_folder_of_a_whole_model_may_be_a_link(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "large disk").mkdir()
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "HunyuanDiT").symlink_to(tmp_path / "large disk")

    download_models("HunyuanDiT", local_dir=tmp_path / "models")

    assert (tmp_path / "large disk" / LOADED[0]).read_bytes() == files[LOADED[0]]


def test_room_is_asked_of_the_disk_that_a_linked_folder_lies_on(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "large disk").mkdir()
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "HunyuanDiT").symlink_to(tmp_path / "large disk")
    usage = shutil.disk_usage(tmp_path)
    asked: list[Path] = []

    def free(path: Path) -> object:
        asked.append(path.resolve())
        return usage if asked[-1].name == "large disk" else usage._replace(free=1000)

    monkeypatch.setattr(shutil, "disk_usage", free)

    download_models("HunyuanDiT", local_dir=tmp_path / "models")

    assert asked == [tmp_path / "large disk"]


def test_what_has_arrived_needs_no_room_again(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.fault("drop", "cdn/.*pytorch_model_ema")
    hub.fault("status", "cdn/.*pytorch_model_ema", times=-1)
    with pytest.raises(DownloadError):
        download_models("HunyuanDiT", local_dir=tmp_path)  # both hubs are asked, and it counts once
    hub.faults.clear()
    usage = shutil.disk_usage(tmp_path)

    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=449_999))
    with pytest.raises(DownloadError, match="are to be fetched"):
        download_models("HunyuanDiT", local_dir=tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=450_000))
    download_models("HunyuanDiT", local_dir=tmp_path)


def test_a_folder_that_can_only_be_read_will_do_where_all_is_in_place(
    hub: Hub, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in files.items():
        (tmp_path / "HunyuanDiT" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "HunyuanDiT" / name).write_bytes(content)

    def refuse(path: Path) -> object:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr("diffsynth.hub.record.replacing", refuse)
    monkeypatch.setattr("diffsynth.core.digest.replacing", refuse)

    for _ in range(2):
        assert len(download_models("HunyuanDiT", local_dir=tmp_path)) == 4
    assert hub.requests(FILE["ModelScope"]) == []
    assert len(hub.requests(LISTING["ModelScope"])) == 2

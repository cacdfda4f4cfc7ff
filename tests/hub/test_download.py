"""Model names to files: those in place are found, the others listed."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffsynth import ModelManager, download_models
from diffsynth.errors import DownloadError, InvalidRequest
from diffsynth.hub.catalog import CATALOG, TOKENIZERS
from examples.random_models import write_models


def test_files_in_place_are_returned_in_the_order_of_the_catalogue(tmp_path: Path) -> None:
    written = write_models(tmp_path / "HunyuanDiT")

    found = download_models(["HunyuanDiT"], local_dir=tmp_path)

    assert found == written == [tmp_path / name for name in CATALOG["HunyuanDiT"]]


def test_a_single_name_need_not_be_in_a_list(tmp_path: Path) -> None:
    assert "modelscope/HunyuanDiT on ModelScope" in missing("HunyuanDiT", "ModelScope", tmp_path)
    written = write_models(tmp_path / "HunyuanDiT")

    assert download_models("HunyuanDiT", local_dir=tmp_path) == written


def missing(name: str, hub: str, folder: Path) -> str:
    with pytest.raises(DownloadError) as caught:
        download_models(name, hub, local_dir=folder)
    return str(caught.value)


def test_the_default_folder_is_called_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_models(tmp_path / "models" / "HunyuanDiT")
    monkeypatch.chdir(tmp_path)

    manager = ModelManager(torch_dtype=None, device="cpu", model_id_list=["HunyuanDiT"])

    assert len(manager) == 4


def test_missing_files_are_listed_with_where_to_get_them(tmp_path: Path) -> None:
    write_models(tmp_path / "HunyuanDiT")
    absent = [tmp_path / CATALOG["HunyuanDiT"][2], tmp_path / TOKENIZERS["HunyuanDiT"][0]]
    for path in absent:
        path.unlink()

    with pytest.raises(DownloadError) as caught:
        download_models(["HunyuanDiT"], ["HuggingFace"], local_dir=tmp_path)

    message = str(caught.value)
    assert "2 of 6 files of HunyuanDiT" in message
    assert all(str(path) in message for path in absent)
    assert str(tmp_path / CATALOG["HunyuanDiT"][0]) not in message
    assert "Tencent-Hunyuan/HunyuanDiT on HuggingFace" in message
    assert "ModelScope" not in message


@pytest.mark.parametrize(
    ("name", "near"), [("hunyuan", "HunyuanDiT"), ("HunyuanDit", "HunyuanDiT"), ("x", "HunyuanDiT")]
)
def test_an_unknown_name_is_refused_with_the_nearest(tmp_path: Path, name: str, near: str) -> None:
    with pytest.raises(InvalidRequest, match=f"no model called '{name}'. Known are: {near}"):
        download_models([name], local_dir=tmp_path)

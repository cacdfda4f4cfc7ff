"""A model that comes with the package is put in place without network, from a folder or from an archive."""

from __future__ import annotations

import errno
import importlib
import os
import socket
import sys
import zipfile
from pathlib import Path

import pytest

from diffsynth import download_models
from diffsynth.core import files
from diffsynth.errors import DownloadError
from diffsynth.hub import bundled
from diffsynth.hub.catalog import CATALOG
from diffsynth.hub.download import HUBS
from diffsynth.hub.status import catalogue_status

tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

REPO = Path(__file__).parents[2]
MODEL_ID = "HunyuanDiT-Emoji"
WEIGHTS = CATALOG[MODEL_ID].weights
NAMES = (*WEIGHTS, *CATALOG[MODEL_ID].vocabularies, f"{MODEL_ID}/card.json", f"{MODEL_ID}/LICENSE")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of the package's own, with a model of a few bytes."""
    folder = tmp_path / "package"
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(f"content of {name}".encode())
    monkeypatch.setattr(bundled, "_home", lambda: folder)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder).as_posix()): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_all_files_are_copied_and_the_weights_returned_without_network(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    models = tmp_path / "models"

    found = download_models([MODEL_ID], local_dir=models)

    assert found == [models / name for name in WEIGHTS]
    assert content(models) == content(home)
    assert set(content(models)) == set(NAMES)


@pytest.mark.usefixtures("home")
def test_files_that_are_right_are_left_and_others_replaced(tmp_path: Path) -> None:
    models = tmp_path / "models"
    download_models(MODEL_ID, local_dir=models)
    right, cut, changed, gone = (models / name for name in WEIGHTS)
    expected = content(models)
    for path in models.rglob("*"):
        os.utime(path, (1, 1))
    cut.write_bytes(cut.read_bytes()[:5])
    changed.write_bytes(b"X" * len(expected[WEIGHTS[2]]))
    gone.unlink()
    (models / MODEL_ID / "mine.txt").write_text("kept")

    download_models(MODEL_ID, local_dir=models)

    assert content(models) == {**expected, f"{MODEL_ID}/mine.txt": b"kept"}
    assert [int(path.stat().st_mtime) == 1 for path in (right, cut, changed, gone)] == [True, False, False, False]


@pytest.mark.usefixtures("home")
def test_it_can_be_asked_for_together_with_a_model_that_is_in_place(tmp_path: Path) -> None:
    for name in (*CATALOG["HunyuanDiT"].weights, *CATALOG["HunyuanDiT"].vocabularies):
        (tmp_path / "models" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "models" / name).write_bytes(b"x")

    found = download_models([MODEL_ID, "HunyuanDiT"], local_dir=tmp_path / "models")

    assert found == [tmp_path / "models" / name for name in (*WEIGHTS, *CATALOG["HunyuanDiT"].weights)]


def test_a_package_in_an_archive_serves_as_well(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "package.zip", "w") as archive:
        for name, text in content(home).items():
            archive.writestr(f"somewhere/{name}", text)
    monkeypatch.setattr(bundled, "_home", lambda: zipfile.Path(tmp_path / "package.zip", "somewhere/"))

    download_models(MODEL_ID, local_dir=tmp_path / "models")

    assert content(tmp_path / "models") == content(home)


def test_a_package_without_the_model_says_so(home: Path, tmp_path: Path) -> None:
    (home / WEIGHTS[2]).unlink()

    with pytest.raises(DownloadError) as caught:
        download_models(MODEL_ID, local_dir=tmp_path / "models")

    message = str(caught.value)
    assert f"1 of its files are not in this installation, under {home}: {WEIGHTS[2]}. Install diffsynth" in message
    assert not (tmp_path / "models").exists()


@pytest.mark.usefixtures("home")
def test_a_full_disk_is_told_with_the_file_and_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    models = tmp_path / "models"
    monkeypatch.setattr(files, "sync", full)

    with pytest.raises(DownloadError) as caught:
        download_models(MODEL_ID, local_dir=models)

    assert f"could not be copied: {models / MODEL_ID / 'LICENSE'}: No space left on device." in str(caught.value)
    assert content(models) == {}


@pytest.mark.usefixtures("home")
def test_a_folder_that_cannot_be_made_or_a_file_that_cannot_be_replaced_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    in_the_way = tmp_path / "models" / WEIGHTS[0]
    in_the_way.mkdir(parents=True)

    with pytest.raises(DownloadError, match=rf"could not be copied: {tmp_path}/file.*: Not a directory"):
        download_models(MODEL_ID, local_dir=tmp_path / "file")
    with pytest.raises(DownloadError, match=rf"could not be copied: {in_the_way}: exists and is no regular file"):
        download_models(MODEL_ID, local_dir=tmp_path / "models")


@pytest.mark.usefixtures("home")
def test_a_folder_without_permission_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)

    with pytest.raises(DownloadError, match=r"models/HunyuanDiT-Emoji: Permission denied\. Make room or give permi"):
        download_models(MODEL_ID, local_dir=tmp_path / "models")


def test_the_package_data_of_the_project_takes_in_every_file_of_a_model(home: Path) -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text("utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"][bundled.__name__]

    taken = {path for pattern in patterns for path in home.glob(pattern) if path.is_file()}

    assert taken == {home / name for name in NAMES}
    assert project["tool"]["setuptools"]["packages"]["find"]["namespaces"] is False


def test_the_catalogue_shows_the_model_only_where_the_package_has_it(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [shown] = [each for each in catalogue_status(tmp_path, HUBS, offline=True) if each.name == MODEL_ID]
    monkeypatch.setattr(bundled, "_home", lambda: tmp_path / "nothing")

    without = [each.name for each in catalogue_status(tmp_path, HUBS, offline=True)]

    assert (shown.files, shown.here) == (len(NAMES), 0)
    assert shown.bytes == sum(map(len, content(home).values()))
    assert MODEL_ID not in without
    assert "HunyuanDiT" in without

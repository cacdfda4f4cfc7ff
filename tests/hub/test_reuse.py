"""Files that are on this machine already: taken where they are right, whatever is remembered of them."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from diffsynth import download_models
from diffsynth.hub.listing import RemoteFile
from diffsynth.hub.reuse import Reuse
from tests.hub.standin import FILE, Hub

DIT = "t2i/model/pytorch_model_ema.pt"


def hub_cached(cache: Path, hub: Hub, files: dict[str, bytes], name: str) -> Path:
    """Put a file into the cache as Hugging Face's client lays it out."""
    home = cache / "models--Tencent-Hunyuan--HunyuanDiT"
    blob = home / "blobs" / hashlib.sha256(files[name]).hexdigest()
    blob.parent.mkdir(parents=True)
    blob.write_bytes(files[name])
    return blob


def test_a_file_in_the_cache_of_hugging_face_is_linked_not_fetched(
    hub: Hub, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "t2i/model/pytorch_model_ema.pt"
    cache = tmp_path / "caches" / "hf" / "hub"
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    cached = hub_cached(cache, hub, files, name)
    hub.log.clear()

    download_models("HunyuanDiT", local_dir=tmp_path / "models")

    target = tmp_path / "models" / "HunyuanDiT" / name
    assert target.read_bytes() == files[name]
    assert target.stat().st_ino == cached.stat().st_ino
    assert not target.is_symlink()
    assert hub.requests("FilePath=t2i/model") == []


def test_the_real_clients_caches_are_found(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    program = """
from huggingface_hub import hf_hub_download
from modelscope_hub import HubApi
hf_hub_download("Tencent-Hunyuan/HunyuanDiT", "t2i/model/pytorch_model_ema.pt")
HubApi().download_file("modelscope/HunyuanDiT", "model", "t2i/mt5/pytorch_model.bin")
"""
    subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "HF_HUB_DISABLE_XET": "1"}, check=True, capture_output=True
    )
    hub.log.clear()

    download_models("HunyuanDiT", local_dir=tmp_path / "models")

    fetched = [request.line for request in hub.requests(FILE["ModelScope"]) if request.status == 200]
    assert len(fetched) == 4
    assert not [line for line in fetched if "pytorch_model_ema" in line or "mt5/pytorch_model.bin" in line]


def test_a_wrong_file_in_a_cache_is_not_taken(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    name = "t2i/model/pytorch_model_ema.pt"
    cached = hub_cached(tmp_path / "caches" / "hf" / "hub", hub, files, name)
    cached.write_bytes(bytes(len(files[name])))

    download_models("HunyuanDiT", local_dir=tmp_path / "models")

    assert (tmp_path / "models" / "HunyuanDiT" / name).read_bytes() == files[name]


def test_files_of_another_tool_are_taken_under_any_name(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    other = tmp_path / "other" / "deep"
    other.mkdir(parents=True)
    (other / "model.ckpt").write_bytes(files["t2i/mt5/pytorch_model.bin"])
    (other / "same size").write_bytes(bytes(len(files["t2i/model/pytorch_model_ema.pt"])))

    download_models("HunyuanDiT", local_dir=tmp_path / "models", reuse=tmp_path / "other")

    assert (tmp_path / "models/HunyuanDiT/t2i/mt5/pytorch_model.bin").read_bytes() == files["t2i/mt5/pytorch_model.bin"]
    assert [r for r in hub.requests("cdn/ms") if "mt5/pytorch_model.bin" in r.line] == []
    assert [r for r in hub.requests("cdn/ms") if "pytorch_model_ema.pt" in r.line]


def test_a_copy_is_made_where_no_link_can_be(
    hub: Hub, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "x").write_bytes(files["t2i/mt5/pytorch_model.bin"])

    def no_link(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_link)
    download_models("HunyuanDiT", local_dir=tmp_path / "models", reuse=[other])

    assert (tmp_path / "models/HunyuanDiT/t2i/mt5/pytorch_model.bin").read_bytes() == files["t2i/mt5/pytorch_model.bin"]
    assert [r for r in hub.requests("cdn/ms") if "mt5/pytorch_model.bin" in r.line] == []


def test_a_moved_folder_is_checked_once_more(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    download_models("HunyuanDiT", local_dir=tmp_path / "models")
    shutil.move(tmp_path / "models", tmp_path / "elsewhere")
    hub.log.clear()

    found = download_models("HunyuanDiT", local_dir=tmp_path / "elsewhere")

    assert [path.read_bytes() for path in found] == list(files.values())[:4]
    assert hub.log == []


def test_verify_does_not_take_a_cached_file_that_went_bad_together_with_ours(
    hub: Hub, files: dict[str, bytes], tmp_path: Path
) -> None:
    cached = hub_cached(tmp_path / "caches" / "hf" / "hub", hub, files, DIT)
    target = tmp_path / "models" / "HunyuanDiT" / DIT
    download_models("HunyuanDiT", local_dir=tmp_path / "models")
    assert target.samefile(cached)
    content = bytearray(files[DIT])
    content[0] ^= 1
    times = cached.stat()
    cached.write_bytes(content)
    os.utime(cached, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a failing disk does it

    download_models("HunyuanDiT", local_dir=tmp_path / "models", verify=True)

    assert target.read_bytes() == files[DIT]


def test_a_file_that_was_taken_is_read_once_and_its_hash_remembered(
    hub: Hub, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    for number, content in enumerate(files.values()):
        (tmp_path / "other" / str(number)).write_bytes(content)
    monkeypatch.setattr("diffsynth.core.digest.digest_of", lambda path: pytest.fail(f"{path} was read again"))

    for _ in range(2):
        download_models("HunyuanDiT", local_dir=tmp_path / "models", reuse=tmp_path / "other")

    assert hub.requests(FILE["ModelScope"]) == []
    assert sorted(tmp_path.rglob("*.part")) == []


def test_one_file_is_a_candidate_once_under_all_its_names(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"right")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "c").symlink_to(tmp_path / "nowhere")
    reuse = Reuse([tmp_path, tmp_path])

    assert reuse.candidates(RemoteFile("x", 5, "0" * 64), ["o/n", "o/n"]) == [tmp_path / "a"]
    assert reuse.candidates(RemoteFile("x", 5), ["o/n"]) == []

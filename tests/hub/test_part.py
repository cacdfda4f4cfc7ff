"""What has arrived of a file: kept, locked, thrown away where it cannot be trusted."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from diffsynth import download_model
from diffsynth.errors import DownloadError
from diffsynth.hub.listing import RemoteFile
from diffsynth.hub.part import Part
from tests.hub.standin import FILE, Hub

REMOTE = RemoteFile("x", 3, "0" * 64)


def test_a_part_that_is_longer_than_its_file_is_thrown_away(tmp_path: Path) -> None:
    Part(tmp_path / "x", REMOTE).path.write_bytes(b"too long")

    with Part(tmp_path / "x", REMOTE) as part:
        assert part.size == 0


def test_ctrl_c_while_a_part_is_read_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> bytes:
        raise KeyboardInterrupt

    part = Part(tmp_path / "x", REMOTE)
    part.path.write_bytes(b"ab")
    with monkeypatch.context() as patched:
        patched.setattr(os, "read", stop)
        with pytest.raises(KeyboardInterrupt), part:
            pass
    waited: list[bool] = []

    with Part(tmp_path / "x", REMOTE, lambda: waited.append(True)) as again:
        assert again.size == 2
    assert waited == []


def test_threads_take_turns_like_processes(tmp_path: Path) -> None:
    waiting = threading.Event()
    sizes: list[int] = []

    def second() -> None:
        with Part(tmp_path / "x", REMOTE, waiting.set) as part:
            sizes.append(part.size)

    with Part(tmp_path / "x", REMOTE) as part:
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(5)
        part.append(b"ab")
    thread.join()

    assert sizes == [2]


def test_a_part_without_a_hash_is_not_gone_on_with_since_it_may_be_of_another_version(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "hashes", lambda entry: ("", ""))
    hub.repositories["a/b"] = {"text.txt": b"A" * 9000}
    hub.fault("drop", FILE["ModelScope"])
    hub.fault("status", FILE["ModelScope"], times=-1)
    with pytest.raises(DownloadError):
        download_model("a/b", source="ModelScope", local_dir=tmp_path)
    assert [path.stat().st_size for path in tmp_path.rglob("*.part")] == [4500]
    hub.faults.clear()
    hub.repositories["a/b"] = {"text.txt": b"B" * 9000}

    [found] = download_model("a/b", source="ModelScope", local_dir=tmp_path)

    assert found.read_bytes() == b"B" * 9000

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path

import pytest

from diffsynth.core import digest
from diffsynth.core.digest import record_path, remember_sha256, sha256_of


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIFFSYNTH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sha256.json"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"w" * 3_000_000)
    return path


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_the_digest_is_that_of_the_content(file: Path) -> None:
    assert sha256_of(file) == sha256(b"w" * 3_000_000)


def test_a_file_is_read_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = sha256_of(file)
    monkeypatch.setattr(digest, "digest_of", lambda path: pytest.fail(f"{path} was read again"))

    assert sha256_of(file) == first
    assert sha256_of(file.parent / "." / file.name) == first


def test_a_file_is_read_again_on_demand(file: Path) -> None:
    sha256_of(file)
    times = file.stat()
    file.write_bytes(b"v" * 3_000_000)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))

    assert sha256_of(file, again=True) == sha256(b"v" * 3_000_000)
    assert sha256_of(file) == sha256(b"v" * 3_000_000)


def test_a_digest_that_was_computed_elsewhere_is_remembered(file: Path) -> None:
    remember_sha256(file, "0" * 64)

    assert sha256_of(file) == "0" * 64


def test_a_changed_file_is_read_again(file: Path) -> None:
    sha256_of(file)
    file.write_bytes(b"v" * 3_000_000)
    os.utime(file, (1, 1))

    assert sha256_of(file) == sha256(b"v" * 3_000_000)


def test_several_files_are_remembered_side_by_side(file: Path, cache: Path) -> None:
    other = file.with_name("other.bin")
    other.write_bytes(b"other")

    sha256_of(file)
    sha256_of(other)

    assert json.loads(cache.read_text("utf-8")).keys() == {str(file.resolve()), str(other.resolve())}


@pytest.mark.parametrize("record", ["", "{", "[]", "null", "\x00\xff", '{"%s": 3}', '{"%s": {"stamp": %s}}'])
def test_a_broken_record_only_costs_time(record: str, file: Path, cache: Path) -> None:
    status = file.stat()
    stamp = json.dumps([status.st_size, status.st_mtime_ns])
    cache.parent.mkdir()
    cache.write_text(record.replace("%s", str(file.resolve()), 1).replace("%s", stamp), "latin-1")

    assert sha256_of(file) == sha256(b"w" * 3_000_000)
    assert sha256_of(file) == sha256(b"w" * 3_000_000)


def test_a_record_that_cannot_be_written_only_costs_time(file: Path, cache: Path) -> None:
    cache.parent.write_text("a file where the folder should be", "utf-8")

    assert sha256_of(file) == sha256(b"w" * 3_000_000)


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sha256_of(tmp_path / "none.bin")


def test_the_record_lies_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DIFFSYNTH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert record_path() == tmp_path / "diffsynth" / "sha256.json"

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert record_path() == tmp_path / ".cache" / "diffsynth" / "sha256.json"


def test_a_record_that_is_nested_deeply_only_costs_time(file: Path, cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("[" * 200_000, "utf-8")

    assert sha256_of(file) == sha256(b"w" * 3_000_000)


def test_a_user_without_a_home_has_a_record_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("DIFFSYNTH_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", fail)

    assert record_path().is_relative_to(tempfile.gettempdir())

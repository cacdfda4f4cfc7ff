from __future__ import annotations

import errno
import os
import socket
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffsynth.core.checkpoint import open_checkpoint
from diffsynth.core.formats import content
from diffsynth.errors import CheckpointError, CorruptCheckpoint, NotACheckpoint, UnsupportedCheckpoint

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 4270000000\n"
OTHER_THINGS: dict[str, tuple[bytes, type[CheckpointError], str]] = {
    "lfs pointer": (LFS, NotACheckpoint, r"Git LFS pointer \(real size 4.27 GB\), .*git lfs pull"),
    "html": (b"<!DOCTYPE html><html><title>Sign in</title>", NotACheckpoint, "an HTML page.*needs a login"),
    "html without doctype": (b"\n <HTML lang=en><body>", NotACheckpoint, "an HTML page"),
    "xml": (b'<?xml version="1.0"?><Error>AccessDenied</Error>', NotACheckpoint, "an XML text.*AccessDenied"),
    "json error": (b'{"error": "Repository not found"}', NotACheckpoint, "a JSON text.*Repository not found"),
    "broken json": (b'{"error": ', NotACheckpoint, "a JSON text"),
    "json list": (b"[1, 2]", NotACheckpoint, "a JSON text"),
    "text": (b"Entry not found", NotACheckpoint, 'is text: "Entry not found"'),
    "other text": (b"Not found. Try again.\n", NotACheckpoint, "is text"),
    "text with escape codes": (b"no\x1b[31m such file", NotACheckpoint, "no format we know"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(40), NotACheckpoint, "a PNG image"),
    "jpeg": (b"\xff\xd8\xff\xe0" + bytes(40), NotACheckpoint, "a JPEG image"),
    "gzip": (b"\x1f\x8b\x08" + bytes(40), NotACheckpoint, "a gzip archive"),
    "gguf": (b"GGUF" + bytes(40), NotACheckpoint, "a GGUF file"),
    "random bytes": (bytes(range(200, 256)), NotACheckpoint, "first bytes are c8 c9"),
    "tar": (b"sys_info".ljust(257, b"\0") + b"ustar\0" + bytes(300), UnsupportedCheckpoint, "a tar archive"),
    "empty": (b"", CorruptCheckpoint, "is empty.*Download it again"),
    "three bytes": (b"\x01\x02\x03", CorruptCheckpoint, "has 3 bytes"),
    "zeros": (bytes(1000), CorruptCheckpoint, "512 zero bytes of 1000"),
    "header of 2^63": (struct.pack("<Q", 2**63), CorruptCheckpoint, "9223372036854775808 bytes"),
    "header of 2^64 - 1": (struct.pack("<Q", 2**64 - 1) + b"{}", CorruptCheckpoint, "18446744073709551615 bytes"),
    "cut zip": (b"PK\x03\x04" + bytes(200), CorruptCheckpoint, "directory at its end is missing"),
    "cut pickle": (b"\x80\x02}q\x00X\x06", CorruptCheckpoint, "pickle cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("thing", OTHER_THINGS)
def test_other_things_under_a_weight_name_are_named(thing: str, suffix: str, tmp_path: Path) -> None:
    data, kind, words = OTHER_THINGS[thing]
    if thing == "random bytes" and suffix == ".safetensors":
        kind, words = CorruptCheckpoint, "no whole safetensors file"
    if thing == "text with escape codes" and suffix == ".safetensors":
        kind, words = CorruptCheckpoint, "no whole safetensors file"
    path = tmp_path / f"model{suffix}"
    path.write_bytes(data)

    with pytest.raises(kind, match=words) as caught:
        open_checkpoint(path)

    assert str(caught.value).startswith(f"{path}: ")
    assert "weights_only" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "sock"))

        for name, kind in {"pipe": "a named pipe", "endless": "a character device", "sock": "a socket"}.items():
            with pytest.raises(NotACheckpoint, match=f"{name}: is {kind}, not a file"):
                open_checkpoint(tmp_path / name)


def test_a_pipe_that_takes_the_place_of_a_file_is_refused_without_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"weights")
    before = os.stat(path)
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr(content, "file_status", lambda _: before)

    with pytest.raises(NotACheckpoint, match="is a named pipe"), content.open_regular(path):
        pass


def test_paths_that_lead_nowhere_say_why(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").write_bytes(b"x")
    paths = {
        str(tmp_path / "absent.pt"): "No such file or directory",
        str(tmp_path / "dangling"): "No such file or directory",
        str(tmp_path / "loop"): "Too many levels of symbolic links",
        f"{tmp_path}/file/": "Not a directory",
        str(tmp_path / ("n" * 300)): "File name too long",
        f"{tmp_path}/a\0b": "null byte",
        "": "an empty path",
    }

    for path, words in paths.items():
        with pytest.raises(NotACheckpoint, match=words):
            open_checkpoint(path)


def test_a_file_we_may_not_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"secret")

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refuse)

    with pytest.raises(NotACheckpoint, match=r"model.bin: cannot be opened: Permission denied\."):
        open_checkpoint(path)


@pytest.mark.parametrize(
    "name",
    ["a b.safetensors", "权重.safetensors", 'it\'s "so".bin', "new\nline.pt", "n" * 230, "UPPER.SAFETENSORS", "x"],
)
def test_any_file_name_loads(name: str, tmp_path: Path) -> None:
    weights = {"weight": torch.arange(6.0)}
    save_file(weights, tmp_path / name)
    (tmp_path / "link").symlink_to(tmp_path / name)

    for path in (tmp_path / name, tmp_path / "link", str(tmp_path / name)):
        assert torch.equal(open_checkpoint(path)["weight"], weights["weight"])


def test_control_characters_of_a_path_are_escaped_in_messages(tmp_path: Path) -> None:
    with pytest.raises(NotACheckpoint) as caught:
        open_checkpoint(tmp_path / "a\x1b[31m\nb")

    assert r"a\x1b[31m\nb" in str(caught.value)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(("nbytes", "words"), [(999, "999 bytes"), (4_270_000_000, "4.27 GB"), (3 * 10**12, "3 TB")])
def test_sizes_are_written_for_people(nbytes: int, words: str) -> None:
    assert content.readable_size(nbytes) == words

"""What a file is, decided by its first 512 bytes and never by its name, before any parser sees it."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import BinaryIO

from diffsynth.errors import CheckpointError, CorruptCheckpoint, NotACheckpoint, UnsupportedCheckpoint, printable

HEAD_BYTES = 512
DOWNLOAD_AGAIN = "Download it again."
CONVERT_ELSEWHERE = (
    "If you trust its source, open it with the program that made it, in a place you can throw away, "
    "and save its `state_dict()` with `safetensors.torch.save_file`."
)

OTHER_FORMATS = (
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"RIFF", "a RIFF file, such as a WebP image"),
    (b"%PDF", "a PDF document"),
    (b"GGUF", "a GGUF file of quantised weights"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ\x00", "an xz archive"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x7fELF", "a program"),
    (b"SQLite format 3", "an SQLite database"),
)
FILE_TYPES = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISDIR, "a folder"),
)


class Content(Enum):
    """What a file may be, as far as its first bytes tell."""

    SAFETENSORS = "safetensors"
    ZIP = "zip"
    PICKLE = "pickle"
    JSON = "json"
    UNKNOWN = "unknown"  # binary or text; an old pickle has no mark of its own


@dataclass(frozen=True, slots=True)
class FileStamp:
    """A file, and what tells whether it is still the same one: size in bytes, time of change, inode."""

    path: Path
    size: int
    mtime_ns: int
    inode: tuple[int, int]

    @classmethod
    def of(cls, path: Path, status: os.stat_result) -> FileStamp:
        """Take the stamp from a file's status."""
        return cls(path, status.st_size, status.st_mtime_ns, (status.st_dev, status.st_ino))


def readable_size(nbytes: int) -> str:
    """Write a number of bytes for people: "4.27 GB", in powers of ten."""
    size = float(nbytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{nbytes} bytes" if unit == "bytes" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def unreadable(path: Path | str, error: OSError | ValueError) -> NotACheckpoint:
    """Return the error for a path that the system does not open, with its reason in words."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    remedy = "Check the path." if isinstance(error, (FileNotFoundError, NotADirectoryError)) else ""
    return NotACheckpoint(path, f"cannot be opened: {reason}", remedy)


def file_status(path: Path | str) -> os.stat_result:
    """Return the status of what a path leads to, links followed.

    Raises:
        NotACheckpoint: nothing is there, or the system does not let us look.
    """
    try:
        return os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise unreadable(path, error) from error


def _require_regular(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for matches, name in FILE_TYPES if matches(status.st_mode)), "something else")
        raise NotACheckpoint(path, f"is {kind}, not a file", "Give the path of the weight file itself.")


@contextmanager
def open_regular(path: Path) -> Iterator[tuple[BinaryIO, FileStamp]]:
    """Open a regular file for reading; never wait for a pipe or a device.

    Yields:
        The open file, and the stamp of what was opened.

    Raises:
        NotACheckpoint: the path does not lead to a regular file that can be read.
    """
    _require_regular(path, file_status(path))
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        raise unreadable(path, error) from error
    with os.fdopen(descriptor, "rb") as stream:
        status = os.fstat(descriptor)
        _require_regular(path, status)  # it may have been exchanged since the first look
        yield stream, FileStamp.of(path, status)


def recognise(head: bytes, stamp: FileStamp) -> Content:
    """Decide how a file is to be read.

    Args:
        head: its first 512 bytes, or all of it.
        stamp: which file, for messages and for its size.

    Raises:
        CorruptCheckpoint: the file is empty or zeros.
        NotACheckpoint: the file is something else that we know by name.
        UnsupportedCheckpoint: a torch file from before 2018.
    """
    path, size = stamp.path, stamp.size
    if size == 0:
        raise CorruptCheckpoint(path, "is empty", DOWNLOAD_AGAIN)
    if not head.strip(b"\0"):
        raise CorruptCheckpoint(
            path, f"begins with {len(head)} zero bytes of {size}: it was never filled", DOWNLOAD_AGAIN
        )
    if head[8:9] == b"{" and not is_text(head[:8]):  # first: its length may look like any mark
        return Content.SAFETENSORS
    for magic, name in OTHER_FORMATS:
        if head.startswith(magic):
            raise NotACheckpoint(path, f"is {name}", "Give a safetensors file or one written by `torch.save`.")
    if head[257:262] == b"ustar":
        raise UnsupportedCheckpoint(path, "is a tar archive, the form of torch files before 2018", CONVERT_ELSEWHERE)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return Content.ZIP
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return Content.PICKLE
    if head.startswith(b"version https://git-lfs"):
        raise _lfs_pointer(head, path)
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"<") and is_text(head):
        raise _markup(start, path)
    if start.startswith((b"{", b"[")) and is_text(head):
        return Content.JSON
    return Content.UNKNOWN


def is_text(head: bytes) -> bool:
    """Tell whether bytes are UTF-8 text; a last character that is cut does not count."""
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3 or error.reason != "unexpected end of data":
            return False
        text = head[: error.start].decode("utf-8")
    return all(char.isprintable() or char in "\t\r\n\ufeff" for char in text)


def unrecognised(head: bytes, stamp: FileStamp) -> CheckpointError:
    """Return the error for a file that no parser takes, with a look at how it begins."""
    path, size = stamp.path, stamp.size
    if is_text(head):
        return NotACheckpoint(
            path, f'is text: "{printable(head.decode("utf-8", "replace").strip())}"', "Was the download refused?"
        )
    if path.suffix.lower() == ".safetensors" or size < 16:
        length = int.from_bytes(head[:8], "little")
        found = f"has {size} bytes" if size < 8 else f"announces a header of {length} bytes and has {size}"
        return CorruptCheckpoint(path, f"{found}, so it is no whole safetensors file", DOWNLOAD_AGAIN)
    return NotACheckpoint(
        path,
        f"is in no format we know; its first bytes are {head[:16].hex(' ')}",
        "Give a safetensors file or one written by `torch.save`.",
    )


def _lfs_pointer(head: bytes, path: Path) -> NotACheckpoint:
    size = re.search(rb"^size (\d{1,18})$", head, re.MULTILINE)
    real = f" (real size {readable_size(int(size[1]))})" if size else ""
    return NotACheckpoint(path, f"is a Git LFS pointer{real}, not the file itself", "Run `git lfs pull`.")


def _markup(start: bytes, path: Path) -> NotACheckpoint:
    lower = start.lower()
    if lower.startswith(b"<!doctype html") or b"<html" in lower:
        return NotACheckpoint(path, "is an HTML page", "The download needs a login, or was blocked.")
    text = printable(start.decode("utf-8", "replace"))
    return NotACheckpoint(path, f'is an XML text: "{text}"', "The download was refused.")

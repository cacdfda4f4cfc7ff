"""Write a file in one step: under a temporary name first, synced, then renamed."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path in the folder of ``path`` and rename it to ``path`` when the block ends well.

    The folder is made if need be. If the block raises, the temporary file is removed and ``path`` stays as it was;
    a reader never sees half a file under the final name, even after a power cut.

    Raises:
        OSError: the file or its folder cannot be written, or something that is no file has this name; the error
            names ``path``.
    """
    if path.exists() and not path.is_file():
        kind = errno.EISDIR if path.is_dir() else errno.EEXIST
        raise OSError(kind, "exists and is no regular file, so it is not replaced", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.part")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.errno and error.filename in (None, str(temporary), temporary):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    if os.name == "posix":
        sync(path.parent)


def write_all(handle: int, content: bytes) -> None:
    """Write all of some bytes to an open file; the system may take them in parts.

    Raises:
        OSError: they cannot be written.
    """
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(handle, rest) :]


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk.

    Raises:
        OSError: they cannot be written.
    """
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

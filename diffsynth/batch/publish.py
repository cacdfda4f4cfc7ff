"""Put a finished file under its name: whole or not at all, and never over a file that is there.

Written under a temporary name, synced, then linked: a link fails where a name is taken, so of several processes that
publish under one name exactly one does.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from diffsynth.core.files import sync, write_all

NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}


def publish(content: bytes, paths: Sequence[Path], owner: str) -> list[bool]:
    """Write content and give it one or several names.

    Args:
        content: of the file.
        paths: its names, in existing folders or new ones.
        owner: which process this is, for the name of the temporary file; see ``remove_leftovers``.

    Returns:
        For each name whether the content has it now; not, if another file has it.

    Raises:
        OSError: it cannot be written.
    """
    for folder in dict.fromkeys(path.parent for path in paths):
        folder.mkdir(parents=True, exist_ok=True)
    temporary = paths[0].with_name(_temporary(owner))
    try:
        with temporary.open("xb", buffering=0) as file:
            write_all(file.fileno(), content)
            os.fsync(file.fileno())
        return link(temporary, paths, owner)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(paths[0])) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def link(source: Path, paths: Sequence[Path], owner: str) -> list[bool]:
    """Give a file more names where they are free, and return for each whether it was; on the disk when this returns.

    Raises:
        OSError: that cannot be done.
    """
    created = [_create(source, path, owner) for path in paths]
    for folder in dict.fromkeys(path.parent for path in paths):
        if os.name == "posix":
            sync(folder)
    return created


def _create(source: Path, path: Path, owner: str) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        return _copy(source, path, owner)
    return True


def _copy(source: Path, path: Path, owner: str) -> bool:
    """Where there are no links: take the name with an empty file, then put the content in its place.

    A crash in between leaves the empty file, which no image is; the next run takes it away.
    """
    try:
        path.open("xb").close()
    except FileExistsError:
        return False
    temporary = path.with_name(_temporary(owner))
    try:
        temporary.write_bytes(source.read_bytes())
        sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        path.unlink()
        raise
    finally:
        with suppress(OSError):
            temporary.unlink()
    return True


def _temporary(owner: str) -> str:
    return f".{owner}.{secrets.token_hex(4)}.part"


def remove_leftovers(folder: Path, is_over: Callable[[str], bool]) -> bool:
    """Remove what killed processes left unfinished, and return whether nothing unfinished is there now.

    Args:
        folder: it, and folders in it, are looked through.
        is_over: owner → whether that process has ended; asked after its files were found.
    """
    found: dict[str, list[Path]] = {}
    for path in folder.rglob(".*.part"):
        owner, _, _ = path.name[1:].removesuffix(".part").rpartition(".")
        found.setdefault(owner, []).append(path)
    over = [owner for owner in found if is_over(owner)]
    for path in (path for owner in over for path in found[owner]):
        path.unlink(missing_ok=True)
    return len(over) == len(found)

"""Files that are on this machine already: in the hubs' own caches, or in a folder that the user names."""

from __future__ import annotations

import errno
import glob
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from diffsynth.hub.listing import RemoteFile
from diffsynth.hub.part import CHUNK, Part
from diffsynth.hub.record import hash_like
from diffsynth.hub.settings import hugging_face_cache, modelscope_cache

logger = logging.getLogger(__name__)


class Reuse:
    """Looks for files on this machine.

    Args:
        folders: where other tools keep files; searched with everything below them.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._by_size: dict[int, list[Path]] = {}
        for folder in folders:
            for where, _, names in os.walk(folder):
                for path in (Path(where) / name for name in names):
                    with suppress(OSError):
                        if path.is_file():
                            self._by_size.setdefault(path.stat().st_size, []).append(path)

    def candidates(self, remote: RemoteFile, repositories: Iterable[str]) -> list[Path]:
        """Return files that have the right size; none for a file of which no hub tells a hash."""
        if not remote.has_hash:
            return []
        cached = [path for name in dict.fromkeys(repositories) for path in _in_caches(remote, name)]
        found: dict[Path, None] = {}
        for path in (*cached, *self._by_size.get(remote.size, ())):
            with suppress(OSError):
                if path.is_file() and path.stat().st_size == remote.size:
                    found[path.resolve()] = None
        return list(found)


def take(found: Path, part: Part) -> bool:
    """Put a file that was found in its place, if it is right: as a second name of the same file, or else as a copy.

    Its hash is computed now, not remembered: who else writes the file is not known.

    Args:
        found: the file itself, no link to it.
        part: what it is to be.

    Returns:
        Whether it is right.

    Raises:
        OSError: the copy cannot be written.
    """
    link = part.path.with_suffix(".link.part")
    try:
        link.unlink(missing_ok=True)
        os.link(found, link)
        if not _is_right(link, part.remote):
            return False
        part.adopt(link)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EROFS):
            raise
        return _is_right(found, part.remote) and _copy(found, part)
    finally:
        with suppress(OSError):
            link.unlink(missing_ok=True)
    return True


def _is_right(path: Path, remote: RemoteFile) -> bool:
    with suppress(OSError):
        return hash_like(path, remote) == remote.identity
    return False


def _copy(source: Path, part: Part) -> bool:
    """Copy a file, and return whether it was the same all the while."""
    part.restart()
    with source.open("rb") as file:
        while piece := file.read(CHUNK):
            part.append(piece)
    if part.hash() != part.remote.identity:
        part.restart()
        return False
    part.finish()
    return True


def _in_caches(remote: RemoteFile, repository: str) -> Iterator[Path]:
    """Yield where the hubs' clients would have put a file."""
    inside = glob.escape(remote.path)
    flat = repository.replace("/", "--")
    one = hugging_face_cache() / f"models--{flat}"
    yield one / "blobs" / (remote.sha256 or remote.git_id)
    yield from sorted(one.glob(f"snapshots/*/{inside}"))
    cache = modelscope_cache()
    yield from sorted((cache / "models" / flat).glob(f"snapshots/*/{inside}"))
    owner, _, name = repository.partition("/")
    for folder in (cache / "models", cache / "hub" / "models", cache / "hub", cache):
        for spelling in dict.fromkeys((name.replace(".", "___"), name)):
            yield folder / owner / spelling / remote.path

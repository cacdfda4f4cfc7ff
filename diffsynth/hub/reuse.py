"""Files that are on this machine already: in the hubs' own caches, or in a folder that the user names."""

from __future__ import annotations

import errno
import glob
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from diffsynth.core.digest import remember_sha256
from diffsynth.hub.listing import RemoteFile
from diffsynth.hub.part import CHUNK, Part
from diffsynth.hub.record import is_right
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

    def find(self, remote: RemoteFile, repository: str) -> Path | None:
        """Return a file with the right bytes, its hash computed or remembered, or None.

        A hash that no hub tells is not compared, so such a file is not reused.
        """
        if remote.hash_name == "size":
            return None
        candidates = [*_in_caches(remote, repository), *self._by_size.get(remote.size, ())]
        return next((path for path in candidates if is_right(path, [remote])), None)


def take(found: Path, part: Part) -> bool:
    """Put a file that was found in its place: as a second name of the same file, or else as a copy.

    The copy is checked once more while it is made. Returns False if the file has changed meanwhile.

    Raises:
        OSError: the copy cannot be written.
    """
    source = found.resolve()
    link = part.path.with_suffix(".link.part")
    try:
        link.unlink(missing_ok=True)
        os.link(source, link)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EROFS):
            raise
        return _copy(source, part)
    if not is_right(link, [part.remote]):
        link.unlink()
        return False
    os.replace(link, part.target)
    part.restart()
    return True


def _copy(source: Path, part: Part) -> bool:
    part.restart()
    with source.open("rb") as file:
        while piece := file.read(CHUNK):
            part.append(piece)
    if part.hash() != part.remote.identity:
        part.restart()
        return False
    digest = part.hash() if part.remote.sha256 else ""
    part.finish()
    if digest:
        remember_sha256(part.target, digest)
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

"""What hubs said that repositories hold, remembered beside the models, so that a second start asks nobody.

One JSON file in the folder of downloaded models. A file is right if its size and hash are those that one of the hubs
published; what the hash of a file is, ``core.digest`` remembers.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from diffsynth.core.digest import sha256_of
from diffsynth.core.files import replacing
from diffsynth.hub.listing import RECORD, Listing, RemoteFile

logger = logging.getLogger(__name__)

CHUNK = 1 << 20


class Record:
    """The remembered listings of a folder.

    Args:
        folder: the folder of downloaded models.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / RECORD
        self._listings = self._read()

    def get(self, hub: str, repository: str, revision: str | None) -> Listing | None:
        """Return what a hub said that a repository holds, or None if it was never asked."""
        return self._listings.get(_key(hub, repository, revision))

    def put(self, hub: str, repository: str, revision: str | None, listing: Listing) -> None:
        """Remember what a hub said; a record that cannot be written only costs time later."""
        key = _key(hub, repository, revision)
        if self._listings.get(key) == listing:
            return
        self._listings = {**self._read(), key: listing}
        rows = {
            name: {file.path: [file.size, file.sha256, file.git_id] for file in each.files}
            for name, each in self._listings.items()
        }
        try:
            _sweep(self.path)
            with replacing(self.path) as temporary:
                temporary.write_text(json.dumps(rows, indent=1), "utf-8")
        except OSError as error:
            logger.info("%s cannot be written: %s", self.path, error)

    def _read(self) -> dict[str, Listing]:
        with suppress(OSError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError):
            rows = json.loads(self.path.read_text("utf-8"))
            return {
                str(name): Listing(
                    tuple(
                        RemoteFile(str(path), int(size), str(sha256), str(git_id))
                        for path, (size, sha256, git_id) in files.items()
                    )
                )
                for name, files in rows.items()
            }
        return {}


def is_right(path: Path, offers: Iterable[RemoteFile], *, again: bool = False) -> bool:
    """Return whether a file has the size and the hash of one of those that hubs offer under its name.

    Args:
        path: the file.
        offers: what it may be.
        again: read it, even if its hash is remembered.
    """
    try:
        size = path.stat().st_size if path.is_file() else -1
        return any(_hash(path, offer, again) == offer.identity for offer in offers if offer.size == size)
    except OSError:
        return False


def hash_like(path: Path, offer: RemoteFile) -> str:
    """Return the hash of a file as it is now, of the kind that a hub tells of its own.

    Raises:
        OSError: the file cannot be read.
    """
    hasher = offer.hasher()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            hasher.update(chunk)
    return hasher.hexdigest()


def _hash(path: Path, offer: RemoteFile, again: bool) -> str:
    if offer.sha256:
        return sha256_of(path, again=again)
    return hash_like(path, offer) if offer.has_hash else offer.identity  # without a hash the size has to do


def _key(hub: str, repository: str, revision: str | None) -> str:
    return f"{hub}:{repository}" + (f"@{revision}" if revision else "")


def _sweep(path: Path) -> None:
    """Remove temporary files that a process which was killed left of the record."""
    for left in path.parent.glob(f".{path.name}.*.part"):
        with suppress(OSError):
            os.unlink(left)

"""Where finished images go: files under their names, or archives; either way whole, once, and over nothing."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from PIL import Image

from diffsynth.batch.images import KEY, encoded, recipe_in
from diffsynth.batch.ledger import Finished, History
from diffsynth.batch.plan import Item, Plan, versions
from diffsynth.batch.storage import Storage
from diffsynth.errors import InvalidRequest, printable

QUALITY = 95


@dataclass(frozen=True)
class Published:
    """An image that is on the disk under its names.

    Args:
        item: what it is.
        file: as the ledger knows it.
        facts: more for the ledger, such as its place in an archive.
    """

    item: Item
    file: Finished
    facts: Mapping[str, Any]


class NameTaken(InvalidRequest):
    """Another file has the name that an image is to have.

    Args:
        where: the file.
        recipe: inside it, if it is known.
    """

    def __init__(self, where: str, recipe: Mapping[str, Any] | None = None) -> None:
        others = {name: str((recipe or {}).get(name, "")).partition("+")[0] for name in versions()}
        told = " and ".join(f"{name} {version}" for name, version in others.items())
        by = f", drawn with {printable(told)}" if recipe and others != versions() else ""
        super().__init__(
            f"{printable(where, 300)} is there already and is another image{by}, or was changed. No file is replaced: "
            "move it away, or choose another folder or other names."
        )


class Output(ABC):
    """Takes images one by one and says when they are on the disk.

    Args:
        storage: where files are.
        quality: of JPEG and WebP.

    ``history`` is what ledgers said when they were last read.
    """

    def __init__(self, storage: Storage, quality: int = QUALITY) -> None:
        self.storage = storage
        self.quality = quality
        self.history = History()

    def check(self, plan: Plan) -> None:  # noqa: B027 - files have nothing to refuse
        """Raise InvalidRequest if images of a plan cannot be kept beside one another in this form."""

    @abstractmethod
    def add(self, item: Item, image: Image.Image, facts: Mapping[str, Any]) -> list[Published]:
        """Take an image and return those that are on the disk now.

        Raises:
            NameTaken: another file has its name.
            OSError: it cannot be written.
        """

    @abstractmethod
    def end_unit(self) -> list[Published]:
        """Write what waits for the end of a unit; as ``add``."""

    @abstractmethod
    def find(self, item: Item, known: Sequence[Finished], *, verify: bool) -> list[Finished] | None:
        """Look for an image on the disk.

        Args:
            item: the image.
            known: its files, as ledgers know them.
            verify: read files and compare hashes, in place of sizes and times.

        Returns:
            None if it must be drawn; else the files that no ledger knows yet, as after a crash between the two.

        Raises:
            NameTaken: another file has its name.
            OSError: a file cannot be read.
        """

    def is_there(self, file: Finished, *, verify: bool) -> bool:
        """Whether a file is what a ledger says: by size and time, by its hash if the time differs or all is verified.

        Raises:
            NameTaken: there is another file.
        """
        name = file.files[0]
        stamp = self.storage.stamp(name)
        if stamp is None:
            return False
        same = stamp.size == file.size
        if same and (verify or stamp.mtime_ns != file.mtime_ns):
            same = self.storage.digest(name) == file.sha256
        if not same:
            raise NameTaken(self.storage.where(name))
        return True


class Files(Output):
    """Each image is a file of its own; further names of one image are links to it."""

    def add(self, item: Item, image: Image.Image, facts: Mapping[str, Any]) -> list[Published]:
        """Write an image under its names."""
        parts: dict[str, list[str]] = {}
        for name in item.names:  # of different formats, if the job says so
            parts.setdefault(_suffix(name), []).append(name)
        found = []
        for names in parts.values():
            content = encoded(image, item.key, names[0], self.quality)
            created = self.storage.create(content, names)
            for name, mine in zip(names, created, strict=True):
                if not mine:
                    self._check_holds(name, item)
            digest = hashlib.sha256(content).hexdigest() if created[0] else self.storage.digest(names[0])
            found.append(Published(item, self.storage.finished(names, digest), facts))
        return found

    def end_unit(self) -> list[Published]:
        """Nothing waits."""
        return []

    def find(self, item: Item, known: Sequence[Finished], *, verify: bool) -> list[Finished] | None:
        """Return what is new of an image whose files are there; missing names are linked to others."""
        have = {name for file in known if self.is_there(file, verify=verify) for name in self._present(file)}
        missing = [name for name in item.names if name not in have]
        if not missing:
            return []
        here = [name for name in missing if self._found(name, item)]
        adopted = []
        for suffix in dict.fromkeys(map(_suffix, missing)):
            source = next((name for name in (*here, *sorted(have)) if _suffix(name) == suffix), None)
            if source is None:
                return None
            names = [name for name in missing if _suffix(name) == suffix]
            self.storage.link(source, [name for name in names if name not in here])
            adopted.append(self.storage.finished(names, self.storage.digest(source)))
        return adopted

    def _present(self, file: Finished) -> list[str]:
        first, *more = file.files
        return [first, *(name for name in more if self.storage.stamp(name) is not None)]

    def _found(self, name: str, item: Item) -> bool:
        """Whether a file that no ledger knows is there and is an image."""
        stamp = self.storage.stamp(name)
        if stamp is None or (not stamp.size and self.storage.remove_empty(name)):
            return False
        self._check_holds(name, item)
        return True

    def _check_holds(self, name: str, item: Item) -> None:
        """Raise NameTaken unless a file is an image."""
        try:
            with self.storage.open(name) as file:
                recipe = recipe_in(file)
        except (InvalidRequest, FileNotFoundError) as error:  # a folder, a pipe, a link that leads nowhere
            raise NameTaken(self.storage.where(name)) from error
        if recipe is None or recipe.get(KEY) != item.key:
            raise NameTaken(self.storage.where(name), recipe)


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()

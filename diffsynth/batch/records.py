"""What lies in a folder of images: what its ledgers say of each, and the recipes inside them. Reads, never writes."""

from __future__ import annotations

import io
import json
import logging
import tarfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image
from typing_extensions import Self

from diffsynth.batch.images import FORMATS, recipe_of
from diffsynth.batch.ledger import PATTERN, read_lines
from diffsynth.batch.names import checked
from diffsynth.errors import InvalidRequest, listed, printable
from diffsynth.pipelines.latent_file import SUFFIX, open_latents
from diffsynth.pipelines.latent_image import LatentImage
from diffsynth.pipelines.pictures import DAMAGED, open_file, open_picture, read_picture

logger = logging.getLogger(__name__)

HOW = ("rows", "seconds", "note", "versions", "time")  # how an image was drawn; it has no part in its recipe
GONE = "it was drawn, but its file is not there any more"
SHORTEST_KEY = 6  # characters of a key that are enough to name it


@dataclass(frozen=True)
class Record:
    """An image that was asked for, drawn or not.

    Args:
        name: of its file, or in its archive; relative to the folder.
        key: of its request; empty if it is not known.
        request: every setting, pictures as their hashes; empty if they are not known.
        facts: how it was drawn: ``rows``, the images that were drawn together, ``seconds``, ``time`` and so on.
        names: further files of the same image.
        archive: the archive that it lies in, relative to the folder; None for a file.
        failure: why it could not be drawn, or that its file is gone; None if it is there.
    """

    name: str
    key: str = ""
    request: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    archive: str | None = None
    failure: str | None = None


@dataclass(frozen=True)
class Folder:
    """A folder of images.

    Args:
        path: the folder.
        records: of what was drawn or failed, sorted by name.
        starts: what ledgers say of each run that drew here, in the order of time.
    """

    path: Path
    records: tuple[Record, ...]
    starts: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read the ledgers of a folder, and the recipes of images in it and below that are in none.

        Raises:
            InvalidRequest: it is no folder, or has neither.
            OSError: it cannot be read.
        """
        path = Path(path)
        if not path.is_dir():
            raise InvalidRequest(f"{printable(path, 300)} is not a folder of images.")
        lines = [line for ledger in sorted(path.glob(PATTERN)) for line in read_lines(ledger)]
        records = [_there(path, record) for record in _of_lines(lines)]
        known = {name for record in records for name in (record.name, *record.names)}
        records += [each for each in _of_images(path, known) if each.request or not lines]
        if not records:
            raise InvalidRequest(f"{printable(path, 300)} has no images, and no ledger of a batch that tells of any.")
        runs = (line["run"] for line in lines if isinstance(line.get("run"), dict))
        starts = sorted(runs, key=lambda run: str(run.get("time")))
        return cls(path, tuple(sorted(records, key=lambda each: each.name)), tuple(starts))

    @classmethod
    def of_files(cls, paths: Iterable[Path], folder: Path = Path()) -> Self:
        """Return images of any folders, in their order, by the recipes inside them.

        Raises:
            InvalidRequest: one is no picture.
            OSError: one cannot be read.
        """
        return cls(folder, tuple(_of_file(path, folder) for path in paths))

    @cached_property
    def drawn(self) -> tuple[Record, ...]:
        """What is on the disk."""
        return tuple(record for record in self.records if record.failure is None)

    @cached_property
    def failed(self) -> tuple[Record, ...]:
        """What could not be drawn."""
        return tuple(record for record in self.records if record.failure is not None)

    def find(self, wanted: str) -> Record:
        """Return the image with a name or key; the first characters of a key are enough.

        Raises:
            InvalidRequest: there is none, there are several, or it could not be drawn.
        """
        found = [record for record in self.records if wanted in (record.name, *record.names, record.key)]
        if not found and len(wanted) >= SHORTEST_KEY:
            found = [record for record in self.records if record.key.startswith(wanted)]
        if len(found) != 1:
            named = listed(f"{each.name} ({each.key[:12] or 'no key'})" for each in found)
            which = f"fits {len(found)} images: {named}" if found else "fits no image"
            raise InvalidRequest(f"{printable(wanted)!r} {which} of {printable(self.path, 300)}; give a name or a key.")
        if found[0].failure is not None:
            raise InvalidRequest(f"{printable(wanted)} could not be drawn: {printable(found[0].failure, 300)}")
        return found[0]

    def image(self, record: Record) -> Image.Image | LatentImage:
        """Open an image.

        Raises:
            InvalidRequest: it is damaged.
            OSError: it cannot be read.
        """
        if record.archive is None:
            path = self.path / record.name
            return open_latents(path) if path.suffix.lower() == SUFFIX else open_picture(path)
        return read_picture(io.BytesIO(self._member(record.archive, record.name)), printable(record.name, 300))

    def content(self, record: Record) -> bytes:
        """Return the bytes of an image's file.

        Raises:
            InvalidRequest: it is no regular file.
            OSError: it cannot be read.
        """
        if record.archive is not None:
            return self._member(record.archive, record.name)
        with open_file(self.path / record.name) as stream:
            return stream.read()

    def recipe(self, record: Record) -> dict[str, Any] | None:
        """Return the recipe of an image, unchecked; no pixel is decoded. None if it has none or cannot be read."""
        with suppress(OSError, LookupError, *DAMAGED):
            if record.archive is None:
                return recipe_in_header(self.path / record.name)
            side = PurePosixPath(record.name).with_suffix(".json").as_posix()
            recipe = json.loads(self._member(record.archive, side))
            return recipe if isinstance(recipe, dict) else None
        return None

    def _member(self, archive: str, name: str) -> bytes:
        places = self._places.setdefault(archive, {})
        path = self.path / archive
        if not places:
            with tarfile.open(path) as tar:
                places.update({member.name: (member.offset_data, member.size) for member in tar})
        start, size = places[name]
        with path.open("rb") as file:
            file.seek(start)
            return file.read(size)

    @cached_property
    def _places(self) -> dict[str, dict[str, tuple[int, int]]]:
        return {}  # archive → name → where in it


def recipe_in_header(path: Path) -> dict[str, Any] | None:
    """Return the recipe inside an image or latents, unchecked; no pixel is decoded. None if it has none.

    Raises:
        InvalidRequest: latents are damaged.
        OSError: the file cannot be read, or is no picture.
    """
    if path.suffix.lower() == SUFFIX:
        return dict(open_latents(path).info["recipe"])
    with Image.open(path) as image:
        return recipe_of(image)


def _of_images(folder: Path, known: Collection[str]) -> Iterable[Record]:
    for path in sorted(folder.rglob("*")):
        wanted = path.suffix.lower() in FORMATS and not path.name.startswith(".")
        if wanted and path.relative_to(folder).as_posix() not in known and path.is_file():
            try:
                yield _of_file(path, folder)
            except (InvalidRequest, OSError) as error:
                logger.warning("left out: %s", error)


def _of_file(path: Path, folder: Path) -> Record:
    try:
        recipe = recipe_in_header(path) or {}
    except DAMAGED as error:
        raise InvalidRequest(f"{printable(path, 300)} is not a picture that Pillow can read.") from error
    except OSError as error:
        if error.errno is None:  # Pillow's, of a file that is no picture
            raise InvalidRequest(f"{printable(path, 300)} is not a picture that Pillow can read.") from error
        raise
    request = recipe.get("request")
    name = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
    return Record(name, str(recipe.get("key", "")), request if isinstance(request, dict) else {})


def _of_lines(lines: Sequence[Mapping[str, Any]]) -> Iterable[Record]:
    """Return one record per key; what was drawn at last is no failure any more."""
    found: dict[str, Record] = {}
    for line in lines:
        if "key" not in line:
            continue
        try:
            record = _of_line(line)
        except (TypeError, ValueError) as error:
            logger.warning("left out: a damaged line of a ledger: %s", error)
            continue
        before = found.get(record.key)
        if before is not None and before.failure is None:
            if record.failure is None and record.name != before.name:
                names = dict.fromkeys((*before.names, record.name, *record.names))
                found[record.key] = replace(before, names=tuple(name for name in names if name != before.name))
            continue
        found[record.key] = record
    return found.values()


def _of_line(line: Mapping[str, Any]) -> Record:
    if not isinstance(line["key"], str) or not isinstance(line.get("files", []), list):
        raise TypeError("key must be text, and files a list")
    files = tuple(map(checked, line.get("files", ())))
    member = line.get("member")
    names = tuple(map(checked, (member, *line.get("wanted_as", ())))) if member else files
    return Record(
        name=names[0] if names else line["key"][:12],
        key=line["key"],
        request=dict(line.get("request", {})),
        facts={name: line[name] for name in HOW if name in line},
        names=names[1:],
        archive=files[0] if member else None,
        failure=str(line["failed"]) if "failed" in line else None,
    )


def _there(folder: Path, record: Record) -> Record:
    """Return a record under a name that is there; a failure if its files were removed."""
    if record.failure is not None:
        return record
    names = [record.archive] if record.archive else [record.name, *record.names]
    here = [name for name in names if (folder / name).exists()]
    if not here:
        return replace(record, failure=GONE)
    return record if record.archive or here == names else replace(record, name=here[0], names=tuple(here[1:]))


def facts_beside(path: Path) -> Mapping[str, Any]:
    """Return how a file was drawn, if a ledger in its folder knows it; else nothing."""
    for ledger in sorted(path.parent.glob(PATTERN)):
        for line in read_lines(ledger):
            if path.name in line.get("files", ()) and "sha256" in line:
                return {name: line[name] for name in HOW if name in line}
    return {}

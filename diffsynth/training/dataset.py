"""Pictures with captions: a folder of them, or whatever a function returns; all that is bad is found at once."""

from __future__ import annotations

import csv
import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Protocol, runtime_checkable

from PIL import Image, ImageOps, UnidentifiedImageError

from diffsynth.errors import InvalidRequest, printable
from diffsynth.training.config import DataConfig

METADATA = ("metadata.jsonl", "metadata.csv")
FILE_COLUMN, TEXT_COLUMN = "file_name", "text"
MOST_PROBLEMS = 50  # that one message lists


@dataclass(frozen=True)
class Example:
    """A picture and what it shows.

    Args:
        image: RGB.
        texts: captions that say the same, such as one in each language; each step takes one of them.
    """

    image: Image.Image
    texts: tuple[str, ...]


@runtime_checkable
class Dataset(Protocol):
    """What a function named in a config returns.

    An example depends on its index and on the numbers drawn from ``rng`` only, so that a run can be repeated.
    Threads may ask for examples at the same time.
    """

    def __len__(self) -> int:
        """Return the number of examples."""

    def __getitem__(self, index: int, rng: Random, /) -> Example:
        """Return one example, 0 to ``len - 1``."""


@runtime_checkable
class Named(Protocol):
    """A dataset that can say where an example comes from."""

    def name(self, index: int) -> str:
        """Return a name for messages."""


@dataclass(frozen=True)
class Entry:
    """A line of the metadata: the picture's file, its captions, and where that is written."""

    file: Path
    texts: tuple[str, ...]
    line: int


class ImageFolder:
    """A folder of pictures with ``metadata.jsonl`` or ``metadata.csv``.

    Each line names a picture in ``file_name`` and describes it in ``text``, and in further languages in columns
    such as ``text_zh``. Transparency is laid on white.

    Args:
        folder: holds the metadata; files are named relative to it.
        languages: the columns to use; empty takes every one called ``text`` or ``text_...``.

    Raises:
        InvalidRequest: there is no metadata, or it cannot be read.
    """

    def __init__(self, folder: Path, languages: Sequence[str] = ()) -> None:
        self.folder = folder
        self.languages = tuple(languages)
        found = [folder / name for name in METADATA if (folder / name).is_file()]
        if len(found) != 1:
            what = "both of" if found else "neither of"
            raise InvalidRequest(f"{folder} has {what} {' and '.join(METADATA)}; one of them must list its pictures.")
        self.metadata = found[0]
        self.entries = [self._entry(row, line) for line, row in _rows(self.metadata)]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int, rng: Random, /) -> Example:
        """Return one example; nothing about it is random.

        Raises:
            OSError: the picture cannot be read.
            ValueError: its name leads out of the folder.
        """
        entry = self.entries[index]
        if self.folder.resolve() not in entry.file.resolve().parents:
            raise ValueError("lies outside the folder")
        return Example(read_image(entry.file), entry.texts)

    def name(self, index: int) -> str:
        """Return the line of the metadata and the picture's file."""
        entry = self.entries[index]
        return f"{self.metadata.name}, line {entry.line}, {printable(entry.file.name)}"

    def _entry(self, row: dict[str, Any], line: int) -> Entry:
        name = row.get(FILE_COLUMN)
        if not isinstance(name, str) or not name:
            raise InvalidRequest(f"{self.metadata}, line {line}: has no {FILE_COLUMN}.")
        columns = self.languages or [key for key in row if key and (key == TEXT_COLUMN or key.startswith("text_"))]
        texts = [row.get(column) for column in columns]
        return Entry(self.folder / name, tuple(text for text in texts if isinstance(text, str) and text.strip()), line)


def _rows(metadata: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the lines of a metadata file with their numbers."""
    with metadata.open(encoding="utf-8-sig", newline="") as file:
        if metadata.suffix == ".csv":
            reader = csv.DictReader(file)
            yield from ((reader.line_num, row) for row in reader)
            return
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise InvalidRequest(f"{metadata}, line {number}: is no JSON ({error}).") from error
            if not isinstance(row, dict):
                raise InvalidRequest(f"{metadata}, line {number}: is no JSON object.")
            yield number, row


def read_image(path: Path) -> Image.Image:
    """Read a picture as RGB, upright, transparency laid on white.

    Raises:
        OSError: it cannot be read.
    """
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                layer = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise OSError("there is no such file") from error
    except UnidentifiedImageError as error:
        raise OSError("no picture that Pillow can read") from error
    except (SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what its readers raise for damage
        raise OSError(f"damaged: {error}") from error


def open_dataset(config: DataConfig) -> Dataset:
    """Return the dataset that a config names.

    Raises:
        InvalidRequest: there is no such folder or function, or it returns something else.
    """
    folder = Path(config.source)
    if folder.is_dir():
        return ImageFolder(folder, config.languages)
    module, colon, name = config.source.partition(":")
    if not colon or not module:
        raise InvalidRequest(f"data.source {printable(config.source)} is neither a folder nor module:function.")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InvalidRequest(f"data.source {printable(config.source)} cannot be imported: {error}.") from error
    dataset = function(**config.arguments)
    if not isinstance(dataset, Dataset):
        raise InvalidRequest(f"{config.source} returned a {type(dataset).__name__}, which is no dataset.")
    return dataset


class Inspection:
    """Takes examples out of a dataset, and remembers what is wrong with them.

    Args:
        dataset: the data.
        too_small: width and height → what is wrong with that size, or an empty text.
        captions: whether each example needs one.
    """

    def __init__(self, dataset: Dataset, too_small: Callable[[int, int], str], *, captions: bool) -> None:
        self.dataset = dataset
        self.problems: dict[int, str] = {}
        self._too_small = too_small
        self._captions = captions

    def take(self, index: int, rng: Random) -> Example | None:
        """Return an example, or None if it cannot be used."""
        try:
            example = self.dataset.__getitem__(index, rng)
            problem = self._too_small(*example.image.size)
            if self._captions and not any(text.strip() for text in example.texts):
                problem = "has no caption"
        except (OSError, ValueError) as error:
            problem = printable(error, 200)
        if not problem:
            return example
        name = self.dataset.name(index) if isinstance(self.dataset, Named) else f"example {index}"
        self.problems.setdefault(index, f"{name}: {problem}")
        return None

    def finish(self) -> None:
        """Report.

        Raises:
            InvalidRequest: there were problems; the message names them all, up to fifty.
        """
        if not self.problems:
            return
        lines = [f"  {self.problems[index]}" for index in sorted(self.problems)]
        if len(lines) > MOST_PROBLEMS:
            lines[MOST_PROBLEMS:] = [f"  and {len(lines) - MOST_PROBLEMS} more"]
        raise InvalidRequest(
            f"{len(self.problems)} of {len(self.dataset)} examples cannot be used:\n" + "\n".join(lines)
        )

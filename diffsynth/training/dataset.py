"""Pictures with captions: a folder of them, or whatever a function returns; all that is bad is found at once."""

from __future__ import annotations

import csv
import importlib
import inspect
import json
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Protocol, TextIO, runtime_checkable

from PIL import Image, ImageOps, UnidentifiedImageError

from diffsynth.errors import InvalidRequest, listed, printable
from diffsynth.pipelines.pictures import as_rgb
from diffsynth.pipelines.request import UNKNOWN_WHITE
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

    Raises:
        TypeError: one text is given in the place of several, so that each letter would be a caption.
    """

    image: Image.Image
    texts: tuple[str, ...]

    def __post_init__(self) -> None:
        if isinstance(self.texts, str):
            raise TypeError(f"texts are several captions, such as ({self.texts!r},)")


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
    """A line of the metadata: the picture's file, its captions, where that is written, and what is wrong with it."""

    file: Path
    texts: tuple[str, ...]
    line: int
    problem: str = ""


class ImageFolder:
    """A folder of pictures with ``metadata.jsonl`` or ``metadata.csv``.

    Each line names a picture in ``file_name`` and describes it in ``text``, and in further languages in columns
    such as ``text_zh``. Transparency is laid on white.

    Args:
        folder: holds the metadata; files are named relative to it.
        languages: the columns to use; empty takes every one called ``text`` or ``text_...``.

    Raises:
        InvalidRequest: there is no metadata, or it is no table.
    """

    def __init__(self, folder: str | Path, languages: Sequence[str] = ()) -> None:
        self.folder = folder = Path(folder)
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
            ValueError: there is something wrong with its line.
        """
        entry = self.entries[index]
        if entry.problem:
            raise ValueError(entry.problem)
        return Example(read_image(entry.file), entry.texts)

    def name(self, index: int) -> str:
        """Return the line of the metadata and the picture's file."""
        entry = self.entries[index]
        line = f"{self.metadata.name}, line {entry.line}"
        return line if entry.file == self.folder else f"{line}, {printable(entry.file.name)}"

    def _entry(self, row: dict[str, Any] | str, line: int) -> Entry:
        if isinstance(row, str):
            return Entry(self.folder, (), line, row)
        name = row.get(FILE_COLUMN)
        if not isinstance(name, str) or not name:
            return Entry(self.folder, (), line, f"has no {FILE_COLUMN}")
        if os.path.isabs(name) or os.path.normpath(name).startswith(os.pardir):
            return Entry(self.folder / name, (), line, "lies outside the folder")
        columns = self.languages or [key for key in row if key and (key == TEXT_COLUMN or key.startswith("text_"))]
        texts = [row.get(column) for column in columns]
        return Entry(self.folder / name, tuple(text for text in texts if isinstance(text, str) and text.strip()), line)


def _rows(metadata: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield the lines of a metadata file with their numbers; in the place of a bad one, what is wrong with it."""
    try:
        with metadata.open(encoding="utf-8-sig", newline="") as file:
            yield from _table(metadata, file) if metadata.suffix == ".csv" else _objects(file)
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{metadata} is no text in UTF-8; save it as such.") from error
    except csv.Error as error:
        raise InvalidRequest(f"{metadata} is no table: {error}.") from error


def _table(metadata: Path, file: TextIO) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(file, skipinitialspace=True)
    columns = reader.fieldnames or [FILE_COLUMN]
    if FILE_COLUMN not in columns:
        raise InvalidRequest(f"{metadata} has no column {FILE_COLUMN}; it has {listed(columns)}.")
    for row in reader:
        yield reader.line_num, row


def _objects(file: TextIO) -> Iterator[tuple[int, dict[str, Any] | str]]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            row = f"is no JSON ({error})"
        else:
            row = row if isinstance(row, dict) else "is no JSON object"
        yield number, row


def read_image(path: Path) -> Image.Image:
    """Read a picture as RGB, upright, transparency laid on white, 16 bits brought to 8.

    Raises:
        OSError: it cannot be read.
    """
    if not path.is_file():
        raise OSError("is no file" if path.exists() else "there is no such file")
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode in UNKNOWN_WHITE:
                raise OSError(f"has values of 32 bits (mode {image.mode}), and nothing tells which of them is white")
            return as_rgb(image)
    except UnidentifiedImageError as error:
        raise OSError("no picture that Pillow can read") from error
    # what its readers raise for damage
    except (SyntaxError, ValueError, RuntimeError, EOFError, struct.error, Image.DecompressionBombError) as error:
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
    try:
        inspect.signature(function).bind(**config.arguments)
    except TypeError as error:
        raise InvalidRequest(f"data.arguments do not fit {printable(config.source)}: {error}.") from error
    except ValueError:
        pass  # a function of C that does not tell its arguments
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

"""Values as a job writes them → values as a request has them: text of a table, lists, ranges, sizes, pictures."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from diffsynth.batch.jobs import Cell, Job
from diffsynth.batch.pictures import PictureInMemory, digest_of, find_picture
from diffsynth.errors import InvalidRequest, printable

RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")
SIZE = re.compile(r"(\d+)\s*[x×]\s*(\d+)")
TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
MOST_VALUES = 1_000_000


def of_job(value: Any, kind: str, job: Job, note: Callable[[str], None]) -> Any:
    """Return a setting's value, hashable: pictures found, and text of a table read as the setting's type.

    Args:
        value: as the job has it.
        kind: the setting's type.
        job: whose folder pictures are looked for in.
        note: told why a picture cannot be used; another stands in its place then, so that the rest can be checked.
    """
    if isinstance(value, Cell):
        value = of_text(value, kind)
    if "Image" in kind:
        several = isinstance(value, (list, tuple))
        return tuple(_picture(each, job, note) for each in value) if several else _picture(value, job, note)
    value = frozen(value)
    return _as_floats(value) if "float" in kind else value


def _as_floats(value: Any) -> Any:
    """Return whole numbers as floats: 2 and 2.0 are one image, with one key."""
    if isinstance(value, tuple):
        return tuple(map(_as_floats, value))
    return float(value) if type(value) is int and abs(value) < 2**53 else value


def of_text(text: str, kind: str) -> Any:
    """Return text as a value of a type; text that is none stays text, which the request then refuses by name.

    Args:
        text: of a table's cell or of the command line.
        kind: a field's type; lists are written ``[1, 2]`` or ``1; 2``.
    """
    text = text.strip() if "str" not in kind else str(text)
    try:
        if kind.startswith("tuple["):
            inner = kind.removeprefix("tuple[").partition(",")[0]
            parts = json.loads(text) if text.startswith("[") else [part.strip() for part in text.split(";")]
            return tuple(of_text(part, inner) if isinstance(part, str) else part for part in parts)
        if "bool" in kind:
            return TRUTH.get(text.lower(), text)
        if "int" in kind:
            return int(text)
        if "float" in kind:
            return float(text)
    except (ValueError, RecursionError):
        return text
    return text


def listed_values(name: str, values: Any, kind: str) -> list[Any]:
    """Return the values of a sweep: a list as it is; of text its parts between commas, each perhaps a range ``0..9``.

    Raises:
        InvalidRequest: there are none, or too many.
    """
    if isinstance(values, str) and values.lstrip().startswith("["):
        try:
            values = json.loads(values)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"sweep over {name}: {printable(error)}.") from error
    if isinstance(values, str):
        values = [part.strip() for part in values.split(",")]
    if not isinstance(values, (list, tuple)) or not values:
        raise InvalidRequest(f"sweep over {name}: give a list of values, not {printable(repr(values))}.")
    return [value for each in values for value in _ranged(name, each, kind)]


def _ranged(name: str, value: Any, kind: str) -> Sequence[Any]:
    if not isinstance(value, str):
        return [value]
    if "int" in kind and (ends := RANGE.fullmatch(value)):
        first, last = int(ends[1]), int(ends[2])
        if not 0 <= last - first < MOST_VALUES:
            raise InvalidRequest(f"sweep over {name}: {value} is no range of 1 to {MOST_VALUES:,} numbers.")
        return range(first, last + 1)
    return [of_text(value, kind)]


def size_of(value: Any) -> dict[str, int]:
    """Return the width and height of a size such as 768x512.

    Raises:
        InvalidRequest: it is none.
    """
    found = SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        raise InvalidRequest(f"size must be WIDTHxHEIGHT, such as 768x512, not {printable(repr(value))}.")
    return {"width": int(found[1]), "height": int(found[2])}


def frozen(value: Any) -> Any:
    """Return lists as tuples, so that equal settings are found in a dictionary."""
    if isinstance(value, (list, tuple)):
        return tuple(frozen(each) for each in value)
    if isinstance(value, dict):
        return tuple((name, frozen(each)) for name, each in value.items())
    return value


def _picture(value: Any, job: Job, note: Callable[[str], None]) -> Any:
    if isinstance(value, (str, Path)):
        try:
            return find_picture(value, job.folder, confined=job.confined)
        except InvalidRequest as error:
            note(str(error))
        except OSError as error:
            note(f"{printable(value)} cannot be read: {error.strerror}.")
        return PictureInMemory("", Image.new("RGB", (64, 64)))
    if hasattr(value, "convert") or hasattr(value, "latent_scale"):
        return PictureInMemory(digest_of(value), value)
    return frozen(value)

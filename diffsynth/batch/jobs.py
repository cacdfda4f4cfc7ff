"""Read a job: rows of settings from JSON lines, a table, plain prompts, or Python objects.

A row has the names of ``pipe(...)``, those of other libraries too, and besides:

- ``file``: the name of its image.
- ``size``: WIDTHxHEIGHT, in place of ``width`` and ``height``.
- ``num_images_per_prompt``: image k has the row's seed plus k.
- ``sweep``: an object of lists, of which every combination is drawn.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from diffsynth.errors import InvalidRequest, printable
from diffsynth.pipelines.request import ImageRequest

Rows: TypeAlias = Iterable[ImageRequest | Mapping[str, Any]]

SUFFIXES = (".jsonl", ".csv", ".txt")
MOST_PROBLEMS = 200
NUMBERED = re.compile(r"(?:, line|^request) (\d+)$")


class Row(NamedTuple):
    """One row of a job.

    Args:
        number: from 0.
        where: file and line, for messages.
        settings: by name; from a table all of them are text.
    """

    number: int
    where: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Job:
    """All rows of a job, as they were written.

    Args:
        rows: in order.
        folder: that pictures and lists of words are looked for in.
        confined: whether they must lie inside it.
    """

    rows: tuple[Row, ...]
    folder: Path
    confined: bool


class Problems:
    """Collects all that is wrong, to report it together."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], None] = {}

    def add(self, where: str, problem: str) -> None:
        """Take note of a problem; one that is known already is told once."""
        self._found.setdefault((where, problem))

    def __bool__(self) -> bool:
        return bool(self._found)

    def refuse(self, what: str) -> None:
        """Raise InvalidRequest with all problems, if there are any, in the order of lines."""
        if self._found:
            found = sorted(self._found, key=lambda each: _line_number(each[0]))
            lines = [": ".join(each) for each in found] if len(found) <= MOST_PROBLEMS else _first_of_each(found)
            more = [f"… and {len(lines) - MOST_PROBLEMS} more"] if len(lines) > MOST_PROBLEMS else []
            shown = "".join(f"\n  {line}" for line in (*lines[:MOST_PROBLEMS], *more))
            raise InvalidRequest(f"{what}, {len(found)} {'problem' if len(found) == 1 else 'problems'}:{shown}")


def _line_number(where: str) -> int:
    found = NUMBERED.search(where)
    return int(found[1]) if found else 0


def _first_of_each(found: Sequence[tuple[str, str]]) -> list[str]:
    """Return a line for each problem, though many rows have it."""
    counts = Counter(problem for _, problem in found)
    first = {problem: where for where, problem in reversed(found)}
    lines = ((first[problem], problem, count - 1) for problem, count in counts.items())
    return [f"{where}: {problem}" + (f" So in {more:,} rows more." if more else "") for where, problem, more in lines]


def read_job(source: str | Path | Rows) -> Job:
    """Read a job.

    Args:
        source: a .jsonl file (an object per line), a .csv file with a header, a .txt file with a prompt per line, all
            in UTF-8; or requests and mappings.

    Raises:
        InvalidRequest: lines cannot be read; all of them are named.
        OSError: the file cannot be read.
    """
    if not isinstance(source, (str, Path)):
        if not isinstance(source, Iterable):
            raise InvalidRequest(f"a job is a file, or a list of requests, not {printable(repr(source))}.")
        return Job(tuple(_of_objects(source)), Path.cwd(), confined=False)
    path = Path(source)
    readers = {".jsonl": _of_json_lines, ".csv": _of_table, ".txt": _of_prompts}
    if path.suffix.lower() not in readers:
        raise InvalidRequest(f"{printable(path, 300)}: a job is a file ending in {', '.join(SUFFIXES)}.")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"{printable(path, 300)} is not UTF-8 text: {error.reason} at byte {error.start}. Save it as UTF-8."
        ) from error
    if "\0" in text:  # as UTF-16 has
        raise InvalidRequest(f"{printable(path, 300)} is not UTF-8 text: it has zero bytes. Save it as UTF-8.")
    problems = Problems()
    rows = tuple(readers[path.suffix.lower()](path, text, problems))
    problems.refuse(f"{printable(path, 300)} cannot be read")
    if not rows:
        raise InvalidRequest(f"{printable(path, 300)} holds no rows; nothing to draw.")
    return Job(rows, path.absolute().parent, confined=True)


def _of_json_lines(path: Path, text: str, problems: Problems) -> Iterator[Row]:
    number, decode = 0, json.JSONDecoder(object_pairs_hook=_once).decode
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        where = f"{path.name}, line {line}"
        try:
            settings = decode(content)
        except (ValueError, RecursionError) as error:
            problems.add(where, f"is not JSON: {printable(error)}.")
            continue
        if isinstance(settings, dict):
            yield Row(number, where, settings)
        else:
            problems.add(where, "is not a JSON object.")
        number += 1


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _of_table(path: Path, text: str, problems: Problems) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)  # else a quote that is not closed takes all rows
    try:
        columns = [name.strip() for name in next(reader, [])]
        if len(set(columns)) < len(columns):
            problems.add(f"{path.name}, line 1", "two columns have the same name.")
        rows = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        problems.add(f"{path.name}, line {reader.line_num}", f"is no row of a table: {printable(error)}.")
        return
    for number, (line, cells) in enumerate(rows):
        where = f"{path.name}, line {line}"
        if len(cells) > len(columns):
            problems.add(where, f"has {len(cells)} cells for {len(columns)} columns.")
        yield Row(number, where, {name: Cell(cell) for name, cell in zip(columns, cells, strict=False) if cell.strip()})


class Cell(str):
    """Text of a table, which may mean a number or a list."""

    __slots__ = ()


def _of_prompts(path: Path, text: str, problems: Problems) -> Iterator[Row]:
    lines = ((line, content.strip()) for line, content in enumerate(re.split("\r\n|\r|\n", text), 1))
    kept = ((line, content) for line, content in lines if content)
    for number, (line, content) in enumerate(kept):
        yield Row(number, f"{path.name}, line {line}", {"prompt": content})


def _of_objects(objects: Rows) -> Iterator[Row]:
    for number, each in enumerate(objects):
        where = f"request {number + 1}"
        if isinstance(each, ImageRequest):
            fields = each.settings()
            given = {name: getattr(each, name) for name in fields}
            yield Row(number, where, {name: value for name, value in given.items() if _differs(value, fields[name])})
        elif isinstance(each, Mapping) and all(isinstance(name, str) for name in each):
            yield Row(number, where, each)
        else:
            raise InvalidRequest(
                f"{where} is neither a request nor a mapping of settings, but {printable(repr(each))}."
            )


def _differs(value: Any, field: Any) -> bool:
    return value is not field.default and (hasattr(value, "convert") or value != field.default)

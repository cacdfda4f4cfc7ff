"""Images of a folder → contact sheets, and plots with a setting on each axis; what is not drawn yet is known."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Any

from PIL import Image

from diffsynth.batch.records import Folder, Record
from diffsynth.batch.sheet import CELL, Cell, Sheet
from diffsynth.batch.values import listed_values
from diffsynth.errors import InvalidRequest, listed, printable
from diffsynth.pipelines.differences import Effect, differences
from diffsynth.pipelines.latent_image import LatentImage
from diffsynth.pipelines.request import ALIASES, check_range

COLUMNS = 6
MOST_SHARED = 400  # characters of a title
OF_RECIPES = ("model", "lora", "conventions", "dtype", "device", "diffsynth", "torch", "pipeline")  # what is no setting
FILE = "file"


@dataclass(frozen=True)
class Axis:
    """A setting and the values that are shown, in order.

    Args:
        name: of the setting, or one of ``OF_RECIPES``.
        values: the headings, as plain values.
    """

    name: str
    values: tuple[Any, ...]


ONE = Axis("", (None,))


@dataclass(frozen=True)
class Plot:
    """Which image is in which place.

    Args:
        folder: where they lie.
        pages: of the plot; ``ONE`` if there is a single page.
        down: what differs from row to row, likewise.
        across: what differs from column to column.
        places: (page, row, column) → image; what is missing is not drawn, or failed.
        others: settings that differ too, without being shown.
        kept: all images that fit, with these values or others.
    """

    folder: Folder
    pages: Axis
    down: Axis
    across: Axis
    places: Mapping[tuple[int, int, int], Record]
    others: tuple[str, ...]
    kept: tuple[Record, ...]

    def missing(self) -> Iterator[dict[str, Any]]:
        """Yield the settings of each place without an image, those of the axes only."""
        for page, first in enumerate(self.pages.values):
            for row, second in enumerate(self.down.values):
                for column, third in enumerate(self.across.values):
                    if not self.is_drawn(page, row, column):
                        named = {self.pages.name: first, self.down.name: second, self.across.name: third}
                        yield {name: value for name, value in named.items() if name}

    def is_drawn(self, page: int, row: int, column: int) -> bool:
        """Whether there is an image in a place."""
        record = self.places.get((page, row, column))
        return record is not None and record.failure is None

    def sheets(self, cell: int | None = None, font: Path | None = None) -> Iterator[Sheet]:
        """Yield the sheet of every page.

        Args:
            cell: pixels of the longer side of an image; by default its own, at most 256.
            font: a file to write with.

        Raises:
            InvalidRequest, OSError: the first image cannot be read.
        """
        drawn = next((record for record in self.places.values() if record.failure is None), None)
        size = cell_size(self.folder, drawn, cell)
        for number, value in enumerate(self.pages.values):
            rows = [
                [self._cell(number, row, column) for column in range(len(self.across.values))]
                for row in range(len(self.down.values))
            ]
            lacking = sum(cell.open is None for row in rows for cell in row)
            notes = [f"{lacking} of {sum(map(len, rows))} are not drawn."] if lacking else []
            notes += [f"Not shown, but different from image to image: {', '.join(self.others)}."] if self.others else []
            yield Sheet(
                rows,
                columns=[label(each) for each in self.across.values],
                sides=[label(each) for each in self.down.values] if self.down is not ONE else (),
                title=f"{self.pages.name}: {label(value)}" if self.pages is not ONE else self._title(),
                across=self.across.name,
                down=self.down.name,
                note=" ".join(notes),
                cell=size,
                font=font,
            )

    def _title(self) -> str:
        prompts = {record.request.get("prompt") for record in self.places.values()}
        shown = "prompt" not in (self.across.name, self.down.name) and len(prompts) == 1
        return printable(prompts.pop(), MOST_SHARED) if shown else ""

    def _cell(self, page: int, row: int, column: int) -> Cell:
        record = self.places.get((page, row, column))
        if record is None:
            return Cell(None, "not drawn")
        if record.failure is not None:
            return Cell(None, printable(record.failure, 200))
        return Cell(partial(_open, self.folder, record))


def make_plot(
    folder: Folder,
    x: str,
    y: str | None = None,
    pages: str | None = None,
    where: Mapping[str, str] | None = None,
    *,
    empty: bool = False,
) -> Plot:
    """Find the image of every combination of values.

    Args:
        folder: the images.
        x: what differs from column to column: a setting, or one of ``OF_RECIPES``; ``NAME=VALUES`` says which values
            are shown and in which order, such as ``cfg_scale=2,5,8`` or ``seed=0..9``; else all that there are.
        y: what differs from row to row, likewise.
        pages: what differs from page to page, likewise.
        where: setting → the value that images must have to be shown.
        empty: whether there need not be an image in any place.

    Raises:
        InvalidRequest: there is no such setting, several images fit one place, or none fits any.
    """
    values = Values(folder)
    known = [record for record in folder.records if record.request]
    _check_named(where or {}, known)
    kept = [record for record in known if _fits(values, record, where or {})]
    if not kept:
        fits = f" and fits {_told(where)}" if where else ""
        raise InvalidRequest(f"no image of {printable(folder.path, 300)} has a recipe{fits}.")
    axes = [ONE if text is None else _axis(text, values, kept) for text in (pages, y, x)]
    names = [axis.name for axis in axes if axis is not ONE]
    if len(set(names)) < len(names):
        raise InvalidRequest(f"{names[-1]} is on two axes; each needs a setting of its own.")
    places: dict[tuple[int, int, int], Record] = {}
    for record in kept:
        try:
            place = tuple(axis.values.index(values.of(record, axis.name) if axis.name else None) for axis in axes)
        except ValueError:
            continue  # a value that is not shown
        page, row, column = place
        before = places.setdefault((page, row, column), record)
        if before is not record and before.failure is not None:
            places[page, row, column] = record
        elif before is not record and record.failure is None:
            _check_same(
                values,
                before,
                record,
                {axis.name: axis.values[at] for axis, at in zip(axes, place, strict=True) if axis.name},
            )
    if not places and not empty:
        raise InvalidRequest("no image has one of the values that are to be shown; see what there is without =VALUES.")
    others = tuple(_differing(list(places.values()) or kept, names))
    return Plot(folder, axes[0], axes[1], axes[2], places, others, tuple(kept))


class Values:
    """Reads settings of images, from ledgers as far as these tell, else from recipes, each read once."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._recipes: dict[str, Mapping[str, Any]] = {}

    def of(self, record: Record, name: str) -> Any:
        """Return a value that can be compared with ``==``; None for one that an image does not have."""
        if name == FILE:
            return record.name
        if name in record.request or name not in OF_RECIPES:
            return record.request.get(name)
        return of_recipe(self.recipe(record), name)

    def recipe(self, record: Record) -> Mapping[str, Any]:
        """Return the recipe of an image; only its request, if there is no more."""
        if record.name not in self._recipes:
            self._recipes[record.name] = self._folder.recipe(record) or {"request": record.request}
        return self._recipes[record.name]


def of_recipe(recipe: Mapping[str, Any], name: str) -> Any:
    """Return one of ``OF_RECIPES``: of a network the first, which is the denoiser."""
    models, loras = recipe.get("models") or [], recipe.get("adapters") or []
    if name == "model":
        return PurePath(models[0]["path"]).name if models else None
    if name == "lora":
        return ", ".join(f"{PurePath(each['path']).stem}={each.get('scale', 1)}" for each in loras) or "none"
    if name in ("dtype", "device"):
        return models[0].get(name) if models else None
    return recipe.get(name)


def _axis(text: str, values: Values, records: Sequence[Record]) -> Axis:
    name, equals, listing = text.partition("=")
    name = setting_named(name)
    found = dict.fromkeys(_key(values.of(record, name)) for record in records)
    there = [json.loads(key) for key in found]
    _check_named([name], records)
    if there == [None] and not equals:
        raise InvalidRequest(f"no image has a value of {name}; choose another setting, or give values: {name}=VALUES.")
    if equals:
        return Axis(name, tuple(_parsed(each, there) for each in listed_values(name, listing, "int")))
    numbers = all(isinstance(each, (int, float)) for each in there)
    return Axis(name, tuple(sorted(there) if numbers else there))


def _check_named(names: Iterable[str], records: Sequence[Record]) -> None:
    known = {name for record in records for name in record.request}
    for name in map(setting_named, names):
        if records and name not in (*known, *OF_RECIPES, FILE):
            raise InvalidRequest(
                f"no image has a setting {printable(name)!r}; there are: {listed((*sorted(known), *OF_RECIPES), 60)}."
            )


def setting_named(name: str) -> str:
    """Return a setting's own name for what is written on a command line."""
    name = name.strip().replace("-", "_")
    return ALIASES.get(name, name)


def _parsed(value: Any, like: Sequence[Any]) -> Any:
    """Return a value that was written as text as one of the values that there are, or as a number."""
    if isinstance(value, str):
        if any(str(each) == value or label(each) == value for each in like):
            return next(each for each in like if value in (str(each), label(each)))
        try:
            return float(value)
        except ValueError:
            return value
    return next((each for each in like if each == value or str(each) == str(value)), value)


def _fits(values: Values, record: Record, where: Mapping[str, str]) -> bool:
    for name, value in where.items():
        has = values.of(record, setting_named(name))
        if value not in (str(has), label(has)) and _parsed(value, [has]) != has:
            return False
    return True


def _check_same(values: Values, one: Record, two: Record, place: Mapping[str, Any]) -> None:
    """Raise InvalidRequest unless two images of one place were drawn in the same way."""
    names = _differing([one, two], list(place))
    if not names:
        found = differences(values.recipe(one), values.recipe(two)) if one.request and two.request else []
        if not (others := [each.name for each in found if each.effect is Effect.IMAGE]):
            return
        how = f"they differ in {' and '.join(others)}. Choose with --where model=NAME or lora=NAME."
    else:
        how = f"they differ in {' and '.join(names)}. Choose with --where {names[0]}=VALUE, or give --pages {names[0]}."
    where = " and ".join(f"{name} {label(value)}" for name, value in place.items())
    raise InvalidRequest(f"{one.name} and {two.name} both have {where}: {how}")


def _differing(records: Sequence[Record], shown: Sequence[str]) -> list[str]:
    """Return the settings that are not the same in all records, without those that are shown."""
    names = dict.fromkeys(name for record in records for name in record.request)
    return [
        name for name in names if name not in shown and len({_key(record.request.get(name)) for record in records}) > 1
    ]


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _told(where: Mapping[str, str]) -> str:
    return " and ".join(f"{name}={printable(value)}" for name, value in where.items()) or "anything"


def label(value: Any) -> str:
    """Return a value as headings and captions show it."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping) and "size" in value:
        return f"{'x'.join(map(str, value['size']))} {str(value.get('sha256') or value.get('latents_sha256'))[:8]}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(label, value)) or "none"
    return "none" if value is None or value == "" else printable(value, 300)


def contact_sheet(
    folder: Folder,
    *,
    columns: int = COLUMNS,
    cell: int | None = None,
    captions: Sequence[str] | None = None,
    where: Mapping[str, str] | None = None,
    font: Path | None = None,
) -> Sheet:
    """Lay images out in rows, with captions of what is not the same in all of them.

    Args:
        folder: the images.
        columns: images in a row.
        cell: pixels of the longer side of an image; by default its own, at most 256.
        captions: settings that captions show, in place of those that differ; ``file`` is its name.
        where: setting → the value that images must have to be shown.
        font: a file to write with.

    Raises:
        InvalidRequest: no image fits.
    """
    check_range("columns", columns, 1, 1000, whole=True)
    values = Values(folder)
    for named in (where or {}, captions or ()):
        _check_named(named, [record for record in folder.drawn if record.request])
    records = [record for record in folder.drawn if _fits(values, record, where or {})]
    if not records:
        fits = f"fits {_told(where)}" if where else "was drawn"
        raise InvalidRequest(f"no image of {printable(folder.path, 300)} {fits}.")
    names = [setting_named(name) for name in captions] if captions else _differing(records, ()) or [FILE]
    cells = [Cell(partial(_open, folder, record), _caption(values, record, names)) for record in records]
    prompts = {record.request.get("prompt") for record in records}
    title = prompts.pop() if len(prompts) == 1 and "prompt" not in names else None
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    size = cell_size(folder, records[0], cell)
    return Sheet(rows, title=printable(title, MOST_SHARED) if title else "", cell=size, font=font)


def _caption(values: Values, record: Record, names: Sequence[str]) -> str:
    if not record.request:
        return record.name
    found = {name: label(values.of(record, name)) for name in names}
    bare = ("prompt", FILE)
    return ", ".join(text if name in bare or len(names) == 1 else f"{name} {text}" for name, text in found.items())


def cell_size(folder: Folder, record: Record | None, longest: int | None) -> tuple[int, int]:
    """Return the (width, height) that images are fitted into, in the shape of one of them."""
    if longest is not None:
        check_range("cell", longest, 16, 16384, whole=True)
    if record is None:
        return (longest or CELL,) * 2
    width, height = _open(folder, record).size
    scale = (longest or min(CELL, max(width, height))) / max(width, height)
    return max(16, round(width * scale)), max(16, round(height * scale))


def _open(folder: Folder, record: Record) -> Image.Image:
    image = folder.image(record)
    if isinstance(image, LatentImage):
        raise InvalidRequest(f"{printable(record.name, 300)} holds latents; only pictures are laid out in sheets.")
    return image

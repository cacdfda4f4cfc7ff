"""Contact sheets: pictures in rows and columns with their captions, headings and notes, as one picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw

from diffsynth.errors import InvalidRequest
from diffsynth.pipelines.lettering import Lettering
from diffsynth.pipelines.pictures import MOST_PIXELS
from diffsynth.pipelines.request import check_range

CELL = 256  # pixels of the longer side of a picture, unless that is chosen
GAP, MARGIN = 10, 16
LETTER, SMALL = 15, 13
CAPTION_LINES, HEADING_LINES = 3, 3
INK, PALE, HATCH, PAPER = "#1c1f23", "#6b7178", "#d4d8dd", "white"
MOST_ROW_HEADING = 220  # pixels


@dataclass(frozen=True)
class Cell:
    """One place of a sheet.

    Args:
        open: returns its picture; None leaves the place hatched.
        caption: written under it, or inside it if there is no picture.
    """

    open: Callable[[], Image.Image] | None
    caption: str = ""


@dataclass(frozen=True)
class Sheet:
    """What is on a sheet; ``draw`` makes the picture.

    Args:
        rows: of cells; a row may be shorter than others.
        columns: headings of the columns, or none.
        sides: headings of the rows, or none.
        title: above everything.
        across: what the columns are, above their headings.
        down: what the rows are, above theirs.
        note: below everything.
        cell: (width, height) that pictures are fitted into, in pixels.
        font: a file to write with; see ``Lettering``.
    """

    rows: Sequence[Sequence[Cell]]
    columns: Sequence[str] = ()
    sides: Sequence[str] = ()
    title: str = ""
    across: str = ""
    down: str = ""
    note: str = ""
    cell: tuple[int, int] = (CELL, CELL)
    font: Path | None = None

    def draw(self) -> Image.Image:
        """Return the sheet.

        Raises:
            InvalidRequest: it would have more than 64 million pixels, or a picture cannot be opened.
            OSError: a picture cannot be read.
        """
        return _Layout(self).draw()


class _Layout:
    """Where everything is on a sheet, in pixels."""

    def __init__(self, sheet: Sheet) -> None:
        check_range("cell", min(sheet.cell), 16, 16384, whole=True)
        self.sheet = sheet
        self.letters, self.small = Lettering(LETTER, sheet.font), Lettering(SMALL, sheet.font)
        self.count = max(len(row) for row in sheet.rows)
        width, height = sheet.cell
        labels = [*sheet.sides, sheet.down]
        self.side = 0
        if sheet.sides:
            self.side = GAP + round(min(max(map(self.letters.width, labels)), MOST_ROW_HEADING))
        self.width = 2 * MARGIN + self.side + self.count * (width + GAP) - GAP
        self._check(self.width, len(sheet.rows) * height)
        self.title = self._lines(self.letters, sheet.title, self.width - 2 * MARGIN)
        self.note = self._lines(self.small, sheet.note, self.width - 2 * MARGIN)
        self.heads = [self._lines(self.letters, text, width, HEADING_LINES) for text in sheet.columns]
        self.captions = [
            [self._lines(self.small, cell.caption if cell.open else "", width, CAPTION_LINES) for cell in row]
            for row in sheet.rows
        ]
        captioned = max((len(lines) for row in self.captions for lines in row), default=0)
        self.down = height + captioned * self.small.line + (4 if captioned else 0) + GAP
        self.top = MARGIN + len(self.title) * self.letters.line + (GAP if self.title else 0)
        self.first = self.top + max(map(len, self.heads), default=0) * self.letters.line
        self.first += (self.letters.line if sheet.across or sheet.down else 0) + (4 if self.heads else 0)
        self.height = self.first + len(sheet.rows) * self.down - GAP + MARGIN + len(self.note) * self.small.line
        self._check(self.width, self.height)

    @staticmethod
    def _lines(letters: Lettering, text: str, width: int, most: int | None = 6) -> list[str]:
        return letters.lines(text, width, most) if text else []

    @staticmethod
    def _check(width: int, height: int) -> None:
        if width * height > MOST_PIXELS:
            raise InvalidRequest(
                f"the sheet would have {width} x {height} pixels; at most {MOST_PIXELS:,} are drawn. "
                "Choose smaller cells (--cell), fewer images, or another setting for pages (--pages)."
            )

    def draw(self) -> Image.Image:
        page = Image.new("RGB", (self.width, self.height), PAPER)
        pen = ImageDraw.Draw(page)
        self._write(pen, self.letters, (MARGIN, MARGIN), self.title, INK)
        left = MARGIN + self.side
        heading = self.top
        if self.sheet.across or self.sheet.down:
            self.letters.write(pen, (left, heading), self.sheet.across, PALE)
            self._write(pen, self.letters, (MARGIN, self.first - self.letters.line - 4), [self.sheet.down], PALE)
            heading += self.letters.line
        for column, lines in enumerate(self.heads):
            self._write(pen, self.letters, (left + column * (self.sheet.cell[0] + GAP), heading), lines, INK)
        for row, cells in enumerate(self.sheet.rows):
            y = self.first + row * self.down
            if row < len(self.sheet.sides):
                lines = self.letters.lines(self.sheet.sides[row], self.side - GAP, 8)
                self._write(pen, self.letters, (MARGIN, y), lines, INK)
            for column, cell in enumerate(cells):
                x = left + column * (self.sheet.cell[0] + GAP)
                self._cell(page, pen, (x, y), cell)
                self._write(pen, self.small, (x, y + self.sheet.cell[1] + 4), self.captions[row][column], PALE)
        note = self.height - MARGIN // 2 - len(self.note) * self.small.line
        self._write(pen, self.small, (MARGIN, note), self.note, PALE)
        return page

    def _cell(self, page: Image.Image, pen: ImageDraw.ImageDraw, place: tuple[int, int], cell: Cell) -> None:
        width, height = self.sheet.cell
        if cell.open is None:
            page.paste(_hatched(width, height), place)
            lines = self.small.lines(cell.caption, width - 2 * GAP, max((height - GAP) // self.small.line, 1))
            self._write(pen, self.small, (place[0] + GAP, place[1] + GAP), lines if cell.caption else [], INK)
            return
        picture = fitted(cell.open(), width, height)
        page.paste(picture, (place[0] + (width - picture.width) // 2, place[1] + (height - picture.height) // 2))

    @staticmethod
    def _write(
        pen: ImageDraw.ImageDraw, letters: Lettering, place: tuple[int, int], lines: Sequence[str], fill: str
    ) -> None:
        for number, line in enumerate(lines):
            letters.write(pen, (place[0], place[1] + number * letters.line), line, fill)


def fitted(picture: Image.Image, width: int, height: int) -> Image.Image:
    """Return a picture on white, as large as fits into a width and height, its shape kept."""
    if picture.has_transparency_data:
        clear = picture.convert("RGBA")
        picture = Image.new("RGBA", clear.size, PAPER)
        picture.alpha_composite(clear)
    scale = min(width / picture.width, height / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.convert("RGB")
    return picture if size == picture.size else picture.resize(size, Image.Resampling.LANCZOS)


@cache
def _hatched(width: int, height: int) -> Image.Image:
    page = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(page)
    for start in range(-height, width, 12):
        pen.line([(start, height), (start + height, 0)], fill=HATCH)
    pen.rectangle([(0, 0), (width - 1, height - 1)], outline=HATCH)
    return page

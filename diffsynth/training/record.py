"""What a run leaves to read: run.json, loss.csv with its plot, sample sheets."""

from __future__ import annotations

import csv
import json
import logging
import platform
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from diffsynth import __version__
from diffsynth.core.files import replacing
from diffsynth.errors import InvalidRequest
from diffsynth.training.changes import changes, told
from diffsynth.training.job import Samples

logger = logging.getLogger(__name__)

PACKAGES = ("torch", "transformers", "tokenizers", "sentencepiece", "safetensors", "pillow", "numpy")
RUN, LOSS, PLOT, FIGURES, SHEETS = "run.json", "loss.csv", "loss.png", "samples.csv", "samples"


class Record:
    """Writes the record of a run.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def changed(self, facts: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Return what the run depends on that has other values now: the one before, and the one now."""
        return changes(self._read(), json.loads(json.dumps({**facts, "versions": versions()})))

    def begin(self, step: int, facts: Mapping[str, Any]) -> None:
        """Write run.json: what the run is, and each time it was started, with what had changed if it went on.

        Rows of steps that are done again are cut off the tables.

        Args:
            step: steps that are done already.
            facts: what the run depends on.
        """
        for name in (LOSS, FIGURES):
            _cut(self.folder / name, step)
        start: dict[str, Any] = {"time": datetime.now(timezone.utc).isoformat(timespec="seconds"), "from_step": step}
        if step and (changed := self.changed(facts)):
            logger.warning("going on with other settings or data than before: %s", told(changed))
            start["changed"] = changed
        content = {**facts, "versions": versions(), "starts": [*self._read().get("starts", []), start]}
        with replacing(self.folder / RUN) as temporary:
            temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")

    def _read(self) -> dict[str, Any]:
        """Return the content of run.json; nothing, if it is not there."""
        path = self.folder / RUN
        if not path.is_file():
            return {}
        try:
            content: dict[str, Any] = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise InvalidRequest(f"{path} is damaged: {error}. Remove it to go on without what it tells.") from error
        return content

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Add a row to loss.csv; ``step`` counts the steps done."""
        _append(self.folder / LOSS, {"step": step, **values})

    def plot(self) -> None:
        """Draw loss.png from loss.csv."""
        path = self.folder / LOSS
        if not path.is_file():
            return
        with path.open(newline="") as file:
            rows = [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]
        with replacing(self.folder / PLOT) as temporary:
            plot([step for step, _ in rows], [loss for _, loss in rows]).save(temporary, "PNG")

    def samples(self, step: int, samples: Samples) -> None:
        """Write a sample sheet, and its figures to samples.csv."""
        with replacing(self.folder / SHEETS / f"step-{step:06d}.png") as temporary:
            samples.sheet.save(temporary, "PNG")
        if samples.figures:
            _append(self.folder / FIGURES, {"step": step, **samples.figures})


def versions() -> dict[str, str]:
    """Return versions of what a result depends on."""
    found = {"diffsynth": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found | {"threads": str(torch.get_num_threads())}


def _append(path: Path, row: Mapping[str, float]) -> None:
    """Add a row to a table, with the names of its columns if it is the first; new columns come last."""
    columns = _columns(path)
    if columns and (more := [name for name in row if name not in columns]):
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        columns += more
        with replacing(path) as temporary, temporary.open("w", newline="") as file:
            table = csv.DictWriter(file, columns, restval="")
            table.writeheader()
            table.writerows(rows)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns or list(row), restval="")
        if not columns:
            writer.writeheader()
        writer.writerow({name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()})


def _columns(path: Path) -> list[str]:
    """Return the names of a table's columns; none, if there is no table."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return next(csv.reader(file), [])


def _cut(path: Path, step: int) -> None:
    """Keep the rows of a table up to a step; a last line that was not finished goes too."""
    if not path.is_file():
        return
    head, *rows = path.read_text().splitlines(keepends=True) or [""]
    kept = [
        row for row in rows if row.endswith("\n") and row.split(",")[0].isdigit() and int(row.split(",")[0]) <= step
    ]
    with replacing(path) as temporary:
        temporary.write_text("".join([head, *kept]) if kept else "")


def sheet(rows: Sequence[Sequence[Image.Image]], *, gap: int = 4) -> Image.Image:
    """Lay pictures of one size out in rows on white."""
    width, height = (max(getattr(image, side) for row in rows for image in row) for side in ("width", "height"))
    columns = max(len(row) for row in rows)
    page = Image.new("RGB", (columns * (width + gap) + gap, len(rows) * (height + gap) + gap), "white")
    for top, row in enumerate(rows):
        for left, image in enumerate(row):
            page.paste(image, (gap + left * (width + gap), gap + top * (height + gap)))
    return page


def plot(steps: Sequence[int], losses: Sequence[float], *, width: int = 800, height: int = 400) -> Image.Image:
    """Draw a loss curve, pale each step's and dark a running mean; the axis is logarithmic."""
    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)
    values = torch.tensor(losses, dtype=torch.float64).clamp_min(1e-12).log10()
    values = values[values.isfinite()]
    if len(values) < 2 or len(values) != len(steps):
        return page
    left, right, top, bottom = 60, width - 20, 20, height - 30
    ordered = sorted(values.tolist())
    low, high = ordered[0], ordered[int(0.995 * (len(ordered) - 1))]
    span, length = max(high - low, 1e-6), max(steps[-1] - steps[0], 1)

    def place(step: int, value: float) -> tuple[float, float]:
        across, down = (step - steps[0]) / length, (high - min(value, high)) / span
        return left + across * (right - left), top + down * (bottom - top)

    for share in range(5):
        value = low + span * share / 4
        _, y = place(steps[0], value)
        draw.line([(left, y), (right, y)], fill="#dddddd")
        draw.text((4, y - 6), f"{10**value:.3g}", fill="black")
        step = steps[0] + length * share // 4
        draw.text((place(step, low)[0] - 10, bottom + 8), str(step), fill="black")
    thin = max(len(values) // 4000, 1)
    draw.line([place(*pair) for pair in list(zip(steps, values.tolist(), strict=True))[::thin]], fill="#a8c8e8")
    mean, smooth, weight = 0.0, [], max(1 - 20 / len(values), 0.5)
    for number, value in enumerate(values.tolist()):
        mean = weight * mean + (1 - weight) * value
        smooth.append(mean / (1 - weight ** (number + 1)))
    draw.line([place(*pair) for pair in list(zip(steps, smooth, strict=True))[::thin]], fill="#1a4f8a", width=2)
    return page

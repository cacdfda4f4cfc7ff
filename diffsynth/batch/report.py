"""A run as a page: its images, settings, failures, networks and speed in one HTML file that needs no server.

Whatever a user wrote is text in it, never markup; beside that, the page allows no script but its own (by its hash).
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from html import escape
from importlib import resources
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote

from diffsynth import __version__
from diffsynth.batch.grid import label
from diffsynth.batch.records import Folder, Record
from diffsynth.batch.sheet import fitted
from diffsynth.batch.throughput import Throughput, plot, told_rate, told_time
from diffsynth.core.files import replacing
from diffsynth.errors import DiffSynthError, InvalidRequest, printable
from diffsynth.pipelines.latent_image import LatentImage

THUMBNAIL = 240  # pixels of the longer side, of embedded ones
CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")  # what HTML cannot hold
ROLES = ("models", "vocabularies", "adapters")


def write_report(
    folder: str | Path | Folder, path: str | Path, *, embed: bool = False, title: str | None = None
) -> Path:
    """Write a report of a folder of images.

    Args:
        folder: of a batch, or of images with recipes.
        path: the file, ending in .html. Images are linked relative to it.
        embed: whether small copies of all images are inside the page, so that it can be sent alone; images in archives
            are shown only then.
        title: of the page; the folder's name by default.

    Returns:
        The path.

    Raises:
        InvalidRequest: the folder has no images, or the path another ending.
        OSError: a file cannot be read or written.
    """
    path = Path(path)
    check_name(path)
    found = folder if isinstance(folder, Folder) else Folder.read(folder)
    page = Report(found, path.absolute().parent, embed, title or found.path.absolute().name).page()
    with replacing(path) as temporary:
        temporary.write_text(page, "utf-8")
    return path


def check_name(path: Path) -> None:
    """Raise InvalidRequest unless a report may have this name."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise InvalidRequest(f"{printable(path, 300)} must end in .html.")


def text(value: object) -> str:
    """Return text as HTML shows it: nothing in it is markup, and characters that HTML cannot hold are replaced."""
    return escape(CONTROLS.sub("\ufffd", str(value)), quote=True)


@dataclass(frozen=True)
class Report:
    """What is told of a folder, as parts of a page.

    Args:
        folder: the images.
        home: where the page lies.
        embed: whether small copies of images are inside it.
        title: of the page.
    """

    folder: Folder
    home: Path
    embed: bool
    title: str

    def page(self) -> str:
        """Return the whole page."""
        script = _resource("report.js")
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        width, height = self._shape
        return _filled(
            _resource("report.html"),
            {
                "version": text(__version__),
                "title": text(self.title),
                "script_hash": f"'sha256-{digest}'",
                "script": script,
                "when": text(self._when()),
                "figures": "".join(self._figures()),
                "sections": "\n".join(filter(None, self._sections())),
                "names": text(json.dumps([name for name in self.differing if name != "prompt"])),
                "cell": "240" if width > height else "190",
                "shape": f"{width}/{height}",
                "images": "\n".join(self._image(record) for record in self.folder.drawn),
            },
        )

    @cached_property
    def differing(self) -> list[str]:
        """Settings that are not the same in all images, in the order of the request."""
        return [name for name, values in self._values.items() if len(values) > 1]

    @cached_property
    def _values(self) -> dict[str, set[str]]:
        records = [record for record in self.folder.records if record.request]
        names = dict.fromkeys(name for record in records for name in record.request)
        return {name: {label(record.request.get(name)) for record in records} for name in names}

    @cached_property
    def _recipes(self) -> list[Mapping[str, Any]]:
        return [recipe for record in self.folder.drawn if (recipe := self.folder.recipe(record)) is not None]

    @cached_property
    def _shape(self) -> tuple[int, int]:
        """The width and height that most images have."""
        sizes = Counter(size for record in self.folder.drawn if (size := _size(record.request)))
        return sizes.most_common(1)[0][0] if sizes else (1, 1)

    @cached_property
    def _speed(self) -> Throughput:
        drawn, failed = (_times(record.facts for record in each) for each in (self.folder.drawn, self.folder.failed))
        return Throughput.of(drawn, failed, _times(self.folder.starts))

    def _when(self) -> str:
        times = sorted(_times([*self.folder.starts, *(record.facts for record in self.folder.records)]))
        if not times:
            return ""
        first, last = (time.strftime("%Y-%m-%d %H:%M") for time in (times[0], times[-1]))
        return f"{first} UTC" if first == last else f"{first} to {last} UTC"

    def _figures(self) -> Iterable[str]:
        count, failed = len(self.folder.drawn), len(self.folder.failed)
        yield _figure(f"{count:,}", "image" if count == 1 else "images")
        if failed:
            yield _figure(f"{failed:,}", "failed", "bad")
        if prompts := len(self._values.get("prompt", ())):
            yield _figure(f"{prompts:,}", "prompt" if prompts == 1 else "prompts")
        if self._shape != (1, 1):
            yield _figure("×".join(map(str, self._shape)), "pixels, most often" if self._sizes > 1 else "pixels")
        if self._speed.rate:
            rate, unit = told_rate(self._speed.rate)
            yield _figure(f"{rate:.3g}", f"images a {unit}")
            yield _figure(told_time(self._speed.length), "of drawing")
        if len(self.folder.starts) > 1:
            yield _figure(str(len(self.folder.starts)), "runs")

    @property
    def _sizes(self) -> int:
        return len({_size(record.request) for record in self.folder.drawn})

    def _sections(self) -> Iterable[str]:
        yield self._shared()
        yield self._drawn_with()
        if graph := plot(self._speed):
            _, unit = told_rate(self._speed.rate)
            pauses = "; dotted: no work for a while" if self._speed.pauses else ""
            fails = "; red: failures" if self._speed.failed else ""
            yield _card(f"Images a {unit}, over the time of drawing{pauses}{fails}", graph, "wide")
        yield self._failures()

    def _shared(self) -> str:
        shared = {name: next(iter(values)) for name, values in self._values.items() if len(values) == 1}
        rows = [
            f'<tr><th scope="row">{text(name)}</th><td class="text" dir="auto">{text(value)}</td></tr>'
            for name, value in shared.items()
            if value not in ("none", "False")
        ]
        return _card("The same for all images", f"<table>{''.join(rows)}</table>") if rows else ""

    def _drawn_with(self) -> str:
        sources = Counter(_row_of(source) for recipe in self._recipes for source in _sources(recipe))
        rows = [f"<tr>{row}{_count(count, len(self._recipes))}</tr>" for row, count in sources.items()]
        facts = Counter((name, label(value)) for recipe in self._recipes for name, value in _facts(recipe))
        rows += [
            f'<tr><th scope="row">{text(name)}</th><td colspan="2">{text(value)}</td>'
            f"{_count(count, len(self._recipes))}</tr>"
            for (name, value), count in sorted(facts.items(), key=lambda each: each[0])
        ]
        return _card("Drawn with", f"<table>{''.join(rows)}</table>") if rows else ""

    def _failures(self) -> str:
        if not self.folder.failed:
            return ""
        reasons: dict[str, list[str]] = {}
        for record in self.folder.failed:
            reasons.setdefault(record.failure or "", []).append(record.name)
        rows = [
            f'<tr><td>{text(reason)}</td><td>{_names(names)}</td><td class="count">{len(names):,}</td></tr>'
            for reason, names in sorted(reasons.items(), key=lambda each: -len(each[1]))
        ]
        head = '<thead><tr><th>Reason</th><th>Images</th><th class="count">How many</th></tr></thead>'
        return _card("Failures", f'<table class="failures">{head}<tbody>{"".join(rows)}</tbody></table>', "wide")

    def _image(self, record: Record) -> str:
        prompt = record.request.get("prompt")
        lines = [f'<p dir="auto">{text(prompt)}</p>'] if prompt and "prompt" in self.differing else []
        lines += [
            f"<span>{text(name)} <b>{text(label(record.request.get(name)))}</b></span>"
            for name in self.differing
            if name != "prompt"
        ]
        lines += [] if lines else [f"<p>{text(record.name)}</p>"]
        return f"<figure>{self._picture(record, prompt)}<figcaption>{''.join(lines)}</figcaption></figure>"

    def _picture(self, record: Record, prompt: Any) -> str:
        size = _size(record.request)
        sides = f' width="{size[0]}" height="{size[1]}"' if size else ""
        source = self._embedded(record) if self.embed else self._link(record)
        if source is None:
            return f"<span>{text(record.archive or record.name)}</span>"
        image = f'<img loading="lazy" decoding="async"{sides} alt="{text(prompt or record.name)}" src="{source}">'
        link = self._link(record)
        return f'<a href="{link}">{image}</a>' if link else f"<span>{image}</span>"

    def _link(self, record: Record) -> str | None:
        """Return where an image lies, relative to the page; None if it is in an archive."""
        if record.archive is not None:
            return None
        path = (self.folder.path / record.name).absolute()
        try:
            relative = Path(os.path.relpath(path, self.home)).as_posix()
        except ValueError:  # on another drive
            return text(path.as_uri())
        return text("/".join(quote(os.fsencode(part)) for part in relative.split("/")))

    def _embedded(self, record: Record) -> str | None:
        """Return a small copy of an image as a data address; None if it cannot be read."""
        with suppress(DiffSynthError, OSError, LookupError):
            image = self.folder.image(record)
            if not isinstance(image, LatentImage):
                stream = io.BytesIO()
                scale = min(THUMBNAIL / max(image.size), 1)
                sides = [max(1, round(side * scale)) for side in image.size]
                fitted(image, sides[0], sides[1]).save(stream, "WEBP", quality=80)
                return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"
        return None


def _resource(name: str) -> str:
    return resources.files("diffsynth.batch").joinpath(name).read_text("utf-8")


def _filled(template: str, parts: Mapping[str, str]) -> str:
    """Put parts into a template; what looks like a place in a part stays as it is."""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def _figure(value: str, what: str, kind: str = "") -> str:
    return f"<li{f' class={kind}' if kind else ''}><b>{text(value)}</b><span>{text(what)}</span></li>"


def _card(title: str, content: str, kind: str = "") -> str:
    return f'<div class="card {kind}"><h2>{text(title)}</h2>{content}</div>'


def _names(names: Sequence[str]) -> str:
    if len(names) <= 3:
        return text(", ".join(names))
    items = "".join(f"<li>{text(name)}</li>" for name in names)
    return (
        f"<details><summary>{text(', '.join(names[:2]))} and {len(names) - 2} more</summary><ul>{items}</ul></details>"
    )


def _count(count: int, of: int) -> str:
    return f'<td class="count">{"" if count == of else f"{count:,} of {of:,}"}</td>'


def _sources(recipe: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    for role in ROLES:
        for source in recipe.get(role) or []:
            if isinstance(source, dict) and isinstance(source.get("files"), list):
                yield source


def _row_of(source: Mapping[str, Any]) -> str:
    """Return three cells of a table: what it is, its file with its hash, and how it was used."""
    hashes = [str(file.get("sha256") or "no hash") for file in source["files"] if isinstance(file, dict)]
    more = f" and {len(hashes) - 1} more" if len(hashes) > 1 else ""
    digest = f'<br><code title="{text(" ".join(hashes))}">{text(hashes[0][:16] if hashes else "")}{more}</code>'
    used = [source.get("dtype"), source.get("device")]
    used += [f"scale {source['scale']}"] if "scale" in source else []
    name = PurePath(str(source.get("path"))).name
    return (
        f'<th scope="row">{text(source.get("family"))}</th><td>{text(name)}{digest}</td>'
        f"<td>{text(', '.join(str(each) for each in used if each))}</td>"
    )


def _facts(recipe: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """Yield what a pipeline was, and versions; what is not a plain value is no such thing."""
    for name, value in recipe.items():
        if name not in ("version", "key", "request", *ROLES) and isinstance(value, (str, int, float)):
            yield name, value


def _size(request: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the width and height that an image has."""
    width, height = (request.get(f"hires_{side}") or request.get(side) for side in ("width", "height"))
    return (width, height) if isinstance(width, int) and isinstance(height, int) else None


def _times(lines: Iterable[Mapping[str, Any]]) -> list[datetime]:
    found = []
    for line in lines:
        with suppress(KeyError, TypeError, ValueError):
            found.append(datetime.fromisoformat(line["time"]))
    return [time for time in found if time.tzinfo is not None]

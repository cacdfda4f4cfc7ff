"""What is drawn with what: from the job alone, never from what is finished, the order of work, or who works.

Images whose settings differ in prompts and seed only are a group; a group is cut into units of up to 64 images, and a
unit into batches that are drawn together. So every image has the same companions in every run, and the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import torch

from diffsynth import __version__
from diffsynth.batch.expand import Entry, Shared, opened
from diffsynth.batch.jobs import Problems
from diffsynth.batch.names import NameTemplate, folded
from diffsynth.errors import InvalidRequest, printable
from diffsynth.pipelines.base import ImagePipeline
from diffsynth.pipelines.recipe import Source, request_json
from diffsynth.pipelines.request import ImageRequest, check_range

UNIT = 64  # images; what one worker takes at a time
PIXELS_TOGETHER = 2 * 1024**2  # of a batch, unless its size is given
MOST_TOGETHER = 8


class Item(NamedTuple):
    """One image, however often the job asks for it.

    Args:
        key: sha256 of everything its pixels depend on.
        prompt: what to draw.
        negative_prompt: complete; None if the conventions know none.
        seed: of its noise.
        names: the files that it is wanted under; the first is drawn, the others are links to it.
    """

    key: str
    prompt: str
    negative_prompt: str | None
    seed: int
    names: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """What images have in common that can be drawn together.

    Args:
        settings: as they were given, without prompts and seed; pictures closed.
        complete: all settings with the conventions' values, as JSON has them, without prompts and seed.
        digest: sha256 of them, of the networks' files and of versions.
        batch_size: images that are drawn together.
    """

    settings: Shared
    complete: Mapping[str, Any]
    digest: str
    batch_size: int

    def request(self, pipe: ImagePipeline[Any], item: Item) -> ImageRequest:
        """Return the request of an image, its pictures opened."""
        mine = {"prompt": item.prompt, "negative_prompt": item.negative_prompt, "seed": item.seed}
        return pipe.request_type.from_settings({**opened(dict(self.settings)), **mine})

    def check(self, pipe: ImagePipeline[Any]) -> None:
        """Raise InvalidRequest unless a pipeline draws the group's images as they were planned, on another machine say.

        The weights' content, the pipeline's settings and the versions must be the same.
        """
        if _completed(pipe, self.settings)[2] != self.digest:
            raise InvalidRequest(
                f"{platform.node()} does not draw what was planned: its files of weights, the settings of its pipeline "
                f"or its versions ({', '.join(f'{name} {version}' for name, version in versions().items())}) differ. "
                "Give every machine the same."
            )


def _given(pipe: ImagePipeline[Any], shared: Shared) -> ImageRequest:
    return pipe.request_type.from_settings({"prompt": "", "seed": 0, **opened(dict(shared))})


def _completed(pipe: ImagePipeline[Any], shared: Shared) -> tuple[ImageRequest, dict[str, Any], str]:
    """Return a request of a group, what its requests have in common, and the group's digest."""
    (request,) = pipe.prepare([_given(pipe, shared)])
    complete = request_json(request)
    for name in ("prompt", "negative_prompt", "seed"):
        del complete[name]
    return request, complete, _hash(json.dumps([complete, drawn_with(pipe, request)], sort_keys=True))


@dataclass(frozen=True)
class Unit:
    """Images of one group that one worker draws.

    Args:
        group: what they have in common.
        items: in the order of the job.
    """

    group: Group
    items: tuple[Item, ...]

    @cached_property
    def name(self) -> str:
        """The hash of its images' keys; two plans of one job have the same units."""
        return hashlib.sha256("".join(item.key for item in self.items).encode()).hexdigest()[:16]

    def batches(self) -> Iterator[tuple[Item, ...]]:
        """Yield the images that are drawn together."""
        for start in range(0, len(self.items), self.group.batch_size):
            yield self.items[start : start + self.group.batch_size]


@dataclass(frozen=True)
class Plan:
    """All that a job asks for.

    Args:
        units: in the order of the job.
        entries: how many images the job asks for; more than there are, if some are the same.
    """

    units: tuple[Unit, ...]
    entries: int

    @cached_property
    def items(self) -> tuple[Item, ...]:
        """Every distinct image, in the order in which they are drawn."""
        return tuple(item for unit in self.units for item in unit.items)

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups, each once."""
        return tuple({unit.group.digest: unit.group for unit in self.units}.values())


def make_plan(pipe: ImagePipeline[Any], entries: Sequence[Entry], *, names: str, batch_size: int | None = None) -> Plan:
    """Plan a job, and warn once for each group of settings that have no effect.

    Args:
        pipe: what draws it.
        entries: checked ones.
        names: template of the file names of entries that ask for none.
        batch_size: images that are drawn together; None for as many as 2 megapixels have room for, at most 8.

    Raises:
        InvalidRequest: settings do not go together for this pipeline, or two images would have one name.
        OSError: a picture or a file of weights cannot be read.
    """
    check_range("batch_size", batch_size, 1, 10_000, whole=True)
    problems = Problems()
    template = NameTemplate(names, pipe.request_type.settings())
    grouping = _Grouping(pipe, batch_size)
    found: dict[str, Item] = {}
    keys: dict[str, list[str]] = {}  # of each group
    taken: dict[str, str] = {}
    for entry in entries:
        try:
            group, negative = grouping.of(entry)
            key = _hash(" ".join((group.digest, str(entry.seed), json.dumps(entry.prompt), json.dumps(negative))))
            name = _name(entry, key, group, template)
        except InvalidRequest as error:
            problems.add(entry.where, str(error))
            continue
        if (other := taken.setdefault(folded(name), key)) != key:
            problems.add(entry.where, _collision(name, found[other]))
        elif (known := found.get(key)) is None:
            found[key] = Item(key, entry.prompt, negative, entry.seed, (name,))
            keys.setdefault(group.digest, []).append(key)
        elif name not in known.names:
            found[key] = known._replace(names=(*known.names, name))
    for name in taken:  # folded, as the names of their folders must be
        folder = "/" in name and next((str(each) for each in PurePosixPath(name).parents if str(each) in taken), "")
        if folder:
            problems.add(printable(name), f"another image has the name {printable(folder)}, which is a folder here.")
    problems.refuse("the job cannot be drawn")
    units = [
        Unit(grouping.groups[digest], tuple(found[key] for key in mine[start : start + UNIT]))
        for digest, mine in keys.items()
        for start in range(0, len(mine), UNIT)
    ]
    return Plan(tuple(units), len(entries))


def _collision(name: str, other: Item) -> str:
    same = next(each for each in other.names if folded(each) == folded(name))
    why = " too" if name == same else f", which many file systems take for {printable(name)}"
    return f"another image is to have the name {printable(same)}{why}."


class _Grouping:
    """Finds the group of an entry; entries with the same settings are completed once."""

    def __init__(self, pipe: ImagePipeline[Any], batch_size: int | None) -> None:
        self.groups: dict[str, Group] = {}
        self._pipe = pipe
        self._batch_size = batch_size
        self._known: dict[int, tuple[Group, str | None] | InvalidRequest] = {}
        self._told: set[tuple[str, bool]] = set()  # groups, with and without a negative prompt, that were remarked on

    def of(self, entry: Entry) -> tuple[Group, str | None]:
        """Return the group and the complete negative prompt.

        Raises:
            InvalidRequest: the settings do not go together.
        """
        if id(entry.shared) not in self._known:
            try:
                self._known[id(entry.shared)] = self._complete(entry.shared)
            except InvalidRequest as error:
                self._known[id(entry.shared)] = error
        found = self._known[id(entry.shared)]
        if isinstance(found, InvalidRequest):
            raise found
        return found

    def _complete(self, shared: Shared) -> tuple[Group, str | None]:
        request, complete, digest = _completed(self._pipe, shared)
        if (kind := (digest, bool(dict(shared).get("negative_prompt")))) not in self._told:
            self._told.add(kind)
            self._pipe.remark_all(_given(self._pipe, shared), request)
        settings = tuple((name, value) for name, value in shared if name != "negative_prompt")
        size = self._batch_size or usual_batch_size(request)
        group = self.groups.setdefault(digest, Group(settings, complete, digest, size))
        return group, request.negative_prompt


def usual_batch_size(request: ImageRequest) -> int:
    """Return how many images are drawn together unless that is said."""
    height, width = request.hires_height or request.height, request.hires_width or request.width
    assert height is not None
    assert width is not None
    return max(1, min(MOST_TOGETHER, PIXELS_TOGETHER // (height * width)))


def drawn_with(pipe: ImagePipeline[Any], request: ImageRequest) -> dict[str, Any]:
    """Return all but the request that an image depends on: the pipeline's settings, hashes of files, versions.

    Raises:
        InvalidRequest: a file was changed since it was loaded.
    """
    models = pipe.models_for(request)
    sources = {
        "models": [Source.of_model(model) for model in models],
        "vocabularies": pipe.vocabularies,
        "adapters": Source.of_adapters(models),
    }
    facts = {role: [_facts(source) for source in each] for role, each in sources.items()}
    return {"pipeline": type(pipe).__name__, "settings": pipe.describe(), **facts, "versions": versions()}


def versions() -> dict[str, str]:
    """Return versions of what pixels depend on."""
    return {"diffsynth": __version__, "torch": torch.__version__.partition("+")[0]}


def _facts(source: Source) -> dict[str, Any]:
    """Return what is in files, wherever they lie and whatever device they were moved to."""
    facts = source.as_json()
    hashes = [file["sha256"] for file in facts.pop("files")]
    if None in hashes:
        raise InvalidRequest(f"{printable(source.path, 300)} was changed since it was loaded; load it again.")
    return {**{name: value for name, value in facts.items() if name not in ("path", "device")}, "files": hashes}


def _name(entry: Entry, key: str, group: Group, template: NameTemplate) -> str:
    if entry.file is not None:
        return entry.file
    own = {"index": entry.number, "row": entry.row, "key": key, "prompt": entry.prompt, "seed": entry.seed}
    return template.fill({**group.complete, **own} if template.fields - own.keys() else own)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

"""Two recipes → what differs between them, the most important first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import takewhile, zip_longest
from pathlib import PurePath
from typing import Any

from diffsynth.errors import printable

SHOWN = 60  # characters of a value
FACTS = {"version", "key", "pipeline", "diffsynth", "torch", "python", "request"}  # what is no setting of a pipeline
SIZES = ("height", "width", "hires_scale", "hires_height", "hires_width")
FIRST_SETTINGS = ("prompt", "negative_prompt", *SIZES, "seed")
GUIDED = ("negative_prompt", "guidance_rescale")
TILES = ("tile_size", "tile_stride")

Values = Mapping[str, Any]


class Effect(IntEnum):
    """What a difference does to an image."""

    IMAGE = 0
    ROUNDING = 1
    NOTHING = 2


@dataclass(frozen=True)
class Difference:
    """One thing that two recipes do not have in common.

    Args:
        name: of a setting, or of a network and what about it.
        first: its value in the first recipe, short enough for a line.
        second: likewise.
        effect: what it does to the image.
    """

    name: str
    first: str
    second: str
    effect: Effect = Effect.IMAGE

    def __str__(self) -> str:
        return f"{self.name}: {self.first} | {self.second}"


def differences(first: Values, second: Values) -> list[Difference]:
    """Compare two recipes, as ``read_recipe`` returns them.

    Returns:
        What differs: first what makes another image, from networks to single settings, then what only rounds
        otherwise, then what changes nothing. The order is the same for the same two recipes.
    """
    found = [
        *_plain("pipeline", first, second),
        *_sources(first, second),
        *_settings_of_the_pipeline(first, second),
        *_request(first, second),
        *_plain("diffsynth", first, second, Effect.ROUNDING),
        *_plain("torch", first, second, Effect.ROUNDING),
        *_plain("python", first, second, Effect.NOTHING),
    ]
    return sorted(found, key=lambda each: each.effect)


def _plain(name: str, first: Values, second: Values, effect: Effect = Effect.IMAGE) -> Iterator[Difference]:
    one, two = first.get(name), second.get(name)
    if one != two and (one or two):  # unset is as good as not there, as in recipes of older versions
        yield Difference(name, *shown(one, two), effect)


def _sources(first: Values, second: Values) -> Iterator[Difference]:
    """Compare all that lies in files: networks, vocabularies, LoRAs; each kind by kind, in its order."""
    for role in _names(first, second, lambda value: _is_sources(value)):
        ones, twos = first.get(role) or [], second.get(role) or []
        for family in dict.fromkeys(source["family"] for source in (*ones, *twos)):
            mine, theirs = ([each for each in side if each["family"] == family] for side in (ones, twos))
            yield from _of_family(family, *_in_one_order(mine, theirs))


def _is_sources(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) and "files" in each for each in value)


def _in_one_order(ones: Sequence[Values], twos: Sequence[Values]) -> tuple[list[Values], list[Values]]:
    """Put sources with equal files beside one another, the others after them in their order."""
    left, pairs, rest = list(twos), [], []
    for one in ones:
        two = next((each for each in left if _content(each) == _content(one)), None)
        if two is None:
            rest.append(one)
        else:
            left.remove(two)
            pairs.append((one, two))
    return [one for one, _ in pairs] + rest, [two for _, two in pairs] + left


def _of_family(family: str, ones: Sequence[Values], twos: Sequence[Values]) -> Iterator[Difference]:
    for number, (one, two) in enumerate(zip_longest(ones, twos), 1):
        name = family if max(len(ones), len(twos)) == 1 else f"{family} {number}"
        if one is None or two is None:
            yield Difference(name, _file(one), _file(two))
            continue
        same = _content(one) == _content(two)
        if not same:
            yield Difference(f"{name}, its file", _file(one), _file(two))
        elif one["path"] != two["path"]:
            paths = [printable(each["path"], 200) for each in (one, two)]
            yield Difference(f"{name}, where the same file lies", paths[0], paths[1], Effect.NOTHING)
        for fact in dict.fromkeys((*one, *two)):
            if fact in ("family", "path", "files") or (fact == "layout" and not same):
                continue
            yield from _fact(name, fact, one.get(fact), two.get(fact))


def _fact(name: str, fact: str, one: Any, two: Any) -> Iterator[Difference]:
    if one != two:
        effect = Effect.ROUNDING if fact in ("dtype", "device", "merged") else Effect.IMAGE
        yield Difference(f"{name}, {fact}", *shown(one, two), effect)


def _content(source: Values) -> tuple[Any, ...]:
    """Return what is in the files of a source; a file without a hash equals none but itself."""
    hashes = tuple(file["sha256"] or f"unknown: {file['path']}" for file in source["files"])
    return (*hashes, source.get("prefix"))


def _file(source: Values | None) -> str:
    if source is None:
        return "none"
    digest = source["files"][0]["sha256"]
    more = f" and {len(source['files']) - 1} more" if len(source["files"]) > 1 else ""
    known = f"sha256 {digest[:12]}" if digest else "without a hash: it was changed since"
    scale = f"={source['scale']}" if "scale" in source else ""
    return f"{printable(PurePath(source['path']).name, SHOWN)}{scale} ({known}{more})"


def _settings_of_the_pipeline(first: Values, second: Values) -> Iterator[Difference]:
    for name in _names(first, second, lambda value: not _is_sources(value) and value != []):
        if name not in FACTS:
            yield from _plain(name, first, second)


def _names(first: Values, second: Values, wanted: Any) -> list[str]:
    return [name for name in dict.fromkeys((*first, *second)) if wanted(first.get(name) or second.get(name))]


def _request(first: Values, second: Values) -> Iterator[Difference]:
    one, two = first["request"], second["request"]
    both = first.get("pipeline") == second.get("pipeline")
    known = [name for name in dict.fromkeys((*one, *two)) if both or (name in one and name in two)]
    pictures = [name for name in known if "sha256" in str(one.get(name) or two.get(name))]
    for name in dict.fromkeys((*FIRST_SETTINGS, *pictures, *known)):
        if name in known:
            idle = _is_idle(name, one) and _is_idle(name, two)
            yield from _plain(name, one, two, Effect.NOTHING if idle else Effect.IMAGE)


def _is_idle(name: str, request: Values) -> bool:
    """Whether a setting cannot have an effect beside the others."""
    if name in GUIDED:
        return request.get("cfg_scale") == 1 and not request.get("perturbed_attention_scale")
    return name in TILES and request.get("tiled") is False


def shown(one: Any, two: Any) -> tuple[str, str]:
    """Return two values as short text; long ones from a little before the place where they differ."""
    first, second = (_text(value) for value in (one, two))
    if max(len(first), len(second)) <= SHOWN:
        return first, second
    alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
    start = max(alike - 15, 0)
    cut = [("…" if start else "") + text[start:] for text in (first, second)]
    return printable(cut[0], SHOWN), printable(cut[1], SHOWN)


def _text(value: Any) -> str:
    if isinstance(value, Mapping) and "size" in value:
        digest = value.get("sha256") or value.get("latents_sha256")
        kind = "latents of" if "latents_sha256" in value else "a picture of"
        return f"{kind} {'x'.join(map(str, value['size']))} (sha256 {str(digest)[:12]})"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_text, value))}]"
    return "none" if value is None else printable(value, 100_000)

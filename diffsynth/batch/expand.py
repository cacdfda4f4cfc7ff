"""Rows → images: sweeps multiplied out, seeds chosen, wildcards filled in, all from the job alone."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from diffsynth.batch.jobs import Job, Problems, Row
from diffsynth.batch.names import check_suffix, checked
from diffsynth.batch.progress import nobody
from diffsynth.batch.values import listed_values, of_job, of_text, size_of
from diffsynth.batch.wildcards import Wildcards
from diffsynth.errors import InvalidRequest, printable
from diffsynth.pipelines.request import ALIASES, ImageRequest, check_range, resolve_names
from diffsynth.tokenizers.base import whole

logger = logging.getLogger(__name__)

MOST_IMAGES = 10_000_000
OWN = {"file": "str", "size": "str", "num_images_per_prompt": "int"}  # names of a row that are no settings
SIDES = ("width", "height")
WORD = re.compile(r"\w+")

Shared = tuple[tuple[str, Any], ...]
Check: TypeAlias = Callable[[ImageRequest], None]


class Entry(NamedTuple):
    """One image that a job asks for; nothing of it was checked yet.

    Args:
        number: from 0, among all images of the job.
        row: number of its row.
        where: file and line, for messages.
        prompt: its prompt.
        seed: its seed, or None for that of an input that is wrong.
        shared: all other settings, sorted by name; the very same object for all entries that have the same.
        file: the name that the row asks for.
    """

    number: int
    row: int
    where: str
    prompt: Any
    seed: Any
    shared: Shared
    file: str | None = None


@dataclass
class Expansion:
    """Turns rows into entries.

    Args:
        job: the rows.
        request_type: whose settings they are.
        defaults: settings of every row that does not have them.
        sweeps: name → values, of every row; the last name varies fastest.
        seed: what seeds are derived from where a row has none.
        wildcards: whether prompts may have some.
    """

    job: Job
    request_type: type[ImageRequest]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    sweeps: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    wildcards: bool = True
    problems: Problems = field(default_factory=Problems)

    def __post_init__(self) -> None:
        self._kinds = {name: str(field.type) for name, field in self.request_type.settings().items()}
        self._shared: dict[tuple[Any, ...], Shared] = {}
        self._usual: tuple[dict[str, Any], dict[str, Any]] = {}, {}
        self._idle: Counter[str] = Counter()
        self._strangers: dict[str, str] = {}
        self._words = Wildcards(self.job.folder)

    def entries(self) -> list[Entry]:
        """Return all images of the job; what is wrong is added to ``problems``.

        Raises:
            InvalidRequest: there are too many.
        """
        found: list[Entry] = []
        try:
            self._usual = self._of_all_rows()
        except (_RowProblem, InvalidRequest) as problem:
            self.problems.add("settings of all rows", str(problem))
            return []
        for row in self.job.rows:
            try:
                for more in self._of_row(row):
                    found.append(Entry(len(found), *more))
                    if len(found) > MOST_IMAGES:
                        raise InvalidRequest(f"the job asks for more than {MOST_IMAGES:,} images; split it.")
            except _RowProblem as problem:
                self.problems.add(row.where, str(problem))
        for name, rows in self._idle.items():
            logger.warning("%s is swept over for all rows; what %d of them say of it has no effect", name, rows)
        return found

    def _of_all_rows(self) -> tuple[dict[str, Any], dict[str, Any]]:
        usual, swept = _named(self.defaults), _named(self.sweeps)
        _check_apart(usual, swept)
        self._axes(swept)
        resolve_names({**usual, **swept}, (*self._kinds, *OWN))
        return usual, swept

    def _of_row(self, row: Row) -> Iterator[tuple[int, str, Any, Any, Shared, str | None]]:
        own = _named(row.settings)
        axes = self._axes_of(row, own, own.pop("sweep", None))
        given = {**self._usual[0], **own}
        names = list(axes)
        if math.prod(len(values) for values in axes.values()) > MOST_IMAGES:
            raise InvalidRequest(f"{row.where}: the sweep has more than {MOST_IMAGES:,} combinations.")
        for combination in itertools.product(*axes.values()):
            settings = self._read(row, {**given, **dict(zip(names, combination, strict=True))})
            name, count = settings.pop("file", None), settings.pop("num_images_per_prompt", 1)
            first = settings.pop("seed", None)
            first = self._derived(row.number) if first is None else first
            for number in range(count):
                seed = first + number if type(first) is int else first  # a wrong one is refused later
                yield self._filled(row, settings, seed, name)

    def _axes_of(self, row: Row, own: Mapping[str, Any], sweep: Any) -> dict[str, list[Any]]:
        """Return what is swept over for a row; if that is wrong, what lets the rest of the row be checked."""
        usual = self._usual[1]
        if not usual and sweep is None:
            return {}
        self._idle.update(own.keys() & usual.keys())
        try:
            swept = _swept(sweep)
            _check_apart(own, swept)
            return self._axes({**usual, **swept})
        except _RowProblem as problem:
            self.problems.add(row.where, str(problem))
            return {} if "prompt" in own else {"prompt": [""]}

    def _axes(self, swept: Mapping[str, Any]) -> dict[str, list[Any]]:
        try:
            return {name: listed_values(name, values, self._kind(name)) for name, values in swept.items()}
        except InvalidRequest as error:
            raise _RowProblem(str(error)) from error

    def _kind(self, name: str) -> str:
        return self._kinds.get(name) or OWN.get(name, "str")

    def _read(self, row: Row, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return settings with values as requests have them; what is wrong with one is noted, and it left out."""
        settings: dict[str, Any] = {}
        note = partial(self.problems.add, row.where)
        for name, value in given.items():
            if name in OWN and value is None:
                continue
            try:
                if name == "size":
                    settings |= size_of(value)
                elif name in OWN:
                    settings[name] = self._own(name, value)
                elif name in self._kinds:
                    settings[name] = of_job(value, self._kinds[name], self.job, note)
                else:
                    note(self._unknown(name))
            except InvalidRequest as error:
                note(str(error))
            except RecursionError as error:
                raise _RowProblem(f"{printable(name)} has lists in lists, too deep for any setting.") from error
        if not isinstance(settings.get("prompt"), str):
            note("has no prompt." if "prompt" not in settings else "prompt must be text.")
            settings["prompt"] = ""
        return settings

    def _unknown(self, name: str) -> str:
        """Return what is said of a setting that nobody knows; what is near it is looked for once, not in every row."""
        if name not in self._strangers:
            try:
                resolve_names({name: None}, tuple(self._kinds), (*OWN, "sweep"))
            except InvalidRequest as error:
                self._strangers[name] = str(error)
        return self._strangers[name]

    def _own(self, name: str, value: Any) -> Any:
        if name == "num_images_per_prompt":
            number = of_text(value, "int") if isinstance(value, str) else value
            check_range(name, number, 1, 10_000, whole=True)
            return number
        if not isinstance(value, str):
            raise InvalidRequest(f"{name} must be text, not {printable(repr(value))}.")
        check_suffix(value)
        return checked(value)

    def _derived(self, row: int) -> int:
        """Return the seed of a row that has none; all images of its sweep have it, so that they can be compared."""
        return int.from_bytes(hashlib.sha256(f"{self.seed} {row}".encode()).digest()[:4], "big")

    def _filled(
        self, row: Row, settings: Mapping[str, Any], seed: Any, name: str | None
    ) -> tuple[int, str, Any, Any, Shared, str | None]:
        filled = dict(settings)
        if self.wildcards and isinstance(seed, int):
            for each in ("prompt", "negative_prompt"):
                if isinstance(text := filled.get(each), str):
                    try:
                        filled[each] = self._words.fill(text, row.number, seed)
                    except InvalidRequest as error:
                        self.problems.add(row.where, str(error))
        prompt = filled.pop("prompt")
        shared: Shared = tuple(sorted(filled.items()))
        try:
            shared = self._shared.setdefault((shared, *map(type, filled.values())), shared)  # 1 and true differ
        except TypeError as error:
            raise _RowProblem(f"a value is of a kind that no setting has ({printable(error)}).") from error
        return row.number, row.where, str(prompt), seed, shared, name


class _RowProblem(Exception):
    """A row of which no image can be made."""


def _named(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings under our names for them; a size is given in one way."""
    if not isinstance(settings, Mapping):
        raise _RowProblem(f"settings must be a mapping of names to values, not {printable(repr(settings))}.")
    found: dict[str, Any] = {}
    for name, value in settings.items():
        ours = ALIASES.get(name, name)
        if ours in found:
            raise _RowProblem(f"{ours} is given twice, also under another name ({name}). Give it once.")
        found[ours] = value
    if "size" in found and (sides := [name for name in SIDES if name in found]):
        raise _RowProblem(f"size and {sides[0]} are both given. Give one of them.")
    return found


def _check_apart(given: Mapping[str, Any], swept: Mapping[str, Any]) -> None:
    """Raise _RowProblem if a sweep takes the effect from a setting that is given beside it."""
    for name in given:
        same = {name, *({"size": SIDES, "width": ("size",), "height": ("size",)}.get(name, ()))}
        if other := next((each for each in swept if each in same), None):
            raise _RowProblem(f"{name} is given, and {other} is swept over. Leave one of them out.")


def _swept(own: Any) -> dict[str, Any]:
    """Return the sweep of a row, if it has one, by our names; in a table it is JSON."""
    if own is None:
        return {}
    if isinstance(own, str):
        try:
            own = json.loads(own)
        except (ValueError, RecursionError) as error:
            raise _RowProblem(f"sweep is not JSON: {printable(error)}.") from error
    if not isinstance(own, Mapping):
        raise _RowProblem(f"sweep must be an object of lists, not {printable(repr(own))}.")
    return _named(own)


def check_entries(
    entries: Sequence[Entry],
    request_type: type[ImageRequest],
    problems: Problems,
    check: Check = nobody,
) -> None:
    """Add all that is wrong with the settings of entries to ``problems``; no network is needed for it.

    Args:
        entries: of a job.
        request_type: whose settings they are.
        problems: gets what is wrong.
        check: raises InvalidRequest for what a request does not know to be wrong.
    """
    known: dict[int, list[str]] = {}
    for entry in entries:
        found = known.get(id(entry.shared))
        if found is None:
            settings = dict(entry.shared)
            found = [*settings_problems(settings, request_type, check), *_text_problems(settings)]
            known[id(entry.shared)] = found
        for problem in found if entry.prompt.isascii() else (*found, *_text_problems({"prompt": entry.prompt})):
            problems.add(entry.where, problem)
        try:
            check_range("seed", entry.seed, 0, 2**63 - 1, whole=True)
        except InvalidRequest as error:
            problems.add(entry.where, str(error))


def _text_problems(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield what makes texts such that no text encoder reads them."""
    for name, value in settings.items():
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str):
                try:
                    whole(text, name)
                except InvalidRequest as error:
                    yield str(error)


def settings_problems(
    settings: Mapping[str, Any], request_type: type[ImageRequest], check: Check = nobody
) -> list[str]:
    """Return every reason for which a request, or a check of it, refuses settings, not only the first."""

    def refused(left: Mapping[str, Any]) -> str | None:
        try:
            check(request_type.from_settings({"prompt": "", **opened(left)}))
        except (InvalidRequest, OSError) as error:
            return str(error)
        return None

    left, found, wrong = dict(settings), [], set[str]()
    while (refusal := refused(left)) is not None:
        if wrong.isdisjoint(WORD.findall(refusal)):  # else it follows from what was left out
            found.append(refusal)
        named_first = sorted(left, key=lambda name: name not in refusal)
        culprits = (name for name in named_first if refused(_without(left, name)) != refusal)
        culprit = next(culprits, None)
        if culprit is None:
            break
        wrong.add(culprit)
        del left[culprit]
    return found


def _without(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {each: value for each, value in settings.items() if each != name}


def opened(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with their pictures opened."""
    return {name: _opened(value) for name, value in settings.items()}


def _opened(value: Any) -> Any:
    if hasattr(value, "open") and hasattr(value, "digest"):
        return value.open()
    return tuple(_opened(each) for each in value) if isinstance(value, tuple) else value

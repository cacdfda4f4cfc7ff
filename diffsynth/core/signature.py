"""What identifies a network in a file: keys that must be there, and the sizes their shapes tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from diffsynth.core.patterns import key_pattern
from diffsynth.types import Header, TensorSpec

Dims = tuple[str | int, ...]

_MOST_PREFIXES = 50  # under which a file is looked at; a file of more networks than that is none that people make


@dataclass(frozen=True)
class Match:
    """What a signature found under one prefix of a header.

    ``sizes`` are the measured dimensions by name, ``counts`` how many numbers each field took,
    ``missing`` the patterns without a key, ``conflicts`` one sentence per shape that contradicts another.
    """

    prefix: str
    sizes: Mapping[str, int]
    counts: Mapping[str, int]
    missing: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()
    score: float = 1.0

    @property
    def complete(self) -> bool:
        """Whether every pattern has a key and no shapes contradict each other."""
        return not self.missing and not self.conflicts

    def count(self, name: str) -> int:
        """Return how many items are numbered by a field, for example blocks."""
        return self.counts[name]


@dataclass(frozen=True)
class Signature:
    """Keys that must be present and how their shapes hang together.

    Args:
        required: key pattern → dimensions. A name is measured and must agree wherever it appears, a number
            must be that number, ``"_"`` is not checked. A name may hold a field: ``"width{level}"`` measures
            ``width0``, ``width1``… A last ``"*name"`` stands for all dimensions that follow and measures how many
            they are, such as 0 for a linear layer and 2 for a convolution. The first pattern is the anchor: whatever
            stands before it in a key is the prefix under which the network lies.
        optional: patterns that are measured when they are there.
        absent: patterns that belong to another network which has everything else in common.
    """

    required: Mapping[str, Dims]
    optional: Mapping[str, Dims] = field(default_factory=dict)
    absent: tuple[str, ...] = ()

    @property
    def anchor(self) -> str:
        """The key whose ending reveals the prefix."""
        pattern = key_pattern(next(iter(self.required)))
        return pattern.fill(dict.fromkeys(pattern.fields, 0))

    def prefixes(self, header: Header) -> list[str]:
        """Return the prefixes under which the anchor occurs, the shortest first and at most 50."""
        anchor = self.anchor
        found = {key[: -len(anchor)] for key in header if key.endswith(anchor)}
        return sorted((prefix for prefix in found if not prefix or prefix.endswith(".")), key=len)[:_MOST_PREFIXES]

    def possible_prefixes(self, header: Header) -> list[str]:
        """Return the prefixes under which any of the keys occurs, as ``prefixes``: for files that lack some."""
        patterns = [key_pattern(text) for text in self.required]
        endings = [pattern.fill(dict.fromkeys(pattern.fields, 0)) for pattern in patterns]
        found = {key[: -len(ending)] for ending in endings for key in header if key.endswith(ending)}
        return sorted({"", *(prefix for prefix in found if prefix.endswith("."))}, key=len)[:_MOST_PREFIXES]

    def measure(self, header: Header, prefix: str) -> Match:
        """Compare a header with the signature under one prefix."""
        ruler = _Ruler()
        inside = {key[len(prefix) :]: spec for key, spec in header.items() if key.startswith(prefix)}
        missing = [text for text, dims in self.required.items() if not ruler.lay(inside, text, dims)]
        for text, dims in self.optional.items():
            ruler.lay(inside, text, dims)
        foreign = [text for text in self.absent if any(key_pattern(text).match(key) for key in inside)]
        conflicts = ruler.conflicts + ruler.gaps() + [f"{text} belongs to another network" for text in foreign]
        wrong = len(missing) + min(len(conflicts), 1)
        score = max(0.0, 1 - wrong / len(self.required))
        return Match(prefix, ruler.sizes, ruler.counts, tuple(missing), tuple(conflicts), score)


class _Ruler:
    """Collects measured sizes, and the first key that gave each."""

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}
        self.conflicts: list[str] = []
        self._numbers: dict[str, set[int]] = {}
        self._source: dict[str, str] = {}

    @property
    def counts(self) -> dict[str, int]:
        """How many items each field numbers, those that have no key included."""
        return {name: max(numbers) + 1 for name, numbers in self._numbers.items()}

    def gaps(self) -> list[str]:
        """Return a sentence for each field whose numbers cannot be meant as a count: most of them are not there."""
        return [
            f"{name} goes up to {max(numbers)}, but only {len(numbers)} are there"
            for name, numbers in self._numbers.items()
            if max(numbers) >= 2 * len(numbers)
        ]

    def lay(self, header: Header, text: str, dims: Dims) -> bool:
        """Measure every key of one pattern; return whether there was any."""
        pattern = key_pattern(text)
        if not pattern.fields:
            if text not in header:
                return False
            self._measure(text, header[text], dims, {})
            return True
        found = False
        for key, spec in header.items():
            if (match := pattern.match(key)) is not None:
                found = True
                self._measure(key, spec, dims, match[0])
        return found

    def _measure(self, key: str, spec: TensorSpec, dims: Dims, fields: Mapping[str, int]) -> None:
        for name, number in fields.items():
            self._numbers.setdefault(name, set()).add(number)
        shape, last = spec.shape, dims[-1] if dims else ""
        if isinstance(last, str) and last.startswith("*"):
            dims = dims[:-1]
            self._agree(key_pattern(last[1:]).fill(fields), max(len(shape) - len(dims), 0), key)
            shape = shape[: len(dims)]
        if len(shape) != len(dims):
            self.conflicts.append(f"{key} has shape {spec.shape}, {len(dims)} dimensions were expected")
            return
        if 0 in spec.shape:
            self.conflicts.append(f"{key} has shape {spec.shape}, which is empty")
            return
        for dim, size in zip(dims, shape, strict=True):
            if isinstance(dim, int):
                if dim != size:
                    self.conflicts.append(f"{key} has shape {spec.shape}, expected {dim} where it has {size}")
            elif dim != "_":
                self._agree(key_pattern(dim).fill(fields), size, key)

    def _agree(self, name: str, size: int, key: str) -> None:
        known = self.sizes.setdefault(name, size)
        source = self._source.setdefault(name, key)
        if known != size:
            self.conflicts.append(f"{name} is {known} in {source}, but {size} in {key}")

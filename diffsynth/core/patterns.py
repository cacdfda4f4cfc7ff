"""Key patterns such as ``blocks.{i}.mlp.fc1``: match a key, fill one in.

A field ``{name}`` stands for a number. ``**`` at the end stands for whatever follows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import count
from typing import Generic, TypeVar

T = TypeVar("T")

_FIELD = re.compile(r"\{(\w+)\}")
_NUMBER = re.compile("[0-9]+")


class KeyPattern:
    """A pattern for the keys of a state dict.

    Args:
        text: dotted names; ``{name}`` matches a number, a final ``**`` matches any rest.
        suffixes: endings that may follow a match and are then reported, for example ``(".weight", ".bias")``.
    """

    def __init__(self, text: str, suffixes: tuple[str, ...] = ()) -> None:
        self.text = text
        self.suffixes = suffixes
        self.fields: tuple[str, ...] = tuple(_FIELD.findall(text))
        body = re.escape(text.removesuffix("**"))
        body = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>0|[1-9][0-9]{0,8})", body)
        rest = ".*" if text.endswith("**") else ""
        ending = "(" + "|".join(re.escape(suffix) for suffix in suffixes) + ")?" if suffixes else "()"
        self._regex = re.compile(body + rest + ending, re.DOTALL)

    def match(self, key: str) -> tuple[dict[str, int], str] | None:
        """Return the numbers of the fields and the suffix, or None if the key is another one."""
        found = self._regex.fullmatch(key)
        if found is None:
            return None
        return {name: int(value) for name, value in found.groupdict().items()}, found[len(found.groups())] or ""

    def fill(self, fields: Mapping[str, int]) -> str:
        """Return the key with numbers in the place of the fields."""
        return _FIELD.sub(lambda field: str(fields[field[1]]), self.text)

    def __repr__(self) -> str:
        return f"KeyPattern({self.text!r})"


@lru_cache(maxsize=4096)
def key_pattern(text: str, suffixes: tuple[str, ...] = ()) -> KeyPattern:
    """Return the pattern for ``text``, made once."""
    return KeyPattern(text, suffixes)


class PatternTable(Generic[T]):
    """Patterns with a value each, of which a key finds the first that it matches without being compared with most.

    Args:
        rows: patterns and values, in the order in which they are tried.
    """

    def __init__(self, rows: Iterable[tuple[KeyPattern, T]]) -> None:
        shaped = [(row, _shapes(row[0])) for row in rows]
        known = {shape for _, shapes in shaped for shape in shapes or ()}
        self._any_shape = [row for row, shapes in shaped if shapes is None]
        self._by_shape: dict[str, list[tuple[KeyPattern, T]]] = {shape: [] for shape in known}
        for row, shapes in shaped:
            for shape in known if shapes is None else shapes:
                self._by_shape[shape].append(row)

    def find(self, key: str) -> tuple[T, dict[str, int], str] | None:
        """Return the value of the first pattern that a key matches, the numbers of its fields, and the suffix."""
        for pattern, value in self._by_shape.get(_without_numbers(key), self._any_shape):
            if (match := pattern.match(key)) is not None:
                return value, *match
        return None


def _shapes(pattern: KeyPattern) -> set[str] | None:
    """Return how keys that a pattern matches look without their numbers; None if they end in anything."""
    if pattern.text.endswith("**"):
        return None
    key = pattern.fill(dict.fromkeys(pattern.fields, 0))
    return {_without_numbers(key + suffix) for suffix in ("", *pattern.suffixes)}


def _without_numbers(key: str) -> str:
    return _NUMBER.sub("0", key)


def fold_numbers(key: str) -> str:
    """Replace the numbered parts of a key by ``{i}``, ``{j}``…: the pattern that a key suggests."""
    names = (letter * times for times in count(1) for letter in "ijklmnopqrstuvwxyz")
    return ".".join("{" + next(names) + "}" if part.isdecimal() else part for part in key.split("."))

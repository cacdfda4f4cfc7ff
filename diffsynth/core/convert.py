"""Tables that translate between the names in a file ("theirs") and the names of our modules ("ours").

A rule names a layer; its ``.weight`` and ``.bias`` follow. Every rule can be run either way, so one table
loads and saves, and translates the keys of adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from diffsynth.core.patterns import PatternTable, key_pattern
from diffsynth.types import StateDict

_SUFFIXES = (".weight", ".bias")


@dataclass(frozen=True)
class Op:
    """A change to a tensor and the change back."""

    name: str
    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor], Tensor]


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _transpose(tensor: Tensor) -> Tensor:
    return tensor.t() if tensor.ndim == 2 else tensor


def _conv_to_linear(tensor: Tensor) -> Tensor:
    return tensor.flatten(1) if tensor.ndim == 4 and tensor.shape[2:] == (1, 1) else tensor


def _linear_to_conv(tensor: Tensor) -> Tensor:
    return tensor[:, :, None, None] if tensor.ndim == 2 else tensor


def _swap_halves(tensor: Tensor) -> Tensor:
    return torch.cat(tensor.chunk(2)[::-1])


def _row(tensor: Tensor) -> Tensor:
    return tensor[None]


def _unrow(tensor: Tensor) -> Tensor:
    return tensor[0]


SAME = Op("same", _same, _same)
TRANSPOSE = Op("transpose", _transpose, _transpose)
CONV1X1_TO_LINEAR = Op("conv1x1 to linear", _conv_to_linear, _linear_to_conv)
SWAP_HALVES = Op("swap halves", _swap_halves, _swap_halves)
VECTOR_TO_ROW = Op("vector to row", _row, _unrow)


@dataclass(frozen=True)
class Rename:
    """One layer, under another name."""

    theirs: str
    ours: str
    op: Op = SAME


def keep(name: str, op: Op = SAME) -> Rename:
    """One layer that has the same name on both sides."""
    return Rename(name, name, op)


@dataclass(frozen=True)
class Split:
    """One layer of theirs holds several of ours, stacked in equal parts along the first dimension."""

    theirs: str
    ours: tuple[str, ...]


@dataclass(frozen=True)
class Join:
    """Several layers of theirs are stacked into one of ours, along the first dimension."""

    theirs: tuple[str, ...]
    ours: str


@dataclass(frozen=True)
class Tie:
    """One tensor of theirs is known under several names of ours."""

    theirs: str
    ours: tuple[str, ...]


@dataclass(frozen=True)
class Drop:
    """Keys of theirs that we leave out, and why."""

    theirs: str
    why: str


Rule: TypeAlias = Rename | Split | Join | Tie | Drop
Rules: TypeAlias = tuple[Rule, ...]


@dataclass(frozen=True, eq=False)
class Factors:
    """A change of low rank: the rows of a matrix of ours from ``first`` on change by ``up @ down``."""

    ours: str
    first: int
    up: Tensor
    down: Tensor


@dataclass(frozen=True)
class Conversion:
    """One step of a conversion: these keys of theirs are those keys of ours."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    rule: Rule

    def to_ours(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Turn tensors of the file, in the order of ``theirs``, into those of ``ours``."""
        match self.rule:
            case Rename(op=op):
                return [op.forward(tensors[0])]
            case Split():
                return list(tensors[0].chunk(len(self.ours)))
            case Join():
                return [torch.cat(list(tensors))]
            case _:
                return [tensors[0]] * len(self.ours)

    def factors_to_ours(self, place: int, rows: Sequence[int], up: Tensor, down: Tensor) -> list[Factors]:
        """Turn a change ``up @ down`` of one matrix of theirs into changes of ours, exactly and without multiplying.

        Args:
            place: which of ``theirs`` changes.
            rows: how many rows each of ``theirs`` has.
            up: (rows[place], rank).
            down: (rank, columns).
        """
        match self.rule:
            case Rename(op=op) if op is TRANSPOSE:
                return [Factors(self.ours[0], 0, down.t(), up.t())]
            case Rename(op=op):
                return [Factors(self.ours[0], 0, op.forward(up), down)]
            case Split():
                parts = zip(self.ours, up.chunk(len(self.ours)), strict=True)
                return [Factors(ours, 0, part, down) for ours, part in parts]
            case Join():
                return [Factors(self.ours[0], sum(rows[:place]), up, down)]
            case _:
                return [Factors(ours, 0, up, down) for ours in self.ours]

    def to_theirs(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Turn tensors of ours, in the order of ``ours``, into those of the file."""
        match self.rule:
            case Rename(op=op):
                return [op.backward(tensors[0])]
            case Split():
                return [torch.cat(list(tensors))]
            case Join():
                return list(tensors[0].chunk(len(self.theirs)))
            case _:
                return [tensors[0]]


def _sides(rule: Rule) -> tuple[tuple[str, ...], tuple[str, ...]]:
    match rule:
        case Rename(theirs=theirs, ours=ours):
            return (theirs,), (ours,)
        case Split(theirs=theirs, ours=parts):
            return (theirs,), parts
        case Join(theirs=parts, ours=ours):
            return parts, (ours,)
        case Tie(theirs=theirs, ours=names):
            return (theirs,), names
        case Drop(theirs=theirs):
            return (theirs,), ()


class Converter:
    """Runs a table of rules either way."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self._drops = [key_pattern(rule.theirs, _SUFFIXES) for rule in rules if isinstance(rule, Drop)]
        self._ours = _table(rules, ours=True)
        self._theirs = _table(rules, ours=False)

    def from_ours(self, keys: Iterable[str]) -> list[Conversion]:
        """Return the conversions that cover these keys of ours.

        Raises:
            KeyError: a key has no rule; the table does not fit the module.
        """
        return self._cover(keys, self._ours)

    def from_theirs(self, keys: Iterable[str]) -> list[Conversion]:
        """Return the conversions that these keys of theirs take part in; dropped and unknown keys have none."""
        return self._cover((key for key in keys if self._theirs.find(key)), self._theirs)

    def drops(self, key: str) -> bool:
        """Whether a key of theirs is left out on purpose."""
        return any(pattern.match(key) for pattern in self._drops)

    def roots(self) -> frozenset[str]:
        """Return the first names of theirs that the table speaks of, such as ``blocks``."""
        return frozenset(text.split(".", 1)[0] for rule in self.rules for text in _sides(rule)[0])

    def to_theirs(self, state: Mapping[str, Tensor]) -> StateDict:
        """Translate a state dict of ours into the file's names."""
        out: StateDict = {}
        for step in self.from_ours(state):
            out.update(zip(step.theirs, step.to_theirs([state[key] for key in step.ours]), strict=True))
        return out

    def to_ours(self, state: Mapping[str, Tensor]) -> StateDict:
        """Translate a state dict in the file's names into ours.

        Raises:
            KeyError: a tensor that a conversion needs is not there.
        """
        out: StateDict = {}
        for step in self.from_theirs(state):
            out.update(zip(step.ours, step.to_ours([state[key] for key in step.theirs]), strict=True))
        return out

    @staticmethod
    def _cover(keys: Iterable[str], table: PatternTable[Rule]) -> list[Conversion]:
        steps: dict[Conversion, None] = {}
        for key in keys:
            found = table.find(key)
            if found is None:
                raise KeyError(f"no rule speaks of {key}")
            rule, fields, suffix = found
            theirs, ours = (tuple(key_pattern(text).fill(fields) + suffix for text in side) for side in _sides(rule))
            steps[Conversion(theirs, ours, rule)] = None
        return list(steps)


def _table(rules: Rules, *, ours: bool) -> PatternTable[Rule]:
    return PatternTable(
        (key_pattern(text, _SUFFIXES), rule)
        for rule in rules
        if not isinstance(rule, Drop)
        for text in _sides(rule)[1 if ours else 0]
    )

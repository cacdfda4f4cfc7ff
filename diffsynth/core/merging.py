"""Merge the networks that several files have in common, whatever their families and spellings.

Each tensor is read from the mapped files when its turn has come, blended under the names of our modules, spelt again
as in the first file, and written before the next one is read.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from diffsynth.core.blend import BlendWeights, all_finite, blend
from diffsynth.core.checkpoint import Checkpoint, same_bits
from diffsynth.core.convert import Conversion, Converter, Tie
from diffsynth.core.formats.safetensors import NAMES
from diffsynth.core.loading import check_header
from diffsynth.core.pairing import Source, partners
from diffsynth.core.registry import Identified
from diffsynth.errors import NonFiniteResult, UnsupportedCheckpoint, listed, printable
from diffsynth.types import Header, TensorSpec

logger = logging.getLogger(__name__)


class Merge:
    """What becomes of each tensor of the first file.

    Args:
        first: the file whose networks are changed, and whose names and other tensors the result has.
        others: what they are merged with: a second file, and for its difference to another that one too.
        weights: how much of the second each tensor gets.
        dtype: of the floating-point weights of networks; None keeps those of the first file.

    Attributes:
        header: key → shape and dtype of the result.
        merged: labels of the networks that all files hold.
        kept: labels of those that stay as they are in the first file.
        beside: keys of the first file that are no weights of a network we know, and stay too.

    Raises:
        CheckpointError: the files have no network in common, or their networks differ in sizes.
        InvalidRequest: a pattern for blocks fits nothing.
    """

    def __init__(
        self, first: Source, others: Sequence[Source], weights: BlendWeights, dtype: torch.dtype | None
    ) -> None:
        self._first, self._others, self._weights = first, others, weights
        found = [partners(first, other) for other in others]
        together = list(zip(first.networks, *found, strict=True))
        self._networks = [_Network(first, others, group) for group in together if None not in group]
        if not self._networks:
            raise UnsupportedCheckpoint(
                first.path,
                f"has no network in common with {' and '.join(printable(other.path, 400) for other in others)}: "
                + "; ".join(f"{source.path.name} holds {listed(source.labels)}" for source in (first, *others)),
                "Give files with networks of one family.",
            )
        self.merged = [group[0].label for group in together if None not in group]
        self.kept = [group[0].label for group in together if None in group]
        _remark_marks((first, *others), [group for group in together if None not in group])
        weights.check([name for network in self._networks for key in network.names for name in network.called(key)])
        source = first.checkpoint.header
        known = {key for each in first.networks for key in _weights_of(each)}
        self._rest = source.keys() - {key for network in self._networks for key in network.theirs}
        self.beside = sorted(self._rest - known)
        self.header: Header = {
            key: _converted(spec, dtype) if key in known or key not in self._rest else spec
            for key, spec in source.items()
        }
        if strange := [f"{key} ({spec.dtype})" for key, spec in self.header.items() if spec.dtype not in NAMES]:
            problem = f"holds {len(strange)} tensors of a dtype that safetensors files do not have: {listed(strange)}"
            raise UnsupportedCheckpoint(first.path, problem, "Save it without them.")

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each tensor of the result; the memory of the one before is given back then.

        Raises:
            NonFiniteResult: a tensor has NaN or infinity.
            CheckpointError: a file was changed meanwhile.
        """
        checkpoint = self._first.checkpoint
        for network in self._networks:
            for step in network.steps:
                yield from self._merge(network, step)
        for key in sorted(self._rest):
            tensor = checkpoint[key].to(self.header[key].dtype)
            if self.header[key] != checkpoint.header[key] and not all_finite(tensor):
                self._refuse(key, tensor.dtype, {self._first.path: checkpoint[key]})
            yield key, tensor
            checkpoint.forget(key)
        for source in (self._first, *self._others):
            source.checkpoint.check_unchanged()

    def _merge(self, network: _Network, step: Conversion) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors of one conversion under the names of the first file."""
        keys = [network.prefix + key for key in step.theirs]
        names = (step.ours,) if isinstance(step.rule, Tie) else tuple((name,) for name in step.ours)
        dtype = _common({self.header[key].dtype for key in keys})
        blended = [self._blend(network, tied, dtype) for tied in names]
        for key, tensor in zip(keys, step.to_theirs(blended), strict=True):
            result = tensor.to(self.header[key].dtype)
            if result is not tensor and not all_finite(result):  # only where one tensor of ours is two of theirs
                self._refuse(key, result.dtype, {})
            for name in (key, *network.copies.get(key, ())):
                yield name, result
        for name in step.ours:
            network.forget(name)

    def _blend(self, network: _Network, tied: tuple[str, ...], dtype: torch.dtype) -> Tensor:
        """Return one tensor of the result, which goes by several of our names if it is tied."""
        name = tied[0]
        first, second, *base = network.read(name)
        if not first.is_floating_point():
            return first
        weight = self._weights.of([called for each in tied for called in network.called(each)])
        result = blend(first, second, weight, base=base[0] if base else None, dtype=dtype)
        if not all_finite(result):
            sources = dict(
                zip((each.path for each in (self._first, *self._others)), (first, second, *base), strict=True)
            )
            self._refuse(network.keys_of(name), dtype, sources)
        return result

    @staticmethod
    def _refuse(key: str, dtype: torch.dtype, given: Mapping[Path, Tensor]) -> None:
        """Say why a result is not finite: an input is not, or the numbers do not fit the dtype."""
        damaged = [path for path, tensor in given.items() if not all_finite(tensor)]
        name = str(dtype).removeprefix("torch.")
        remedy = (
            f"It is so in {listed(damaged)} already; `diffsynth inspect --verify` lists all such tensors."
            if damaged
            else f"The numbers are too large for {name}; take smaller weights, or bfloat16 or float32 for the result."
        )
        raise NonFiniteResult(f"the merged tensor {printable(key, 200)}", remedy)


class _Network:
    """A network that all files hold, read under the names of our modules.

    Attributes:
        prefix: under which it lies in the first file.
        names: of all its tensors, our own.
        steps: how they are spelt in the first file.
        copies: key → further keys under which the first file holds the same tensor; they must follow.
        theirs: all keys of the first file that the result has in a new form.
    """

    def __init__(self, first: Source, others: Sequence[Source], group: Sequence[Identified]) -> None:
        found = group[0]
        ours = found.family.build_on_meta(found.config).state_dict()
        self._family, self.prefix, self.names = found.family.name, found.prefix, list(ours)
        self._spellings = [
            _Spelling(source.checkpoint, each, ours) for source, each in zip((first, *others), group, strict=True)
        ]
        self.steps = self._spellings[0].steps
        own = [found.prefix + key for step in self.steps for key in step.theirs]
        self.copies = _copies(first.checkpoint, found, own)
        self.theirs = {*own, *(copy for copies in self.copies.values() for copy in copies)}

    def called(self, name: str) -> tuple[str, str, str]:
        """Return what a tensor may be called in a pattern: our name, also under the family or the file's prefix."""
        return name, f"{self._family}.{name}", f"{self.prefix}{name}"

    def read(self, name: str) -> list[Tensor]:
        """Return a tensor of ours from each file."""
        return [spelling.read(name) for spelling in self._spellings]

    def forget(self, name: str) -> None:
        """Give back the memory of its pages in every file."""
        for spelling in self._spellings:
            spelling.forget(name)

    def keys_of(self, name: str) -> str:
        """Return what a tensor of ours is in the first file."""
        return self._spellings[0].keys_of(name)


class _Spelling:
    """The tensors of one network in one file, by the names of our modules."""

    def __init__(self, checkpoint: Checkpoint, found: Identified, ours: Mapping[str, Tensor]) -> None:
        check_header(found, checkpoint, ours)
        self._checkpoint, self._prefix = checkpoint, found.prefix
        self.steps = Converter(found.layout.rules(found.config)).from_ours(ours)
        self._step_of = {name: (step, place) for step in self.steps for place, name in enumerate(step.ours)}

    def read(self, name: str) -> Tensor:
        step, place = self._step_of[name]
        return step.to_ours([self._checkpoint[self._prefix + key] for key in step.theirs])[place]

    def forget(self, name: str) -> None:
        for key in self._step_of[name][0].theirs:
            self._checkpoint.forget(self._prefix + key)

    def keys_of(self, name: str) -> str:
        return " + ".join(self._prefix + key for key in self._step_of[name][0].theirs)


def _copies(checkpoint: Checkpoint, found: Identified, own: Sequence[str]) -> dict[str, list[str]]:
    """Return where a file holds tensors of a network a second time, under names that we drop.

    Other programs may read these names, so they must not keep what the tensor was before.
    """
    converter = Converter(found.layout.rules(found.config))
    dropped = [key for key in sorted(found.keys - found.beside) if converter.drops(key[len(found.prefix) :])]
    copies: dict[str, list[str]] = {}
    for copy in dropped:
        for key in own:
            if checkpoint.header[key] == checkpoint.header[copy] and _same(checkpoint[key], checkpoint[copy]):
                copies.setdefault(key, []).append(copy)
                break
    for key in (*own, *dropped):
        checkpoint.forget(key)
    return copies


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether a tensor is a copy of another, not only as empty; most that are not differ in their first row."""
    if not one.ndim:
        return False
    same = same_bits(one[:1], other[:1]) and same_bits(one, other)
    return same and not same_bits(one, one.flatten()[:1].expand_as(one))


def _remark_marks(sources: Sequence[Source], groups: Sequence[Sequence[Identified]]) -> None:
    """Tell of networks that were trained for different things, of which the result is marked as the first."""
    for first, *others in groups:
        for source, other in zip(sources[1:], others, strict=True):
            if differs := sorted(first.marks ^ other.marks):
                logger.warning(
                    "of %s in %s and %s only one is marked %s; the result is marked as the first",
                    first.family.name, sources[0].path, source.path, " and ".join(differs),
                )  # fmt: skip


def _weights_of(found: Identified) -> Iterator[str]:
    """Yield the keys of a network's weights in its file."""
    converter = Converter(found.layout.rules(found.config))
    return (key for key in found.keys - found.beside if not converter.drops(key[len(found.prefix) :]))


def _converted(spec: TensorSpec, dtype: torch.dtype | None) -> TensorSpec:
    return spec if dtype is None or not spec.dtype.is_floating_point else replace(spec, dtype=dtype)


def _common(dtypes: set[torch.dtype]) -> torch.dtype:
    """Return a dtype that holds the numbers of all of these."""
    if len(dtypes) == 1:
        return next(iter(dtypes))
    return torch.float64 if torch.float64 in dtypes else torch.float32

"""Attach a LoRA to the networks it was made for; change its strength, merge it, or take it off."""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from diffsynth.core.checkpoint import Checkpoint
from diffsynth.core.loaded import LoadedModel
from diffsynth.errors import (
    CorruptCheckpoint,
    InvalidRequest,
    ModelNotLoaded,
    NonFiniteResult,
    listed,
    printable,
)
from diffsynth.lora.choice import choose
from diffsynth.lora.formats import Pair, read_pairs
from diffsynth.lora.layers import Addition, Change, Layer, Strength
from diffsynth.lora.names import Place, means_root

logger = logging.getLogger(__name__)


class LoRA:
    """A LoRA on the networks it changes; ``ModelManager.load_lora`` makes it.

    Attributes:
        checkpoint: its file.
        layers: how many layers of each network it changes: the network's label → number.
        ranks: those of its changes.
        unmatched: keys of the file that belong to no network and were left out (with ``strict=False``).
        merged: whether it was added to the weights for good.
    """

    def __init__(self, checkpoint: Checkpoint, scale: float, *, strict: bool) -> None:
        self.checkpoint = checkpoint
        self.layers: dict[str, int] = {}
        self.ranks: tuple[int, ...] = ()
        self.unmatched: tuple[str, ...] = ()
        self.merged = False
        self._strict = strict
        self._strength = Strength(checked(scale))
        self._networks: list[weakref.ref[LoadedModel[Any]]] = []
        self._additions: list[tuple[weakref.ref[Layer], Addition, str]] = []
        self._handles: list[RemovableHandle] = []

    @property
    def scale(self) -> float:
        """How much of it is added, 1 for as much as it was made for; set it at any time."""
        return self._strength.scale

    @scale.setter
    def scale(self, value: float) -> None:
        self._refuse_merged("its scale cannot be changed")
        self._strength.scale = checked(value)

    @property
    def attached(self) -> bool:
        """Whether it is computed beside the layers of its networks."""
        return bool(self._handles)

    @property
    def nbytes(self) -> int:
        """Bytes of its matrices in memory."""
        memory = {tensor.data_ptr(): tensor.nbytes for _, addition, _ in self._additions for tensor in addition.tensors}
        return sum(memory.values())

    def detach(self) -> None:
        """Take it off; the weights of the networks were never touched, so they are what they were bit for bit.

        Raises:
            InvalidRequest: it was merged.
        """
        self._refuse_merged("it cannot be taken off")
        self._let_go()
        for network in self._alive():
            network.adapters.remove(self)
        self._networks.clear()

    def merge(self) -> None:
        """Add it to the weights for good, at its present scale, so that it costs no time while drawing.

        Raises:
            InvalidRequest: it was merged or detached already.
            NonFiniteResult: the numbers are too large for the dtype of a weight; nothing was changed.
        """
        self._refuse_merged("it cannot be merged again")
        if not self.attached:
            raise InvalidRequest(f"the LoRA {printable(self.checkpoint.path, 300)} was detached; load it again.")
        for layer, addition, name in self._layers():
            if not torch.isfinite(addition.merged(layer)).all():
                dtype = str(layer.weight.dtype).removeprefix("torch.")
                remedy = f"The numbers are too large for {dtype}, or not finite; take a smaller scale."
                raise NonFiniteResult(f"the weight of {name} with the LoRA {self.checkpoint.path.name}", remedy)
        for layer, addition, _ in self._layers():
            layer.weight = nn.Parameter(addition.merged(layer), requires_grad=False)
        self._let_go()
        self.merged = True

    def describe(self) -> dict[str, str | float | bool]:
        """Return what an image depends on beside the file."""
        return {"kind": "lora", "scale": self.scale, "strict": self._strict, "merged": self.merged}

    def attach(self, places: Iterable[tuple[LoadedModel[Any], Pair, Place, float]]) -> None:
        """Read the matrices and hook them to their layers: each change's network, place and factor."""
        additions: dict[Layer, tuple[str, LoadedModel[Any], list[Change]]] = {}
        for network, pair, place, factor in places:
            factors = pair.factors(self.checkpoint)
            kept: dict[int, Tensor] = {}  # what several layers share is kept once
            rows = [shape[0] for shape in place.shapes]
            for each in place.step.factors_to_ours(place.index, rows, *factors):
                layer: Any = network.module.get_submodule(each.ours.removesuffix(".weight"))
                up, down = (_kept(half, layer, kept) for half in (each.up, each.down))
                change = Change(each.first, up, down, factor)
                additions.setdefault(layer, (each.ours, network, []))[2].append(change)
            for key in filter(None, (pair.up, pair.down, pair.mid)):
                self.checkpoint.forget(key)
        self.checkpoint.check_unchanged()
        self._refuse_doubles(additions.values())
        for layer, (name, network, changes) in additions.items():
            addition = Addition(self._strength, changes)
            self._additions.append((weakref.ref(layer), addition, name))
            self._handles.append(layer.register_forward_hook(addition))
            self.layers[network.label] = self.layers.get(network.label, 0) + 1
        networks = {id(network): network for _, network, _ in additions.values()}
        self._networks = [weakref.ref(network) for network in networks.values()]
        for network in networks.values():
            network.adapters.append(self)

    def _refuse_doubles(self, additions: Iterable[tuple[str, LoadedModel[Any], list[Change]]]) -> None:
        """Raise if rows of a layer would be changed twice, which they are not meant to be."""
        for name, network, changes in additions:
            taken = sorted((change.first, change.first + len(change.up)) for change in changes)
            if any(end > start for (_, end), (start, _) in pairwise(taken)):
                problem = f"changes {name} of {network.label} twice, under different names"
                raise CorruptCheckpoint(self.checkpoint.path, problem, "Remove one of them from the file.")

    def _layers(self) -> Iterable[tuple[Layer, Addition, str]]:
        return [(layer, addition, name) for ref, addition, name in self._additions if (layer := ref()) is not None]

    def _alive(self) -> list[LoadedModel[Any]]:
        return [network for ref in self._networks if (network := ref()) is not None]

    def _let_go(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._additions.clear()

    def _refuse_merged(self, what: str) -> None:
        if self.merged:
            raise InvalidRequest(
                f"the LoRA {printable(self.checkpoint.path, 300)} is merged into the weights, so {what}; "
                "release the networks and load them again."
            )

    def __repr__(self) -> str:
        state = "merged" if self.merged else "attached" if self.attached else "detached"
        ranks = f"{self.ranks[0]}" if len(self.ranks) == 1 else f"{self.ranks[0]} to {self.ranks[-1]}"
        rows = [f"  {count} layers of {label}" for label, count in self.layers.items()]
        rows += [f"  {len(self.unmatched)} keys left out: {listed(self.unmatched)}"] if self.unmatched else []
        head = f"LoRA({printable(self.checkpoint.path, 200)}, scale {self.scale:g}, rank {ranks}, {state}):"
        return "\n".join((head, *rows))


def attach_lora(
    checkpoint: Checkpoint, networks: Sequence[LoadedModel[Any]], scale: float, *, strict: bool = True
) -> LoRA:
    """Attach a LoRA to those networks that it was made for.

    Args:
        checkpoint: its file.
        networks: those it may be for; which are meant, names and shapes tell.
        scale: how much of it is added.
        strict: raise if a key belongs to no network; else it is left out.

    Raises:
        CheckpointError: the file is no LoRA, or does not fit the networks.
        AmbiguousModel: several networks fit.
        ModelNotLoaded: there are no networks.
    """
    lora = LoRA(checkpoint, scale, strict=strict)
    pairs, strays = read_pairs(checkpoint)
    if not networks:
        raise ModelNotLoaded(f"a network for the LoRA {checkpoint.path}", (), "Load the networks first.")
    choice = choose(checkpoint, pairs, networks)
    _refuse_again(checkpoint, [each.network for each in choice.fits.values()])
    found = choice.found
    left = [pair for pair in pairs if pair not in found]
    if (strict and (left or strays)) or not found:
        raise choice.mismatch(left, strays, "Load the networks that it was made for.", "strict=False (--lora-partly)")
    lora.unmatched = (*(pair.down for pair in left), *strays)
    lora.ranks = tuple(sorted({pair.rank for pair in found}))
    root = any(means_root(pair, place) for pair, (_, place) in found.items())
    lora.attach((network, pair, place, _factor(pair, root=root)) for pair, (network, place) in found.items())
    logger.info("attached %r", lora)
    if lora.unmatched:
        logger.warning("%s: %d keys were left out: %s", checkpoint.path, len(lora.unmatched), listed(lora.unmatched))
    return lora


def checked(scale: float) -> float:
    """Return a scale that a LoRA can have.

    Raises:
        InvalidRequest: it is no finite number.
    """
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not math.isfinite(scale):
        raise InvalidRequest(f"the scale of a LoRA is a finite number, such as 0.8, not {printable(repr(scale))}.")
    return float(scale)


def _refuse_again(checkpoint: Checkpoint, networks: Sequence[LoadedModel[Any]]) -> None:
    """Raise if the same file changes one of the networks already, since both together are seldom meant."""
    files = [file.resolve() for file in checkpoint.files]
    for network in networks:
        if any([file.resolve() for file in each.checkpoint.files] == files for each in network.adapters):
            raise InvalidRequest(
                f"the LoRA {printable(checkpoint.path, 300)} changes {network.label} already. Set its scale, or "
                "detach() it first; one that is merged goes with the network."
            )


def _factor(pair: Pair, *, root: bool) -> float:
    if pair.alpha is not None:
        return pair.alpha / pair.rank
    return 1 / math.sqrt(pair.rank) if root else 1.0


def _kept(half: Tensor, layer: Layer, kept: dict[int, Tensor]) -> Tensor:
    """Return a matrix in memory of its own, in the dtype and on the device of a layer."""
    if id(half) not in kept:
        own = torch.empty(half.shape, dtype=layer.weight.dtype, device=layer.weight.device)
        kept[id(half)] = own.copy_(half)
    return kept[id(half)]

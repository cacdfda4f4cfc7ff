"""Which layer of which network each change of a LoRA file belongs to, told by the families' conversion tables.

Names are looked up in a table that is made from the network, never taken apart: underscores stand for dots and for
underscores alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from diffsynth.core.convert import Conversion, Converter
from diffsynth.core.family import Layout, ModelFamily
from diffsynth.lora.formats import Pair, squashed


class Network(Protocol):
    """A network that a LoRA may be for; its weights need not be in memory."""

    @property
    def family(self) -> ModelFamily:
        """The kind of network."""

    @property
    def config(self) -> Any:
        """Its sizes."""

    @property
    def module(self) -> Any:
        """Its modules."""

    @property
    def path(self) -> Path:
        """Its file."""

    @property
    def label(self) -> str:
        """Its kind and its file, for messages."""


N = TypeVar("N", bound=Network)


@dataclass(frozen=True)
class Place:
    """A layer of theirs, in one spelling of a network.

    Args:
        name: of the layer.
        layout: the spelling that has this name.
        step: which tensors of ours its weight is.
        index: which of the tensors of that step it is.
        shapes: of all of these.
    """

    name: str
    layout: str
    step: Conversion
    index: int
    shapes: tuple[tuple[int, ...], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """That of its weight."""
        return self.shapes[self.index]

    def fits(self, pair: Pair) -> bool:
        """Whether a change has the shape of this layer; a linear layer is a convolution of one pixel."""
        one, other = (shape + (1, 1) * (len(shape) == 2) for shape in (self.shape, pair.shape))
        return one == other


@dataclass(eq=False)
class Fit(Generic[N]):
    """What of some changes belongs to a network.

    Args:
        network: the network.
        found: the place of each change that it has.
        wrong: the place of each whose name it has, but with another shape.
        names: of all its layers, as far as they were looked for: without dots → as they are.
    """

    network: N
    found: dict[Pair, Place] = field(default_factory=dict)
    wrong: dict[Pair, Place] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def nearest(self, pair: Pair) -> str:
        """Return the layer whose name is most like that of a change, or nothing."""
        near = get_close_matches(pair.places[1][-1], self.names, n=1)
        return self.names[near[0]] if near else ""


def fit(pairs: Sequence[Pair], network: N, tables: dict[str, dict[str, Place]]) -> Fit[N]:
    """Find the places of changes in a network: in the spelling that has most of them, then in the others.

    ``tables`` keeps the places of each layout that was looked at, for the next call with this network.
    """
    result = Fit(network)
    spelt: list[dict[Pair, Place]] = []
    for layout in network.family.layouts:
        known = tables.get(layout.name) or tables.setdefault(layout.name, places(network, layout))
        result.names |= {name: place.name for name, place in known.items()}
        spelt.append({pair: place for pair in pairs if (place := _look_up(pair, known)) is not None})
        if len(spelt[-1]) == len(pairs) and all(place.fits(pair) for pair, place in spelt[-1].items()):
            break
    for table in sorted(spelt, key=lambda each: -sum(place.fits(pair) for pair, place in each.items())):
        for pair, place in table.items():
            if place.fits(pair):
                result.found.setdefault(pair, place)
            else:
                result.wrong.setdefault(pair, place)
    result.wrong = {pair: place for pair, place in result.wrong.items() if pair not in result.found}
    return result


def _look_up(pair: Pair, known: dict[str, Place]) -> Place | None:
    return next((known[name] for name in pair.places[1] if name in known), None)


def places(network: Network, layout: Layout) -> dict[str, Place]:
    """Return all layers of a network that a LoRA may change, under their names in a layout."""
    weights = {key: weight for key, weight in network.module.state_dict().items() if changeable(network.module, key)}
    found: dict[str, Place] = {}
    for step in Converter(layout.rules(network.config)).from_ours(weights):
        if not all(key in weights for key in step.ours):
            continue
        theirs = step.to_theirs([_without_values(weights[key]) for key in step.ours])
        shapes = tuple(tuple(tensor.shape) for tensor in theirs)
        for index, key in enumerate(step.theirs):
            name = key.removesuffix("weight").rstrip("._")
            found[squashed(name)] = found[squashed(layout.prefix + name)] = Place(
                name, layout.name, step, index, shapes
            )
    return found


def _without_values(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, device="meta")


def changeable(module: nn.Module, key: str) -> bool:
    """Whether a key of a state dict is the weight of a layer that a LoRA may change."""
    owner, _, name = key.rpartition(".")
    layer = module.get_submodule(owner)
    if name != "weight":
        return False
    return isinstance(layer, nn.Linear) or (
        isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros"
    )


def means_root(pair: Pair, place: Place) -> bool:
    """Whether a file is of HunyuanDiT's first web page, which means another scale where it says no alpha.

    It names layers of the published files, with dots in the place of underscores, as those of a UNet.
    """
    return pair.dotted and place.layout == "original" and pair.name == f"unet.{place.name.replace('_', '.')}"

"""What a LoRA adds to one layer: computed beside it while drawing, or added to its weight for good."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Layer = nn.Linear | nn.Conv2d


@dataclass
class Strength:
    """How much of a LoRA is added, shared by all its layers, so that one number changes it while it is in use."""

    scale: float


@dataclass(eq=False)
class Change:
    """A change to some rows of a layer's weight.

    Args:
        first: the first of the rows.
        up: (rows, rank).
        down: (rank, columns).
        factor: alpha over rank.
    """

    first: int
    up: Tensor
    down: Tensor
    factor: float

    def at(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``up`` and ``down`` as an input is; they move for good to another device, not to another dtype."""
        if self.up.device != inputs.device:
            self.up, self.down = self.up.to(inputs.device), self.down.to(inputs.device)
        return self.up.to(inputs.dtype), self.down.to(inputs.dtype)


class Addition:
    """The changes that one LoRA makes to one layer; a forward hook, so that the layer itself stays as it is."""

    def __init__(self, strength: Strength, changes: Sequence[Change]) -> None:
        self.strength = strength
        self.changes = tuple(changes)

    def __call__(self, layer: Layer, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """Add the changes to what the layer computed from its input."""
        if not self.strength.scale:
            return output
        for change in self.changes:
            up, down = change.at(inputs[0])
            added = _computed(layer, inputs[0], up, down)
            rows = output.narrow(1 if isinstance(layer, nn.Conv2d) else -1, change.first, len(up))
            rows.add_(added, alpha=self.strength.scale * change.factor)
        return output

    @property
    def tensors(self) -> list[Tensor]:
        """Its matrices; layers that were one in the file share some."""
        return [tensor for change in self.changes for tensor in (change.up, change.down)]

    def merged(self, layer: Layer) -> Tensor:
        """Return the layer's weight with the changes added, computed in float32."""
        weight = layer.weight.detach().to(torch.promote_types(layer.weight.dtype, torch.float32), copy=True)
        for change in self.changes:
            up, down = (each.to(weight) for each in (change.up, change.down))
            rows = weight[change.first : change.first + len(up)]
            rows.add_((up @ down).view_as(rows), alpha=self.strength.scale * change.factor)
        return weight.to(layer.weight.dtype)


def _computed(layer: Layer, inputs: Tensor, up: Tensor, down: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return F.linear(F.linear(inputs, down), up)
    kernel = down.view(len(down), *layer.weight.shape[1:])
    inner = F.conv2d(inputs, kernel, None, layer.stride, layer.padding, layer.dilation)
    return F.conv2d(inner, up[:, :, None, None])

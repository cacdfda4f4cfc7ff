"""What the UNet is told about the image: features of the prompt, the loop's tables, and a control network's outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypeAlias

import torch
from torch import Tensor
from typing_extensions import Self

from diffsynth.nn.attention import KeysValues

Rows: TypeAlias = slice | Sequence[int]


@dataclass(frozen=True)
class Condition:
    """All that depends on the prompts and the numbers beside them only; a row per prompt.

    Args:
        context: (B, L, context_size), the tokens that images attend to.
        label: (B, time_size), what is added to every timestep's embedding; None for a network without it.
    """

    context: Tensor
    label: Tensor | None = None

    def __len__(self) -> int:
        return len(self.context)

    def rows(self, index: Rows) -> Condition:
        """Return some rows: a slice is a view, a list of row numbers, which may repeat, is a copy."""
        return Condition(self.context[index], None if self.label is None else self.label[index])

    @classmethod
    def cat(cls, parts: Sequence[Condition]) -> Condition:
        """Return the rows of several conditions, in order; their contexts have the same length."""
        labels = [part.label for part in parts if part.label is not None]
        return cls(torch.cat([part.context for part in parts]), torch.cat(labels) if labels else None)


@dataclass(frozen=True)
class Plan:
    """All that stays the same over the denoising loop, for S steps and B rows.

    Args:
        timesteps: the S timesteps.
        time: (S, B, time_size), embeddings of timestep and label.
        text: name of a cross-attention → its keys and values of the text, each (B, L, heads, head_dim).
    """

    timesteps: tuple[float, ...]
    time: Tensor
    text: Mapping[str, KeysValues]

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.time.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the tables; keys and values are nearly all of it."""
        return self.time.nbytes + sum(part.nbytes for pair in self.text.values() for part in pair)

    def rows(self, index: Rows) -> Self:
        """Return some rows: a slice is a view, a list of row numbers, which may repeat, is a copy."""
        text = {name: (keys[index], values[index]) for name, (keys, values) in self.text.items()}
        return replace(self, time=self.time[:, index], text=MappingProxyType(text))


@dataclass(frozen=True)
class Controls:
    """What control networks add to the outputs of the way down and of the middle.

    Args:
        skips: one for each of ``config.skip_channels``, in their order, each (B, C, H, W) of its level.
        mid: (B, C, H, W) of the lowest level.
    """

    skips: tuple[Tensor, ...]
    mid: Tensor

    def __mul__(self, scale: float) -> Controls:
        """Return everything times a number."""
        return Controls(tuple(skip * scale for skip in self.skips), self.mid * scale)

    def rising(self) -> Controls:
        """Return everything times factors that rise evenly in logarithm from 0.1 for the first to 1 for the middle.

        With these a control network guesses what the image is without a prompt ("guess mode").
        """
        *factors, _ = torch.logspace(-1, 0, len(self.skips) + 1).tolist()
        return Controls(tuple(skip * factor for skip, factor in zip(self.skips, factors, strict=True)), self.mid)

    def spread(self, rows: Rows, count: int) -> Controls:
        """Return ``count`` rows: these at the given places, in their order, and zeros elsewhere."""

        def place(part: Tensor) -> Tensor:
            whole = part.new_zeros((count, *part.shape[1:]))
            whole[rows] = part
            return whole

        return Controls(tuple(place(skip) for skip in self.skips), place(self.mid))

    def __add__(self, other: Controls) -> Controls:
        """Return the sum of two networks' outputs."""
        pairs = zip(self.skips, other.skips, strict=True)
        return Controls(tuple(mine + theirs for mine, theirs in pairs), self.mid + other.mid)

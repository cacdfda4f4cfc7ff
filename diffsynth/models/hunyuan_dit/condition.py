"""What the denoiser is told about the image: the prompt's features, what becomes of them, and the loop's tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TypeAlias

import torch
from torch import Tensor
from typing_extensions import Self

from diffsynth.models.hunyuan_dit.rope import Rope

Rows: TypeAlias = slice | Sequence[int]


@dataclass(frozen=True)
class TextFeatures:
    """Outputs of the two text encoders for B prompts, padded to the lengths the network was trained with.

    Args:
        clip: (B, text_len, text_dim), the bilingual CLIP encoder's last hidden state.
        clip_mask: (B, text_len), True for a real token.
        t5: (B, t5_len, t5_dim), the mT5 encoder's last hidden state, that of padding included.
        t5_mask: (B, t5_len), True for a real token.
    """

    clip: Tensor
    clip_mask: Tensor
    t5: Tensor
    t5_mask: Tensor

    @classmethod
    def cat(cls, parts: Sequence[TextFeatures]) -> TextFeatures:
        """Return the rows of several prompts' features, in order."""
        return cls(*(torch.cat([getattr(part, each.name) for part in parts]) for each in fields(cls)))


@dataclass(frozen=True)
class Condition:
    """All that depends on the prompts and the size condition only; a row per prompt.

    Args:
        text: (B, L, text_dim), the tokens that images attend to, with learned padding in the free places.
        vector: (B, D), what is added to every timestep's embedding.
    """

    text: Tensor
    vector: Tensor

    def __len__(self) -> int:
        return len(self.vector)

    def rows(self, index: Rows) -> Condition:
        """Return some rows: a slice is a view, a list of row numbers, which may repeat, is a copy."""
        return Condition(self.text[index], self.vector[index])

    def expand(self, count: int) -> Condition:
        """Return a single row ``count`` times, without a copy.

        Raises:
            ValueError: if there is not exactly one row.
        """
        if len(self) != 1:
            raise ValueError(f"one row can be expanded to {count}, but the condition has {len(self)}")
        return Condition(self.text.expand(count, -1, -1), self.vector.expand(count, -1))

    @classmethod
    def cat(cls, parts: Sequence[Condition]) -> Condition:
        """Return the rows of several conditions, in order."""
        return cls(torch.cat([part.text for part in parts]), torch.cat([part.vector for part in parts]))


@dataclass(frozen=True)
class BlockCondition:
    """What one block takes from the condition.

    Args:
        shift: (B, D), added to the self-attention's input; in a plan (S, B, D), for each of S steps.
        keys: (B, L, heads, head_dim), of the text, normalised.
        values: (B, L, heads, head_dim).
    """

    shift: Tensor
    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class FinalCondition:
    """What the last layer takes from the condition.

    Args:
        shift: (B, D); in a plan (S, B, D).
        scale: (B, D); in a plan (S, B, D).
    """

    shift: Tensor
    scale: Tensor


@dataclass(frozen=True)
class Plan:
    """All that stays the same over the denoising loop, for S steps and B rows.

    Args:
        timesteps: the S timesteps.
        blocks: one for each block, shifts for all steps.
        final: for all steps.
        rope: positions of the image tokens.
    """

    timesteps: tuple[float, ...]
    blocks: tuple[BlockCondition, ...]
    final: FinalCondition
    rope: Rope

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.final.shift.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the tables; keys and values are nearly all of it."""
        tables = [table for block in self.blocks for table in (block.shift, block.keys, block.values)]
        return sum(table.nbytes for table in (*tables, self.final.shift, self.final.scale))

    def block(self, number: int, step: int) -> BlockCondition:
        """Return what a block takes at a step."""
        block = self.blocks[number]
        return BlockCondition(block.shift[step], block.keys, block.values)

    def at(self, step: int) -> FinalCondition:
        """Return what the last layer takes at a step."""
        return FinalCondition(self.final.shift[step], self.final.scale[step])

    def rows(self, index: Rows) -> Self:
        """Return some rows: a slice is a view, a list of row numbers, which may repeat, is a copy."""
        return type(self)(
            self.timesteps,
            tuple(BlockCondition(part.shift[:, index], part.keys[index], part.values[index]) for part in self.blocks),
            FinalCondition(self.final.shift[:, index], self.final.scale[:, index]),
            self.rope,
        )

"""What the denoiser is told about the image: the prompt's features, what becomes of them, and the loop's tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeAlias

import torch
from torch import Tensor
from typing_extensions import Self, override

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

    def to(self, device: torch.device) -> TextFeatures:
        """Return the same features on a device."""
        return TextFeatures(*(getattr(self, each.name).to(device) for each in fields(self)))


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


@dataclass(frozen=True, kw_only=True)
class BlockPlan:
    """What blocks take over a whole denoising loop, for S steps and B rows.

    Args:
        timesteps: the S timesteps.
        blocks: one for each block, shifts for all steps.
        rope: positions of the image tokens.
    """

    timesteps: tuple[float, ...]
    blocks: tuple[BlockCondition, ...]
    rope: Rope

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.blocks[0].keys)

    @property
    def nbytes(self) -> int:
        """Bytes of the tables; keys and values are nearly all of it."""
        return sum(table.nbytes for block in self.blocks for table in (block.shift, block.keys, block.values))

    def block(self, number: int, step: int) -> BlockCondition:
        """Return what a block takes at a step."""
        block = self.blocks[number]
        return BlockCondition(block.shift[step], block.keys, block.values)

    def rows(self, index: Rows) -> Self:
        """Return some rows: a slice is a view, a list of row numbers, which may repeat, is a copy."""
        parts = (BlockCondition(part.shift[:, index], part.keys[index], part.values[index]) for part in self.blocks)
        return replace(self, blocks=tuple(parts))


@dataclass(frozen=True, kw_only=True)
class Plan(BlockPlan):
    """All that stays the same over the denoising loop, for S steps and B rows.

    Args:
        final: what the last layer takes, for all steps.
    """

    final: FinalCondition

    @property
    @override
    def nbytes(self) -> int:
        return super().nbytes + self.final.shift.nbytes + self.final.scale.nbytes

    def at(self, step: int) -> FinalCondition:
        """Return what the last layer takes at a step."""
        return FinalCondition(self.final.shift[step], self.final.scale[step])

    @override
    def rows(self, index: Rows) -> Self:
        final = FinalCondition(self.final.shift[:, index], self.final.scale[:, index])
        return replace(super().rows(index), final=final)


@dataclass(frozen=True, kw_only=True)
class ControlPlan(BlockPlan):
    """All that stays the same over the denoising loop for a control network, for S steps and B rows.

    Args:
        hint: (R, N, D), the tokens of the hints; R divides B, and row i is shown hint i modulo R.
    """

    hint: Tensor

    @property
    @override
    def nbytes(self) -> int:
        return super().nbytes + self.hint.nbytes

    def show(self, tokens: Tensor) -> Tensor:
        """Add the hints to (B, N, D) tokens."""
        return torch.unflatten(tokens, 0, (-1, len(self.hint))).add(self.hint).flatten(0, 1)

"""Sizes of the control networks of Stable Diffusion 1.5, SDXL and their kin."""

from __future__ import annotations

from dataclasses import dataclass, replace

from typing_extensions import Self, override

from diffsynth.models.unet.config import EncoderConfig

TINY_HINT = (4, 6, 10, 14)
PROMAX_TYPES = 8  # openpose to segmentation, tile and repaint; the first release has six


@dataclass(frozen=True, kw_only=True)
class ControlNetConfig(EncoderConfig):
    """Sizes of a control network; the defaults are those for Stable Diffusion 1.5.

    Raises:
        ValueError: if sizes contradict one another.
    """

    hint_channels: tuple[int, ...] = (16, 32, 96, 256)  # widths of the hint's layers; each but the first halves it
    bare_levels: tuple[int, ...] = ()  # levels whose transformers have no blocks; the middle counts as one level more
    types: int = 0  # kinds of hints that a union network tells apart; 0 for a network of one kind
    type_layers: int = 1  # blocks that the means of a union network's hints go through
    type_heads: int = 8  # their attention heads; no file tells it

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.hint_channels:
            raise ValueError("needs a width of the hint's layers, not hint_channels=()")
        depths = (*self.depths, self.mid_depth)
        for level in self.bare_levels:
            if not 0 <= level < len(depths) or depths[level]:
                raise ValueError(f"level {level} of bare_levels has blocks or is not there")
        if self.types and self.channels[0] % self.type_heads:
            raise ValueError(f"width {self.channels[0]} of channels is not a multiple of type_heads {self.type_heads}")
        if any(depths) != bool(self.context_size):
            raise ValueError(f"context_size {self.context_size}, but transformers of {depths} blocks")

    def attends(self, level: int) -> bool:
        """Whether a level has transformers."""
        return super().attends(level) or level in self.bare_levels

    @property
    def mid_attends(self) -> bool:
        """Whether the middle has a transformer."""
        return super().mid_attends or len(self.channels) in self.bare_levels

    @property
    def downscale(self) -> int:
        """Hint pixels per latent pixel."""
        return int(2 ** (len(self.hint_channels) - 1))

    @property
    def version(self) -> str:
        """Which release this is for, in words; empty if it is none we know."""
        if not self.release or not self.types:
            return self.release
        return f"{self.release} union promax" if self.types == PROMAX_TYPES else f"{self.release} union"

    @classmethod
    @override
    def tiny(cls) -> Self:
        """Return sizes for tests, in the shape of a network for Stable Diffusion 1.5."""
        return replace(super().tiny(), hint_channels=TINY_HINT)

    @classmethod
    def tiny_union(cls) -> Self:
        """Return sizes for tests, in the shape of a union network for SDXL."""
        return replace(cls.tiny_xl(), hint_channels=TINY_HINT, types=PROMAX_TYPES)

    @classmethod
    def tiny_small(cls) -> Self:
        """Return sizes for tests, in the shape of a small network for SDXL, which is told nothing of the text."""
        return replace(cls.tiny_union(), depths=(0, 0, 0), mid_depth=0, context_size=0, bare_levels=(1, 2, 3), types=0)

"""Sizes of the UNets of Stable Diffusion 1.5, SDXL and their kin."""

from __future__ import annotations

from dataclasses import dataclass

from typing_extensions import Self


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Sizes of the way down of a text-conditioned UNet and of its middle; the defaults are Stable Diffusion 1.5.

    Raises:
        ValueError: if sizes contradict one another.
    """

    in_channels: int = 4  # of the latents; 9 with a mask and a masked image beside them
    channels: tuple[int, ...] = (320, 640, 1280, 1280)  # one width per level, the finest first
    depths: tuple[int, ...] = (1, 1, 1, 0)  # blocks of each transformer at a level, 0 for a level without
    mid_depth: int = 1
    layers_per_block: int = 2  # residual blocks per level on the way down; one more on the way up
    context_size: int = 768  # features of a text token
    text_size: int = 0  # features that are first projected to context_size; 0 if they come at that size
    time_size: int = 1280
    label_size: int = 0  # pooled prompt and sinusoids of numbers, added to the time embedding; 0 without
    number_size: int = 256  # of the sinusoid of one number; no file tells it
    conv_projections: bool = True  # files hold the projections around a transformer as 1x1 convolutions
    num_heads: int = 8  # attention heads at every level, unless head_dim is given; no file tells it
    head_dim: int = 0  # size of a head at every level, or 0; no file tells it
    norm_groups: int = 32  # no file tells it

    def __post_init__(self) -> None:
        if not self.channels or self.layers_per_block < 1:
            raise ValueError(
                f"needs a level and a layer, not channels={self.channels}, layers_per_block={self.layers_per_block}"
            )
        if len(self.depths) != len(self.channels):
            raise ValueError(f"{len(self.channels)} levels, but {len(self.depths)} depths")
        for width in self.channels:
            if width % self.norm_groups:
                raise ValueError(f"width {width} of channels is not a multiple of norm_groups {self.norm_groups}")
        for level in (*(level for level, depth in enumerate(self.depths) if depth), -1):
            if self.channels[level] % (self.head_dim or self.num_heads):
                what = f"head_dim {self.head_dim}" if self.head_dim else f"num_heads {self.num_heads}"
                raise ValueError(f"width {self.channels[level]} of channels is not a multiple of {what}")
        if self.channels[0] % 2:
            raise ValueError(f"the first width is {self.channels[0]}, but the sinusoid of a timestep has an even size")

    def heads(self, width: int) -> int:
        """Return the attention heads of a transformer of this width."""
        return width // self.head_dim if self.head_dim else self.num_heads

    @property
    def skip_channels(self) -> tuple[int, ...]:
        """Widths of the outputs that the way up takes, in the order the way down makes them."""
        widths = [self.channels[0]]
        for level, width in enumerate(self.channels):
            widths += [width] * (self.layers_per_block + (level < len(self.channels) - 1))
        return tuple(widths)

    def attends(self, level: int) -> bool:
        """Whether a level has transformers on its way down."""
        return self.depths[level] > 0

    @property
    def mid_attends(self) -> bool:
        """Whether the middle has a transformer."""
        return self.mid_depth > 0

    @property
    def release(self) -> str:
        """Which release has this structure, in words; empty if it is none we know."""
        names = {(768, 0): "SD 1.5", (1024, 0): "SD 2", (2048, 2816): "SDXL", (1280, 2560): "SDXL refiner"}
        names |= {(2048, 5632): "Kolors", (0, 2816): "SDXL"}  # the last reads no text, as small control networks
        return names.get((self.context_size, self.label_size), "")

    @classmethod
    def sdxl(cls) -> Self:
        """Return the sizes for SDXL, base and turbo."""
        return cls(
            channels=(320, 640, 1280),
            depths=(0, 2, 10),
            mid_depth=10,
            context_size=2048,
            label_size=2816,
            conv_projections=False,
            head_dim=64,
        )

    @classmethod
    def tiny(cls) -> Self:
        """Return sizes for tests, in the shape of Stable Diffusion 1.5."""
        return cls(channels=(32, 64, 96), depths=(1, 2, 0), mid_depth=1, context_size=40, time_size=72)

    @classmethod
    def tiny_xl(cls) -> Self:
        """Return sizes for tests, in the shape of SDXL: 6 numbers beside a pooled prompt of 24 features."""
        return cls(
            channels=(32, 64, 128),
            depths=(0, 1, 2),
            mid_depth=2,
            context_size=56,
            time_size=72,
            label_size=24 + 6 * 256,
            conv_projections=False,
            head_dim=64,
        )


@dataclass(frozen=True, kw_only=True)
class UNetConfig(EncoderConfig):
    """Sizes of a whole UNet; the defaults are Stable Diffusion 1.5.

    Raises:
        ValueError: if sizes contradict one another.
    """

    out_channels: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mid_depth < 1:
            raise ValueError(f"needs a transformer in the middle, not mid_depth={self.mid_depth}")

    @property
    def version(self) -> str:
        """Which release has this structure, in words; empty if it is none we know."""
        return f"{self.release} inpaint" if self.release and self.in_channels == 9 else self.release

    @classmethod
    def sdxl_refiner(cls) -> Self:
        """Return the sizes of the SDXL refiner."""
        return cls(
            channels=(384, 768, 1536, 1536),
            depths=(0, 4, 4, 0),
            mid_depth=4,
            context_size=1280,
            time_size=1536,
            label_size=2560,
            conv_projections=False,
            head_dim=64,
        )

"""Control networks of UNets: a picture such as edges or a pose in, what is added to the UNet's outputs out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffsynth.models.unet.condition import Condition, Controls, Plan
from diffsynth.models.unet.control_config import ControlNetConfig
from diffsynth.models.unet.encoder import Encoder, TimeEmbedding
from diffsynth.nn.activation import quick_gelu
from diffsynth.nn.attention import AttentionHook, attend, plain_attention, split_heads
from diffsynth.nn.embeddings import sinusoid
from diffsynth.nn.unet_blocks import LevelCondition


@dataclass(frozen=True, eq=False)
class Hint:
    """A picture that tells a control network what the image should follow.

    Args:
        pixels: (B, 3, h, w) in [0, 1], h and w ``config.downscale`` times those of the latents; or one row for all.
        type: what a union network takes it for, from 0 on; 0 for other networks.
        scale: its strength among several hints of a union network.
    """

    pixels: Tensor
    type: int = 0
    scale: float = 1.0


class HintTower(nn.Module):
    """Convolutions that bring a hint to the size and the first width of the latents."""

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__()
        widths = config.hint_channels
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList(
            layer
            for before, after in pairwise(widths)
            for layer in (
                nn.Conv2d(before, before, 3, padding=1),
                nn.Conv2d(before, after, 3, padding=1, stride=2),
            )
        )
        self.conv_out = nn.Conv2d(widths[-1], config.channels[0], 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map (B, 3, h, w) to (B, C, H, W)."""
        images = F.silu(self.conv_in(pixels))
        for block in self.blocks:
            images = F.silu(block(images))
        tower: Tensor = self.conv_out(images)
        return tower


class TypeBlock(nn.Module):
    """Attention and feed-forward on the means of hints, each after a norm and with a residual.

    The rows of a batch attend to one another, as those of the published network do; the hints of one row do not.
    A row that is alone, or beside rows of the same hint, attends to itself.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1 = nn.LayerNorm(channels)
        self.in_proj = nn.Linear(channels, 3 * channels)
        self.out_proj = nn.Linear(channels, channels)
        self.ln_2 = nn.LayerNorm(channels)
        self.c_fc = nn.Linear(channels, 4 * channels)
        self.c_proj = nn.Linear(4 * channels, channels)

    def forward(self, means: Tensor) -> Tensor:
        """Map (B, C) to the same shape."""
        parts = self.in_proj(self.ln_1(means))[None].chunk(3, dim=-1)  # each (1, B, C)
        means = means + self.out_proj(attend(*(split_heads(part, self.heads) for part in parts)))[0]
        mixed: Tensor = means + self.c_proj(quick_gelu(self.c_fc(self.ln_2(means))))
        return mixed


class HintTypes(nn.Module):
    """What a union network has besides: it is told of what type each hint is (ControlNet++, xinsir)."""

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__()
        width = config.channels[0]
        self.number_size = config.number_size
        self.task_embedding = nn.Parameter(torch.randn(config.types, width) * width**-0.5)
        self.layers = nn.ModuleList(TypeBlock(width, config.type_heads) for _ in range(config.type_layers))
        self.spatial_ch_projs = nn.Linear(width, width)
        self.control_add_embedding = TimeEmbedding(config.types * config.number_size, config.time_size)

    def embed(self, types: Sequence[int]) -> Tensor:
        """Return (1, T), what is added to every timestep's embedding for hints of these types."""
        present = torch.zeros(len(self.task_embedding), device=self.task_embedding.device)
        present[list(types)] = 1
        vector = sinusoid(present, self.number_size).flatten()[None]
        embedded: Tensor = self.control_add_embedding(vector.to(self.task_embedding))
        return embedded

    def shift(self, images: Tensor, type: int, scale: float) -> Tensor:
        """Return (B, C, 1, 1), what is added to every pixel of a hint of (B, C, H, W) that is to have a strength."""
        means = (images.mean(dim=(2, 3)) + self.task_embedding[type]) * scale
        for layer in self.layers:
            means = layer(means)
        shift: Tensor = self.spatial_ch_projs(means) * scale
        return shift[:, :, None, None]


class ControlNet(Encoder):
    """Copy of a UNet's first half that looks at a hint and adds to the UNet's outputs (arXiv 2302.05543).

    `forward` does everything at once. A denoising loop does it in four steps, so that no step repeats what does not
    change: `encode_hints` and `encode_condition`, `plan` per image, `denoise` per step. The results are the same.

    In shapes: B images, H and W latent height and width, C the first width.
    """

    config: ControlNetConfig

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__(config)
        self.controlnet_cond_embedding = HintTower(config)
        if config.types:
            self.hint_types = HintTypes(config)
        self.controlnet_down_blocks = nn.ModuleList(nn.Conv2d(width, width, 1) for width in config.skip_channels)
        self.controlnet_mid_block = nn.Conv2d(config.channels[-1], config.channels[-1], 1)
        self.name_attentions()

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        context: Tensor,
        pooled: Tensor | None = None,
        numbers: Tensor | None = None,
        *,
        hints: Sequence[Hint],
        attention: AttentionHook = plain_attention,
    ) -> Controls:
        """Compute what is added to a UNet's outputs, each image at its own timestep.

        Args:
            latents: (B, in_channels, H, W), scaled to about unit variance.
            timestep: (B,), training index from 0 (clean) to 999 (noise); floats of full precision or integers.
            context: (B, L, context_size), see `encode_condition`.
            pooled: (B, P), see `encode_condition`.
            numbers: (B, K), see `encode_condition`.
            hints: what the image should follow, see `encode_hints`.
            attention: what mixes queries, keys and values in every attention.

        Raises:
            ValueError: if a shape does not fit the network.
        """
        condition = self.encode_condition(context, pooled, numbers, types=[hint.type for hint in hints])
        levels = LevelCondition(self._embed_time(timestep, condition), self._keys_values(condition), attention)
        return self._run(latents, levels, self.encode_hints(hints))

    def encode_condition(
        self,
        context: Tensor,
        pooled: Tensor | None = None,
        numbers: Tensor | None = None,
        *,
        types: Sequence[int] = (),
    ) -> Condition:
        """Compute what depends on the prompts, the numbers beside them and the types of the hints only.

        Args:
            context: as for a `UNet`; of any width for a network that does not read it.
            pooled: as for a `UNet`.
            numbers: as for a `UNet`.
            types: those of the hints; only a union network looks at them.

        Raises:
            ValueError: if a shape does not fit, or the label is missing or not wanted, or there is no such type.
        """
        condition = super().encode_condition(context, pooled, numbers)
        if not self.config.types:
            return condition
        if not types or not all(0 <= type < self.config.types for type in types):
            raise ValueError(f"types of hints are numbers from 0 to {self.config.types - 1}, not {list(types)}")
        embedded = self.hint_types.embed(types).expand(len(condition), -1)
        return Condition(condition.context, embedded if condition.label is None else condition.label + embedded)

    def encode_hints(self, hints: Sequence[Hint]) -> Tensor:
        """Compute what is added to the latents, which depends on the hints only.

        Args:
            hints: one; or several for a union network, which then scales each of them, and whose outputs are not
                to be scaled. Where one scale is wanted for a single hint, leave it 1 and scale the outputs.

        Returns:
            (B, C, H, W), or one row for all images.

        Raises:
            ValueError: if a shape does not fit, or a network of one kind is given several.
        """
        if not hints or (len(hints) > 1 and not self.config.types):
            raise ValueError(f"this network takes one hint, not {len(hints)}")
        return torch.stack([self._encode_hint(hint) for hint in hints]).sum(dim=0)

    def _encode_hint(self, hint: Hint) -> Tensor:
        height, width = hint.pixels.shape[-2:]
        if hint.pixels.ndim != 4 or hint.pixels.shape[1] != 3 or (height | width) % self.config.downscale:
            raise ValueError(
                f"a hint is (B, 3, h, w), h and w multiples of {self.config.downscale}, not {tuple(hint.pixels.shape)}"
            )
        images: Tensor = self.controlnet_cond_embedding(hint.pixels.to(self.dtype))
        if not self.config.types:
            return images
        return images * hint.scale + self.hint_types.shift(images, hint.type, hint.scale)

    def denoise(
        self,
        latents: Tensor,
        step: int,
        plan: Plan,
        *,
        hints: Tensor,
        attention: AttentionHook = plain_attention,
    ) -> Controls:
        """Compute what is added to a UNet's outputs at one step of a plan.

        Args:
            latents: (B, in_channels, H, W), scaled to about unit variance.
            step: index into the plan's timesteps.
            plan: with B rows, or one row for all images.
            hints: (B, C, H, W) or one row for all images, from `encode_hints`.
            attention: what mixes queries, keys and values in every attention.

        Raises:
            ValueError: if a shape does not fit the plan or the network.
        """
        return self._run(latents, self._level_condition(len(latents), step, plan, attention), hints)

    def _run(self, latents: Tensor, condition: LevelCondition, hints: Tensor) -> Controls:
        if hints.shape[-2:] != latents.shape[-2:]:
            raise ValueError(
                f"latents of {tuple(latents.shape[-2:])} need hints of {self.config.downscale} times their size, "
                f"these are made for {tuple(hints.shape[-2:])}"
            )
        skips, mid = self.encode(latents, condition, hints)
        outputs = zip(self.controlnet_down_blocks, skips, strict=True)
        return Controls(tuple(layer(skip) for layer, skip in outputs), self.controlnet_mid_block(mid))

"""The first half of a UNet, which denoisers and control networks have in common: the way down and the middle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffsynth.models.unet.condition import Condition, Plan
from diffsynth.models.unet.config import EncoderConfig
from diffsynth.nn.attention import AttentionHook, KeysValues
from diffsynth.nn.embeddings import sinusoid
from diffsynth.nn.transformer_2d import Attention
from diffsynth.nn.unet_blocks import DownLevel, LevelCondition, LevelSizes, MidLevel


class TimeEmbedding(nn.Module):
    """Two linear layers with SiLU between them."""

    def __init__(self, in_size: int, size: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_size, size)
        self.linear_2 = nn.Linear(size, size)

    def forward(self, vector: Tensor) -> Tensor:
        """Map (..., in_size) to (..., size)."""
        embedded: Tensor = self.linear_2(F.silu(self.linear_1(vector)))
        return embedded


class Encoder(nn.Module):
    """The way down of a UNet and its middle, with what they are told (arXiv 2112.10752; for SDXL arXiv 2307.01952).

    In shapes: B images, H and W latent height and width, L text tokens, P features of the pooled prompt, K numbers,
    S steps, T the size of the time embedding. H and W may be any sizes.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        widths, last = config.channels, len(config.channels) - 1
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(widths[0], config.time_size)
        if config.label_size:
            self.add_embedding = TimeEmbedding(config.label_size, config.time_size)
        if config.text_size:
            self.encoder_hid_proj = nn.Linear(config.text_size, config.context_size)
        self.down_blocks = nn.ModuleList(
            DownLevel(
                widths[max(level - 1, 0)],
                level_sizes(config, level),
                layers=config.layers_per_block,
                last=level == last,
            )
            for level in range(last + 1)
        )
        self.mid_block = MidLevel(mid_sizes(config))

    def name_attentions(self) -> None:
        """Tell every attention its place; called when all parts are there."""
        for name, module in self.named_modules():
            if isinstance(module, Attention):
                module.name = name

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the network computes in."""
        return self.conv_in.weight.dtype

    def cross_attentions(self) -> Mapping[str, Attention]:
        """Return the layers that attend to the text by name, in the order the network runs them."""
        layers = (layer for layer in self.modules() if isinstance(layer, Attention))
        return {layer.name: layer for layer in layers if layer.name.endswith("attn2")}

    def encode_condition(
        self, context: Tensor, pooled: Tensor | None = None, numbers: Tensor | None = None
    ) -> Condition:
        """Compute what depends on the prompts and the numbers beside them only.

        Args:
            context: (B, L, context_size), or (B, L, text_size) if the network has one: features of the text tokens.
            pooled: (B, P), for a network with a ``label_size``: features of the whole prompt.
            numbers: (B, K), for the same: of SDXL the original height and width, top and left of the crop, target
                height and width, in pixels; of its refiner the first four and an aesthetic score.

        Raises:
            ValueError: if a shape does not fit, or the label is missing or not wanted.
        """
        config = self.config
        size = config.text_size or config.context_size or context.shape[-1]  # 0 in a network without text
        if context.ndim != 3 or context.shape[-1] != size:
            raise ValueError(f"context is (B, L, {size}), not {tuple(context.shape)}")
        context = context.to(self.dtype)
        if config.text_size:
            context = self.encoder_hid_proj(context)
        return Condition(context, self._label(len(context), pooled, numbers))

    def plan(self, timesteps: Sequence[float], condition: Condition) -> Plan:
        """Compute everything that stays the same over a denoising loop.

        Keys and values of the text are most of it: for SDXL 25 MB per row and 77 tokens in half precision. Where
        rows repeat, plan them once and repeat them with `Plan.rows`.

        Args:
            timesteps: the S training timesteps of the loop.
            condition: B rows.
        """
        steps = torch.tensor(tuple(timesteps), dtype=torch.float32, device=condition.context.device)
        time = self._embed_time(steps[:, None].expand(-1, len(condition)), condition)  # (S, B, T)
        return Plan(tuple(float(each) for each in timesteps), time, self._keys_values(condition))

    def encode(
        self, latents: Tensor, condition: LevelCondition, added: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """Run the way down and the middle.

        Args:
            latents: (B, in_channels, H, W).
            condition: of B rows, or one row for all images.
            added: (B, C, H, W), or one row for all: what is added to the latents once they have the first width.

        Returns:
            The outputs that the way up takes, one for each of ``config.skip_channels``, and that of the middle.

        Raises:
            ValueError: if the latents do not fit the network.
        """
        if latents.ndim != 4 or latents.shape[1] != self.config.in_channels:
            raise ValueError(f"latents are (B, {self.config.in_channels}, H, W), not {tuple(latents.shape)}")
        images: Tensor = self.conv_in(latents.to(self.dtype))
        skips = [images if added is None else images + added]
        for block in self.down_blocks:
            skips += block(skips[-1], condition)
        return skips, self.mid_block(skips[-1], condition)

    def _level_condition(self, rows: int, step: int, plan: Plan, attention: AttentionHook) -> LevelCondition:
        """Return what the levels are told at one step of a plan, for so many rows of latents."""
        if len(plan) not in (1, rows):
            raise ValueError(f"{rows} latents do not fit a plan of {len(plan)} rows")
        return LevelCondition(plan.time[step], plan.text, attention)

    def _embed_time(self, timesteps: Tensor, condition: Condition) -> Tensor:
        """Embed (..., B) timesteps, the label added: (..., B, T)."""
        embedded: Tensor = self.time_embedding(sinusoid(timesteps, self.config.channels[0]).to(self.dtype))
        return embedded if condition.label is None else embedded + condition.label

    def _keys_values(self, condition: Condition) -> Mapping[str, KeysValues]:
        layers = self.cross_attentions().items()
        return MappingProxyType({name: layer.keys_values(condition.context) for name, layer in layers})

    def _label(self, rows: int, pooled: Tensor | None, numbers: Tensor | None) -> Tensor | None:
        config = self.config
        if not config.label_size:
            if pooled is not None or numbers is not None:
                raise ValueError("this network takes no pooled prompt and no numbers: it was trained without them")
            return None
        if pooled is None or numbers is None:
            raise ValueError("this network needs the pooled prompt and the numbers that it was trained with")
        size = pooled.shape[-1] + numbers.shape[-1] * config.number_size
        if size != config.label_size or (len(pooled), len(numbers)) != (rows, rows):
            raise ValueError(
                f"a pooled prompt of {tuple(pooled.shape)} and numbers of {tuple(numbers.shape)} make "
                f"{size} values, {config.label_size} for each of {rows} rows are needed"
            )
        vector = torch.cat((pooled.float(), sinusoid(numbers, config.number_size).flatten(1)), dim=1)
        label: Tensor = self.add_embedding(vector.to(self.dtype))
        return label


def level_sizes(config: EncoderConfig, level: int) -> LevelSizes:
    """Return the sizes of a level."""
    return _sizes(config, config.channels[level], attends=config.attends(level), depth=config.depths[level])


def mid_sizes(config: EncoderConfig) -> LevelSizes:
    """Return the sizes of the middle."""
    return _sizes(config, config.channels[-1], attends=config.mid_attends, depth=config.mid_depth)


def _sizes(config: EncoderConfig, width: int, *, attends: bool, depth: int) -> LevelSizes:
    return LevelSizes(
        channels=width,
        time_size=config.time_size,
        attends=attends,
        depth=depth,
        heads=config.heads(width),
        context_size=config.context_size,
        groups=config.norm_groups,
    )

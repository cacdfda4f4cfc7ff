"""The UNet of Stable Diffusion and SDXL: noisy latents and a prompt's features in, the predicted noise out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffsynth.models.unet.condition import Condition, Controls, Plan
from diffsynth.models.unet.config import UNetConfig
from diffsynth.nn.attention import AttentionHook, KeysValues, plain_attention
from diffsynth.nn.embeddings import sinusoid
from diffsynth.nn.resnet import silu
from diffsynth.nn.transformer_2d import Attention
from diffsynth.nn.unet_blocks import RESNET_EPS, DownLevel, LevelCondition, LevelSizes, MidLevel, UpLevel


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


class UNet(nn.Module):
    """Denoiser of latents that attends to a prompt (arXiv 2112.10752; for SDXL arXiv 2307.01952).

    It predicts the noise, or the velocity if it was trained so, which no file tells. `forward` does everything at
    once. A denoising loop does it in three steps, so that no step repeats what does not change: `encode_condition`
    per prompt, `plan` per image, `denoise` per step. The results are the same.

    In shapes: B images, H and W latent height and width, L text tokens, P features of the pooled prompt, K numbers,
    S steps, T the size of the time embedding. H and W may be any sizes.
    """

    def __init__(self, config: UNetConfig) -> None:
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
                widths[max(level - 1, 0)], _sizes(config, level), layers=config.layers_per_block, last=level == last
            )
            for level in range(last + 1)
        )
        self.mid_block = MidLevel(_sizes(config, last, config.mid_depth))
        skips, taken = config.skip_channels[::-1], config.layers_per_block + 1
        self.up_blocks = nn.ModuleList(
            UpLevel(
                widths[min(level + 1, last)],
                skips[(last - level) * taken : (last - level + 1) * taken],
                _sizes(config, level),
                last=level == 0,
            )
            for level in range(last, -1, -1)
        )
        self.conv_norm_out = nn.GroupNorm(config.norm_groups, widths[0], eps=RESNET_EPS)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)
        for name, module in self.named_modules():
            if isinstance(module, Attention):
                module.name = name

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the network computes in."""
        return self.conv_in.weight.dtype

    def cross_attentions(self) -> Mapping[str, Attention]:
        """Return the layers that attend to the text by name, in the order the network runs them."""
        order = (self.down_blocks, self.mid_block, self.up_blocks)
        layers = (layer for part in order for layer in part.modules() if isinstance(layer, Attention))
        return {layer.name: layer for layer in layers if layer.name.endswith("attn2")}

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        context: Tensor,
        pooled: Tensor | None = None,
        numbers: Tensor | None = None,
        *,
        controls: Controls | None = None,
        attention: AttentionHook = plain_attention,
    ) -> Tensor:
        """Predict the noise, each image at its own timestep.

        Args:
            latents: (B, in_channels, H, W), scaled to about unit variance.
            timestep: (B,), training index from 0 (clean) to 999 (noise); floats of full precision or integers.
            context: (B, L, context_size), see `encode_condition`.
            pooled: (B, P), see `encode_condition`.
            numbers: (B, K), see `encode_condition`.
            controls: what control networks add.
            attention: what mixes queries, keys and values in every attention.

        Returns:
            (B, out_channels, H, W) in the dtype of ``latents``.

        Raises:
            ValueError: if a shape does not fit the network.
        """
        condition = self.encode_condition(context, pooled, numbers)
        time = self._embed_time(timestep, condition)  # (B, T)
        return self._run(latents, LevelCondition(time, self._keys_values(condition), attention), controls)

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
        size = config.text_size or config.context_size
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

    def denoise(
        self,
        latents: Tensor,
        step: int,
        plan: Plan,
        *,
        controls: Controls | None = None,
        attention: AttentionHook = plain_attention,
    ) -> Tensor:
        """Predict the noise at one step of a plan.

        Args:
            latents: (B, in_channels, H, W), scaled to about unit variance.
            step: index into the plan's timesteps.
            plan: with B rows, or one row for all images.
            controls: what control networks add.
            attention: what mixes queries, keys and values in every attention.

        Returns:
            (B, out_channels, H, W) in the dtype of ``latents``.

        Raises:
            ValueError: if a shape does not fit the plan or the network.
        """
        if len(plan) not in (1, len(latents)):
            raise ValueError(f"{len(latents)} latents do not fit a plan of {len(plan)} rows")
        return self._run(latents, LevelCondition(plan.time[step], plan.text, attention), controls)

    def _run(self, latents: Tensor, condition: LevelCondition, controls: Controls | None) -> Tensor:
        """Run the network on latents: down, the middle, and up again with the outputs of the way down."""
        if latents.ndim != 4 or latents.shape[1] != self.config.in_channels:
            raise ValueError(f"latents are (B, {self.config.in_channels}, H, W), not {tuple(latents.shape)}")
        images: Tensor = self.conv_in(latents.to(self.dtype))
        skips = [images]
        for block in self.down_blocks:
            skips += block(skips[-1], condition)
        images = self.mid_block(skips[-1], condition)
        if controls is not None:
            if len(controls.skips) != len(skips):
                raise ValueError(f"controls for {len(controls.skips)} outputs, but the network has {len(skips)}")
            skips = [skip + control.to(skip) for skip, control in zip(skips, controls.skips, strict=True)]
            images = images + controls.mid.to(images)
        for block in self.up_blocks:
            images = block(images, skips, condition)
        predicted: Tensor = self.conv_out(silu(self.conv_norm_out(images)))
        return predicted.to(latents.dtype)

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


def _sizes(config: UNetConfig, level: int, depth: int | None = None) -> LevelSizes:
    """Return the sizes of a level, with the depth of its transformers or another one."""
    width = config.channels[level]
    return LevelSizes(
        channels=width,
        time_size=config.time_size,
        depth=config.depths[level] if depth is None else depth,
        heads=config.heads(width),
        context_size=config.context_size,
        groups=config.norm_groups,
    )

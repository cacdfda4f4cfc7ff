"""What the denoiser and its control networks have in common: embeddings, the condition, blocks (arXiv 2405.08748)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, TypeAlias, cast

import torch
from torch import Tensor, nn

from diffsynth.errors import ModelNotLoaded
from diffsynth.models.hunyuan_dit.blocks import Block
from diffsynth.models.hunyuan_dit.condition import BlockCondition, Condition, TextFeatures
from diffsynth.models.hunyuan_dit.config import HunyuanDiTConfig
from diffsynth.models.hunyuan_dit.pooler import AttentionPooler
from diffsynth.models.hunyuan_dit.rope import Rope
from diffsynth.nn.activation import SiLUFloat32, silu_float32
from diffsynth.nn.embeddings import PatchEmbed, sinusoid

SINUSOID_SIZE = 256
SIZE_NUMBERS = 6  # of the size condition

ConditionOf: TypeAlias = Callable[[int], BlockCondition]  # of a block, by its number


class Backbone(nn.Module):
    """Embeds latents, timesteps and prompts, and holds blocks that take them.

    In shapes: B images, C latent channels, H and W latent height and width, L text tokens, D hidden size, S steps.

    Args:
        config: sizes.
        takes_skip: for each block, whether it takes a long skip.
    """

    name: ClassVar[str]  # for messages

    def __init__(self, config: HunyuanDiTConfig, takes_skip: Sequence[bool]) -> None:
        super().__init__()
        self.config = config
        self.has_condition_path = True
        size, text_dim = config.hidden_size, config.text_dim

        self.patch_embed = PatchEmbed(config.in_channels, config.patch_size, size)
        self.time_embed = nn.Sequential(nn.Linear(SINUSOID_SIZE, size), nn.SiLU(), nn.Linear(size, size))

        extra = text_dim
        if config.size_conditioning:
            extra += SIZE_NUMBERS * SINUSOID_SIZE + size
            self.style_embed = nn.Embedding(1, size)
        self.extra_embed = nn.Sequential(
            nn.Linear(extra, config.extra_size), SiLUFloat32(), nn.Linear(config.extra_size, size)
        )
        self.pooler = AttentionPooler(config.t5_len, config.t5_dim, text_dim, config.pooler_heads)
        self.t5_proj = nn.Sequential(
            nn.Linear(config.t5_dim, config.t5_proj_size), SiLUFloat32(), nn.Linear(config.t5_proj_size, text_dim)
        )
        self.text_padding = nn.Parameter(torch.randn(config.text_len + config.t5_len, text_dim))
        self.blocks = nn.ModuleList(Block(config, takes_skip=takes) for takes in takes_skip)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the network computes in."""
        return self.patch_embed.proj.weight.dtype

    def encode_condition(self, text: TextFeatures, image_meta_size: Tensor | None = None) -> Condition:
        """Compute what depends on the prompts and the size condition only.

        Args:
            text: features of B prompts.
            image_meta_size: (B, 6), only for a network with ``size_conditioning``: two numbers for the size of the
                original image, two for the size wanted, two for the crop, in pixels.

        Raises:
            ValueError: if a shape does not fit the network, or the size condition is missing or not wanted.
            ModelNotLoaded: after `drop_condition_path`.
        """
        self._require_condition_path()
        self._check_text(text, image_meta_size)
        clip, t5 = text.clip.to(self.dtype), text.t5.to(self.dtype)

        # Free places hold learned tokens, and images attend to them as to any other: there is no mask later on.
        tokens = torch.cat((clip, self.t5_proj(t5)), dim=1)  # (B, L, text_dim)
        real = torch.cat((text.clip_mask, text.t5_mask), dim=1).bool()[..., None]
        tokens = torch.where(real, tokens, self.text_padding.to(self.dtype))

        extra = [self.pooler(t5)]
        if image_meta_size is not None:
            sizes = sinusoid(image_meta_size, SINUSOID_SIZE).flatten(1).to(self.dtype)  # (B, 6 * 256)
            extra += [sizes, self.style_embed.weight.expand(len(sizes), -1)]
        return Condition(tokens, self.extra_embed(torch.cat(extra, dim=1)))

    def drop_condition_path(self) -> None:
        """Free the weights that a step of a plan does not need, a sixth of the denoiser.

        Plans made before still work. ``forward``, ``encode_condition`` and ``plan`` raise from now on, and the state
        dict lacks what is gone.
        """
        if not self.has_condition_path:
            return
        self.has_condition_path = False
        del self.time_embed, self.extra_embed, self.pooler, self.t5_proj, self.text_padding
        if self.config.size_conditioning:
            del self.style_embed
        for number in range(len(self.blocks)):
            block = self._block(number)
            del block.shift, block.cross_attn.kv, block.cross_attn.k_norm

    def _modulation(self, timesteps: Tensor, condition: Condition) -> Tensor:
        """Return what modulates blocks: (B, D) for timesteps (B,), (S, B, D) for (S, 1)."""
        return silu_float32(self._embed_time(timesteps) + condition.vector)

    def _modulations(self, timesteps: Sequence[float], condition: Condition) -> Tensor:
        """Return what modulates blocks at every step of a loop, (S, B, D).

        Raises:
            ModelNotLoaded: after `drop_condition_path`.
        """
        self._require_condition_path()
        steps = torch.tensor(tuple(timesteps), dtype=torch.float32, device=condition.vector.device)
        return self._modulation(steps[:, None], condition)

    def _condition_of(self, modulation: Tensor, condition: Condition) -> ConditionOf:
        """Return what a block takes from the condition, given (..., B, D) that modulates it."""
        return lambda number: self._block(number).condition(modulation, condition.text)

    def _conditions(self, modulations: Tensor, condition: Condition) -> tuple[BlockCondition, ...]:
        """Return what each block takes at every step of a loop."""
        return tuple(map(self._condition_of(modulations, condition), range(len(self.blocks))))

    def _block(self, number: int) -> Block:
        return cast(Block, self.blocks[number])

    def _embed_time(self, timesteps: Tensor) -> Tensor:
        """Embed timesteps of any shape: (...) to (..., D)."""
        embedded: Tensor = self.time_embed(sinusoid(timesteps, SINUSOID_SIZE).to(self.dtype))
        return embedded

    def _require_condition_path(self) -> None:
        if not self.has_condition_path:
            raise ModelNotLoaded(
                f"the condition path of {self.name}",
                ["its denoising path"],
                "drop_condition_path() has freed it; load the checkpoint again.",
            )

    def _check_latents(self, latents: Tensor, rope: Rope) -> None:
        config, shape = self.config, tuple(latents.shape)
        if len(shape) != 4 or shape[1] != config.in_channels:
            raise ValueError(f"latents are (B, {config.in_channels}, H, W), not {shape}")
        if shape[2] % config.patch_size or shape[3] % config.patch_size:
            raise ValueError(f"latents of {shape[2]} x {shape[3]} are not whole patches of {config.patch_size}")
        grid = (shape[2] // config.patch_size, shape[3] // config.patch_size)
        if grid != (rope.height, rope.width):
            raise ValueError(
                f"latents of {grid[0]} x {grid[1]} tokens do not fit positions for {rope.height} x {rope.width}"
            )

    def _check_text(self, text: TextFeatures, image_meta_size: Tensor | None) -> None:
        config, rows = self.config, len(text.clip)
        expected: dict[str, tuple[Tensor, tuple[int, ...]]] = {
            "clip": (text.clip, (rows, config.text_len, config.text_dim)),
            "clip_mask": (text.clip_mask, (rows, config.text_len)),
            "t5": (text.t5, (rows, config.t5_len, config.t5_dim)),
            "t5_mask": (text.t5_mask, (rows, config.t5_len)),
        }
        if config.size_conditioning != (image_meta_size is not None):
            raise ValueError(
                "this network needs image_meta_size: it was trained with a size condition"
                if config.size_conditioning
                else "this network takes no image_meta_size: it was trained without a size condition"
            )
        if image_meta_size is not None:
            expected["image_meta_size"] = (image_meta_size, (rows, SIZE_NUMBERS))
        for name, (value, shape) in expected.items():
            if tuple(value.shape) != shape:
                raise ValueError(f"{name} has the shape {tuple(value.shape)}, but the network needs {shape}")

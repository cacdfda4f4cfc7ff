"""HunyuanDiT: a diffusion transformer with long skips, conditioned on a Chinese and English prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from diffsynth.errors import ModelNotLoaded
from diffsynth.models.hunyuan_dit.blocks import Block, FinalLayer
from diffsynth.models.hunyuan_dit.condition import BlockCondition, Condition, FinalCondition, Plan, TextFeatures
from diffsynth.models.hunyuan_dit.config import HunyuanDiTConfig
from diffsynth.models.hunyuan_dit.pooler import AttentionPooler
from diffsynth.models.hunyuan_dit.rope import Rope
from diffsynth.models.hunyuan_dit.tiled import TokenTiling, run_tiled
from diffsynth.nn.activation import SiLUFloat32, silu_float32
from diffsynth.nn.attention import AttentionHook, plain_attention
from diffsynth.nn.embeddings import PatchEmbed, sinusoid, unpatchify

SINUSOID_SIZE = 256
SIZE_NUMBERS = 6  # of the size condition


class HunyuanDiT(nn.Module):
    """Diffusion transformer that predicts the velocity of noisy latents (arXiv 2405.08748).

    `forward` does everything at once. A denoising loop does it in three steps, so that no step repeats what does not
    change: `encode_condition` per prompt, `plan` per image, `denoise` per step. The results are the same.

    In shapes: B images, C latent channels, H and W latent height and width, N image tokens, L text tokens,
    D hidden size, S steps.
    """

    def __init__(self, config: HunyuanDiTConfig) -> None:
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

        middle = config.depth // 2
        self.blocks = nn.ModuleList(Block(config, takes_skip=number > middle) for number in range(config.depth))
        for number in range(config.depth):
            self._block(number).cross_attn.name = f"blocks.{number}.cross_attn"
        self.final = FinalLayer(config)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the network computes in."""
        return self.patch_embed.proj.weight.dtype

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        text: TextFeatures,
        rope: Rope,
        image_meta_size: Tensor | None = None,
    ) -> Tensor:
        """Predict the velocity, each image at its own timestep.

        Args:
            latents: (B, C, H, W), scaled to about unit variance; H and W multiples of the patch size.
            timestep: (B,), training index from 0 (clean) to 999 (noise); floats of full precision or integers.
            text: features of B prompts.
            rope: positions of the (H / p) x (W / p) token grid.
            image_meta_size: (B, 6), see `encode_condition`.

        Returns:
            (B, C, H, W), the velocity, in the dtype of ``latents``.

        Raises:
            ValueError: if a shape does not fit the network.
            ModelNotLoaded: after `drop_condition_path`.
        """
        condition = self.encode_condition(text, image_meta_size)
        vector = silu_float32(self._embed_time(timestep) + condition.vector)
        return self._run(
            latents,
            rope,
            lambda number: self._block(number).condition(vector, condition.text),
            self.final.condition(vector),
        )

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

    def plan(self, timesteps: Sequence[float], condition: Condition, rope: Rope) -> Plan:
        """Compute everything that stays the same over a denoising loop.

        Keys and values of the text are most of it: for the released network 75 MB per row in half precision. Where
        rows repeat, plan them once and repeat them with `Plan.rows`.

        Args:
            timesteps: the S training timesteps of the loop.
            condition: B rows.
            rope: positions of the token grid.

        Raises:
            ModelNotLoaded: after `drop_condition_path`.
        """
        self._require_condition_path()
        steps = torch.tensor(tuple(timesteps), dtype=torch.float32, device=condition.vector.device)
        vector = silu_float32(self._embed_time(steps)[:, None] + condition.vector)  # (S, B, D)
        return Plan(
            tuple(float(timestep) for timestep in timesteps),
            tuple(self._block(number).condition(vector, condition.text) for number in range(self.config.depth)),
            self.final.condition(vector),
            rope.to(condition.vector.device),
        )

    def denoise(
        self,
        latents: Tensor,
        step: int,
        plan: Plan,
        *,
        tile: TokenTiling | None = None,
        perturbed_blocks: frozenset[int] = frozenset(),
        controls: Mapping[int, Tensor] | None = None,
        attention: AttentionHook = plain_attention,
    ) -> Tensor:
        """Predict the velocity at one step of a plan.

        Args:
            latents: (B, C, H, W), scaled to about unit variance; H and W multiples of the patch size.
            step: index into the plan's timesteps.
            plan: with B rows, or one row for all images.
            tile: run each block on squares of the image; one that fits into a single square is run as without.
            perturbed_blocks: blocks in which a token sees itself only, for perturbed-attention guidance.
            controls: block number → (B, N, D), added to that block's output where a later block takes it as its
                long skip.
            attention: what mixes queries, keys and values in every attention to the text.

        Returns:
            (B, C, H, W), the velocity, in the dtype of ``latents``.

        Raises:
            ValueError: if a shape does not fit the plan or the network, or a block number is unknown.
        """
        if len(plan) not in (1, len(latents)):
            raise ValueError(f"{len(latents)} latents do not fit a plan of {len(plan)} rows")
        if unknown := perturbed_blocks.difference(range(self.config.depth)):
            raise ValueError(f"there are no blocks {sorted(unknown)} to perturb: the network has {self.config.depth}")
        return self._run(
            latents,
            plan.rope,
            lambda number: plan.block(number, step),
            plan.at(step),
            tile=tile,
            perturbed_blocks=perturbed_blocks,
            controls=controls or {},
            attention=attention,
        )

    def drop_condition_path(self) -> None:
        """Free the weights that `denoise` does not need, a sixth of the network.

        Plans made before still work. `forward`, `encode_condition` and `plan` raise from now on, and the state dict
        lacks what is gone.
        """
        if not self.has_condition_path:
            return
        self.has_condition_path = False
        del self.time_embed, self.extra_embed, self.pooler, self.t5_proj, self.text_padding, self.final.modulation
        if self.config.size_conditioning:
            del self.style_embed
        for number in range(self.config.depth):
            block = self._block(number)
            del block.shift, block.cross_attn.kv, block.cross_attn.k_norm

    def _run(
        self,
        latents: Tensor,
        rope: Rope,
        condition_of: Callable[[int], BlockCondition],
        final: FinalCondition,
        *,
        tile: TokenTiling | None = None,
        perturbed_blocks: frozenset[int] = frozenset(),
        controls: Mapping[int, Tensor] | None = None,
        attention: AttentionHook = plain_attention,
    ) -> Tensor:
        """Run the network on latents, given each block's part of the condition."""
        self._check_latents(latents, rope)
        sources = self.config.skip_sources
        controls = controls or {}
        if unknown := sorted(set(controls).difference(sources)):
            raise ValueError(
                f"controls for blocks {unknown}, but only the first {len(sources)} blocks feed a long skip"
            )
        window_rope = tile.window_rope(rope) if tile else None

        tokens = self.patch_embed(latents.to(self.dtype))  # (B, N, D)
        kept: dict[int, Tensor] = {}
        for number in range(self.config.depth):
            skip = kept.pop(self.config.depth - 1 - number, None)
            run = partial(
                self._block(number),
                condition=condition_of(number),
                rope=rope if window_rope is None else window_rope,
                perturbed=number in perturbed_blocks,
                attention=attention,
            )
            if tile is None or window_rope is None:
                tokens = run(tokens, skip=skip)
            else:
                tokens = run_tiled(run, tokens, skip=skip, size=(rope.height, rope.width), tile=tile)
            if number in sources:
                kept[number] = tokens + controls[number].to(tokens) if number in controls else tokens
        velocity = unpatchify(self.final(tokens, final), rope.height, rope.width, self.config.patch_size)
        return velocity.to(latents.dtype)

    def _block(self, number: int) -> Block:
        return cast(Block, self.blocks[number])

    def _embed_time(self, timesteps: Tensor) -> Tensor:
        """Embed timesteps of any shape: (...) to (..., D)."""
        embedded: Tensor = self.time_embed(sinusoid(timesteps, SINUSOID_SIZE).to(self.dtype))
        return embedded

    def _require_condition_path(self) -> None:
        if not self.has_condition_path:
            raise ModelNotLoaded(
                "the condition path of HunyuanDiT",
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

"""HunyuanDiT: a diffusion transformer with long skips, conditioned on a Chinese and English prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor
from typing_extensions import override

from diffsynth.models.hunyuan_dit.backbone import Backbone, ConditionOf
from diffsynth.models.hunyuan_dit.blocks import FinalLayer
from diffsynth.models.hunyuan_dit.condition import Condition, FinalCondition, Plan, TextFeatures
from diffsynth.models.hunyuan_dit.config import HunyuanDiTConfig
from diffsynth.models.hunyuan_dit.rope import Rope
from diffsynth.models.hunyuan_dit.tiled import TokenGrid, TokenTiling
from diffsynth.nn.attention import AttentionHook, plain_attention
from diffsynth.nn.embeddings import unpatchify


class HunyuanDiT(Backbone):
    """Diffusion transformer that predicts the velocity of noisy latents (arXiv 2405.08748).

    `forward` does everything at once. A denoising loop does it in three steps, so that no step repeats what does not
    change: `encode_condition` per prompt, `plan` per image, `denoise` per step. The results are the same.

    In shapes: B images, C latent channels, H and W latent height and width, N image tokens, L text tokens,
    D hidden size, S steps.
    """

    name = "HunyuanDiT"

    def __init__(self, config: HunyuanDiTConfig) -> None:
        middle = config.depth // 2
        super().__init__(config, [number > middle for number in range(config.depth)])
        for number in range(config.depth):
            self._block(number).cross_attn.name = f"blocks.{number}.cross_attn"
        self.final = FinalLayer(config)

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        text: TextFeatures,
        rope: Rope,
        image_meta_size: Tensor | None = None,
        controls: Mapping[int, Tensor] | None = None,
    ) -> Tensor:
        """Predict the velocity, each image at its own timestep.

        Args:
            latents: (B, C, H, W), scaled to about unit variance; H and W multiples of the patch size.
            timestep: (B,), training index from 0 (clean) to 999 (noise); floats of full precision or integers.
            text: features of B prompts.
            rope: positions of the (H / p) x (W / p) token grid.
            image_meta_size: (B, 6), see `encode_condition`.
            controls: block number → (B, N, D), see `denoise`.

        Returns:
            (B, C, H, W), the velocity, in the dtype of ``latents``.

        Raises:
            ValueError: if a shape does not fit the network, or a block number is unknown.
            ModelNotLoaded: after `drop_condition_path`.
        """
        condition = self.encode_condition(text, image_meta_size)
        modulation = self._modulation(timestep, condition)
        blocks, final = self._condition_of(modulation, condition), self.final.condition(modulation)
        return self._run(latents, rope, blocks, final, controls=controls)

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
        modulations = self._modulations(timesteps, condition)
        return Plan(
            timesteps=tuple(float(timestep) for timestep in timesteps),
            blocks=self._conditions(modulations, condition),
            final=self.final.condition(modulations),
            rope=rope.to(condition.vector.device),
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

    @override
    def drop_condition_path(self) -> None:
        if self.has_condition_path:
            del self.final.modulation
        super().drop_condition_path()

    def _run(
        self,
        latents: Tensor,
        rope: Rope,
        condition_of: ConditionOf,
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
        grid = TokenGrid(rope, tile)

        tokens = self.patch_embed(latents.to(self.dtype))  # (B, N, D)
        kept: dict[int, Tensor] = {}
        for number in range(self.config.depth):
            tokens = grid.run(
                self._block(number),
                tokens,
                condition_of(number),
                skip=kept.pop(self.config.depth - 1 - number, None),
                perturbed=number in perturbed_blocks,
                attention=attention,
            )
            if number in sources:
                kept[number] = tokens + controls[number].to(tokens) if number in controls else tokens
        velocity = unpatchify(self.final(tokens, final), rope.height, rope.width, self.config.patch_size)
        return velocity.to(latents.dtype)

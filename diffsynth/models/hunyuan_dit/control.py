"""The control network of HunyuanDiT: it sees a hint and adds to the long skips (ControlNet, arXiv 2302.05543)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from diffsynth.models.hunyuan_dit.backbone import Backbone, ConditionOf
from diffsynth.models.hunyuan_dit.condition import Condition, ControlPlan, TextFeatures
from diffsynth.models.hunyuan_dit.config import HunyuanDiTConfig
from diffsynth.models.hunyuan_dit.rope import Rope
from diffsynth.models.hunyuan_dit.tiled import TokenGrid, TokenTiling


class HunyuanDiTControlNet(Backbone):
    """Blocks like those of the denoiser's first half, which are shown a hint beside the noisy latents.

    What comes out of block k is added to what block k of the denoiser hands to a later block, `HunyuanDiT.denoise`.
    As there, `forward` does everything at once, and a denoising loop does it in three steps: `encode_condition`,
    `plan`, `control`. A new network adds nothing, since its outer layers begin at zero.

    In shapes: B images, C latent channels, H and W latent height and width, N image tokens, D hidden size, S steps.
    """

    name = "the HunyuanDiT control network"

    def __init__(self, config: HunyuanDiTConfig) -> None:
        sources = config.skip_sources
        super().__init__(config, [False for _ in sources])
        self.hint_proj = _zero(nn.Linear(config.hidden_size, config.hidden_size))
        self.outputs = nn.ModuleList(_zero(nn.Linear(config.hidden_size, config.hidden_size)) for _ in sources)

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        hint: Tensor,
        text: TextFeatures,
        rope: Rope,
        image_meta_size: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Return what is added to each long skip, each image at its own timestep.

        Args:
            latents: (B, C, H, W), scaled to about unit variance; H and W multiples of the patch size.
            timestep: (B,), training index from 0 (clean) to 999 (noise).
            hint: (B, C, H, W), latents of the control pictures, scaled alike.
            text: features of B prompts.
            rope: positions of the (H / p) x (W / p) token grid.
            image_meta_size: (B, 6), see `encode_condition`.

        Returns:
            (B, N, D) for every block.

        Raises:
            ValueError: if a shape does not fit the network.
            ModelNotLoaded: after `drop_condition_path`.
        """
        condition = self.encode_condition(text, image_meta_size)
        modulation = self._modulation(timestep, condition)
        self._check_latents(latents, rope)
        tokens = self.patch_embed(latents.to(self.dtype)) + self._hint_tokens(hint, rope)
        return self._run(tokens, self._condition_of(modulation, condition), TokenGrid(rope, None), 1.0)

    def plan(self, timesteps: Sequence[float], condition: Condition, rope: Rope, hint: Tensor) -> ControlPlan:
        """Compute everything that stays the same over a denoising loop.

        Args:
            timesteps: the S training timesteps of the loop.
            condition: B rows, as this network encodes them.
            rope: positions of the token grid.
            hint: (R, C, H, W), latents of the control pictures; row i is shown hint i modulo R. R divides the rows
                that `control` is given, which may be more than B after `ControlPlan.rows`.

        Raises:
            ValueError: if a shape does not fit the network.
            ModelNotLoaded: after `drop_condition_path`.
        """
        modulations = self._modulations(timesteps, condition)
        return ControlPlan(
            timesteps=tuple(float(timestep) for timestep in timesteps),
            blocks=self._conditions(modulations, condition),
            rope=rope.to(condition.vector.device),
            hint=self._hint_tokens(hint, rope),
        )

    def control(
        self, latents: Tensor, step: int, plan: ControlPlan, *, scale: float = 1.0, tile: TokenTiling | None = None
    ) -> tuple[Tensor, ...]:
        """Return what is added to each long skip at one step of a plan.

        Args:
            latents: (B, C, H, W), scaled to about unit variance.
            step: index into the plan's timesteps.
            plan: with B rows.
            scale: strength; all of it is multiplied by this.
            tile: run each block on squares of the image, as the denoiser does.

        Returns:
            (B, N, D) for every block.

        Raises:
            ValueError: if a shape does not fit the plan or the network.
        """
        if len(plan) != len(latents):
            raise ValueError(f"{len(latents)} latents do not fit a plan of {len(plan)} rows")
        if len(latents) % len(plan.hint):
            raise ValueError(f"{len(latents)} latents are not a multiple of the plan's {len(plan.hint)} hints")
        self._check_latents(latents, plan.rope)
        tokens = plan.show(self.patch_embed(latents.to(self.dtype)))
        return self._run(tokens, lambda number: plan.block(number, step), TokenGrid(plan.rope, tile), scale)

    def _hint_tokens(self, hint: Tensor, rope: Rope) -> Tensor:
        self._check_latents(hint, rope)
        tokens: Tensor = self.hint_proj(self.patch_embed(hint.to(self.dtype)))
        return tokens

    def _run(self, tokens: Tensor, condition_of: ConditionOf, grid: TokenGrid, scale: float) -> tuple[Tensor, ...]:
        controls = []
        for number, output in enumerate(self.outputs):
            tokens = grid.run(self._block(number), tokens, condition_of(number))
            controls.append(output(tokens) * scale)
        return tuple(controls)


def _zero(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer

"""One step of HunyuanDiT: what control networks add, the denoiser, and guidance, for several images at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from diffsynth.models.hunyuan_dit.condition import BlockPlan, ControlPlan, Plan
from diffsynth.models.hunyuan_dit.control import HunyuanDiTControlNet
from diffsynth.models.hunyuan_dit.model import HunyuanDiT
from diffsynth.models.hunyuan_dit.tiled import TokenTiling
from diffsynth.nn.attention import AttentionHook, plain_attention
from diffsynth.nn.picture_attention import PictureAttention
from diffsynth.pipelines.control import Control
from diffsynth.pipelines.denoise import Predict
from diffsynth.pipelines.guidance import Guidance

P = TypeVar("P", bound=BlockPlan)

# Diffusers' default, "blocks.1", is a pattern that fits the numbers of these blocks.
PERTURBED_BLOCKS = frozenset({1, *range(10, 20)})


@dataclass(frozen=True)
class Steering:
    """What steers the denoiser in the loop of some images, with the rows of its plan.

    Args:
        parts: each control network's settings and plan.
        tile: as the denoiser is tiled.
        pictures: makes it attend to pictures; None without any.
    """

    parts: tuple[tuple[Control[HunyuanDiTControlNet], ControlPlan], ...] = ()
    tile: TokenTiling | None = None
    pictures: PictureAttention | None = None

    def at(self, latents: Tensor, step: int) -> dict[int, Tensor]:
        """Return what all networks that act at a step add to the long skips, block number → (B, N, D).

        Args:
            latents: (B, C, H, W), as the denoiser is given them.
            step: index into the plans' timesteps.
        """
        total: dict[int, Tensor] = {}
        for control, plan in self.parts:
            if control.acts(step, len(plan.timesteps)):
                added = control.network.control(latents, step, plan, scale=control.scale, tile=self.tile)
                for number, each in enumerate(added):
                    total[number] = total[number].add_(each) if number in total else each  # ours, so changed in place
        return total


def with_rows(plan: P, rows: list[int]) -> P:
    """Return a plan of distinct texts with a row for each row that the denoiser is run on."""
    return plan if rows == list(range(len(plan))) else plan.rows(rows)


def predictor(denoiser: HunyuanDiT, plan: Plan, guidance: Guidance, count: int, steering: Steering) -> Predict:
    """Return the guided prediction for ``count`` images.

    Args:
        denoiser: the diffusion transformer.
        plan: its rows are the negative prompts of all images, if guidance asks for them, their prompts, and each
            local prompt for all images.
        guidance: how predictions are combined.
        count: images.
        steering: what steers the denoiser.
    """
    sides, tile = len(plan) // count, steering.tile
    first = 0 if guidance.scale is None else 1  # the side of the prompts
    prompts = slice(first * count, (first + 1) * count)
    prompts_only = plan.rows(prompts)
    perturbed_blocks = PERTURBED_BLOCKS.intersection(range(denoiser.config.depth))
    pictures = steering.pictures
    attention: AttentionHook = pictures or plain_attention
    own_attention: AttentionHook = pictures.rows(range(len(plan))[prompts]) if pictures else plain_attention

    def predict(latents: Tensor, step: int) -> Tensor:
        every = latents.repeat(sides, 1, 1, 1)
        controls = steering.at(every, step)
        found = denoiser.denoise(every, step, plan, tile=tile, controls=controls, attention=attention)
        parts = found.float().chunk(sides)
        perturbed = None
        if guidance.perturbed_scale > 0:
            own = {number: control[prompts] for number, control in controls.items()}
            perturbed = denoiser.denoise(
                latents,
                step,
                prompts_only,
                tile=tile,
                perturbed_blocks=perturbed_blocks,
                controls=own,
                attention=own_attention,
            )
        return guidance.combine(
            parts[first],
            negative=parts[0] if first else None,
            perturbed=None if perturbed is None else perturbed.float(),
            regional=parts[first + 1 :],
        )

    return predict

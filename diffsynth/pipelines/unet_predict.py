"""The guided prediction of a UNet, or of several that follow one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffsynth.models.unet.condition import Condition, Plan
from diffsynth.models.unet.model import UNet
from diffsynth.nn.attention import AttentionHook, plain_attention
from diffsynth.nn.picture_attention import PictureAttention
from diffsynth.pipelines.denoise import Predict
from diffsynth.pipelines.guidance import Guidance
from diffsynth.pipelines.inpaint import Inpainting


@dataclass(frozen=True, eq=False)
class Row:
    """What a denoiser is told for one image and one prompt.

    Args:
        context: (1, L, context_size), features of the tokens.
        pooled: (1, P), features of the whole prompt; None for a network without them.
        numbers: those that a network of SDXL is told.
    """

    context: Tensor
    pooled: Tensor | None = None
    numbers: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Stage:
    """A denoiser and the part of the schedule that it takes.

    Args:
        unet: the network.
        below: it is asked at timesteps below this one, until the next stage's.
        rows: for every row it is run on.
        pictures: with a row for each of these, what makes it attend to pictures; None without pictures.
    """

    unet: UNet
    below: float
    rows: tuple[Row, ...]
    pictures: PictureAttention | None = None


@dataclass(frozen=True)
class _Group:
    """Rows whose contexts have one length, which can be asked together."""

    rows: list[int]
    plan: Plan
    attention: AttentionHook


def predictor(
    stages: Sequence[Stage], timesteps: Sequence[float], guidance: Guidance, inpainting: Inpainting | None
) -> Predict:
    """Return the guided prediction.

    Args:
        stages: the denoisers; their rows are those of the negative prompts, if guidance has a scale, then those of
            the prompts.
        timesteps: of the run.
        guidance: how predictions become one.
        inpainting: what an inpainting network is told of the input image.
    """
    sides = 1 if guidance.scale is None else 2
    planned = [(stage.unet, _groups(stage, timesteps)) for stage in stages]
    asked = [max(n for n, stage in enumerate(stages) if at < stage.below) for at in timesteps]

    def predict(latents: Tensor, step: int) -> Tensor:
        unet, groups = planned[asked[step]]
        images = latents if inpainting is None else inpainting.inputs(latents)
        rows = images.repeat(sides, 1, 1, 1)
        if len(groups) == 1:
            found = unet.denoise(rows, step, groups[0].plan, attention=groups[0].attention).float()
        else:
            found = torch.empty_like(latents.repeat(sides, 1, 1, 1))
            for group in groups:
                part = unet.denoise(rows[group.rows], step, group.plan, attention=group.attention)
                found[group.rows] = part.float()
        parts = found.chunk(sides)
        negative = parts[0] if sides == 2 else None
        return guidance.combine(parts[-1], negative=negative, perturbed=None, regional=())

    return predict


def _groups(stage: Stage, timesteps: Sequence[float]) -> list[_Group]:
    """Plan a denoiser's rows, those with contexts of one length together; equal rows are planned once."""
    lengths: dict[int, list[int]] = {}
    for number, row in enumerate(stage.rows):
        lengths.setdefault(row.context.shape[1], []).append(number)
    groups = []
    for numbers in lengths.values():
        distinct: list[Row] = []
        index = []
        for number in numbers:
            row = stage.rows[number]
            same = [place for place, other in enumerate(distinct) if _equal(row, other)]
            index.append(same[0] if same else len(distinct))
            if not same:
                distinct.append(row)
        plan = stage.unet.plan(timesteps, Condition.cat([_condition(stage.unet, row) for row in distinct]))
        plan = plan if index == list(range(len(distinct))) else plan.rows(index)
        attention = plain_attention if stage.pictures is None else stage.pictures.rows(numbers)
        groups.append(_Group(numbers, plan, attention))
    return groups


def _equal(row: Row, other: Row) -> bool:
    if row.pooled is not None and other.pooled is not None and not torch.equal(row.pooled, other.pooled):
        return False
    return row.numbers == other.numbers and torch.equal(row.context, other.context)


def _condition(unet: UNet, row: Row) -> Condition:
    device = next(unet.parameters()).device
    if row.pooled is None:
        return unet.encode_condition(row.context.to(device))
    numbers = torch.tensor([row.numbers], dtype=torch.float32, device=device)
    return unet.encode_condition(row.context.to(device), row.pooled.to(device), numbers)

"""The guided prediction of a UNet, or of several that follow one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffsynth.models.unet.condition import Condition, Plan, Rows
from diffsynth.models.unet.control import ControlNet
from diffsynth.models.unet.encoder import Encoder
from diffsynth.models.unet.model import UNet
from diffsynth.nn.attention import AttentionHook, plain_attention
from diffsynth.nn.picture_attention import PictureAttention
from diffsynth.pipelines.denoise import Predict
from diffsynth.pipelines.guidance import Guidance
from diffsynth.pipelines.inpaint import Inpainting
from diffsynth.pipelines.unet_control import Guide, PlannedGuide, steer


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
        guides: the control networks that steer it.
        pictures: with a row for each of ``rows``, what makes it attend to pictures; None without pictures.
    """

    unet: UNet
    below: float
    rows: tuple[Row, ...]
    guides: tuple[Guide, ...] = ()
    pictures: PictureAttention | None = None


@dataclass(frozen=True)
class _Group:
    """Rows whose contexts have one length, which can be asked together."""

    rows: Rows
    plan: Plan
    guides: tuple[PlannedGuide, ...]
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
    planned = [(stage.unet, _groups(stage, timesteps, sides)) for stage in stages]
    asked = [max(n for n, stage in enumerate(stages) if at < stage.below) for at in timesteps]

    def predict(latents: Tensor, step: int) -> Tensor:
        unet, groups = planned[asked[step]]
        rows = latents.repeat(sides, 1, 1, 1)
        images = rows if inpainting is None else inpainting.inputs(latents).repeat(sides, 1, 1, 1)
        found = torch.empty_like(rows, dtype=torch.float32)
        for group in groups:
            controls = steer(group.guides, rows[group.rows], step)
            part = unet.denoise(images[group.rows], step, group.plan, controls=controls, attention=group.attention)
            found[group.rows] = part.float()
        parts = found.chunk(sides)
        negative = parts[0] if sides == 2 else None
        return guidance.combine(parts[-1], negative=negative, perturbed=None, regional=())

    return predict


def _groups(stage: Stage, timesteps: Sequence[float], sides: int) -> list[_Group]:
    """Plan the rows of a denoiser and of what steers it, those with contexts of one length together."""
    lengths: dict[int, list[int]] = {}
    for number, row in enumerate(stage.rows):
        lengths.setdefault(row.context.shape[1], []).append(number)
    prompts = len(stage.rows) - len(stage.rows) // sides  # the first row of a prompt
    groups = []
    for numbers in lengths.values():
        rows = [stage.rows[number] for number in numbers]
        of_prompts = [place for place, number in enumerate(numbers) if number >= prompts]
        guides = [_plan_guide(guide, rows, of_prompts, timesteps) for guide in stage.guides]
        plan = _plan(stage.unet, rows, timesteps)
        active = tuple(guide for guide in guides if guide is not None)
        attention = plain_attention if stage.pictures is None else stage.pictures.rows(numbers)
        groups.append(_Group(_as_slice(numbers), plan, active, attention))
    return groups


def _plan_guide(
    guide: Guide, rows: Sequence[Row], of_prompts: Sequence[int], timesteps: Sequence[float]
) -> PlannedGuide | None:
    """Plan the rows that a guide sees; None if it sees none of them."""
    seen = of_prompts if guide.guesses else range(len(rows))
    if not seen:
        return None
    plan = _plan(guide.network, [rows[place] for place in seen], timesteps, guide.types)
    return PlannedGuide(guide, plan, _as_slice(seen) if len(seen) < len(rows) else None)


def _as_slice(rows: Sequence[int]) -> Rows:
    """Return rows that follow one another as a slice, for which no device has to wait for their numbers."""
    follow = list(rows) == list(range(rows[0], rows[-1] + 1))
    return slice(rows[0], rows[-1] + 1) if follow else list(rows)


def _plan(network: Encoder, rows: Sequence[Row], timesteps: Sequence[float], types: Sequence[int] = ()) -> Plan:
    """Plan rows of equal context lengths, equal ones once; ``types`` are those of a control network's pictures."""
    distinct: list[Row] = []
    index = []
    for row in rows:
        same = [place for place, other in enumerate(distinct) if _equal(row, other)]
        index.append(same[0] if same else len(distinct))
        if not same:
            distinct.append(row)
    plan = network.plan(timesteps, Condition.cat([_condition(network, row, types) for row in distinct]))
    return plan if index == list(range(len(distinct))) else plan.rows(index)


def _equal(row: Row, other: Row) -> bool:
    if row.pooled is not None and other.pooled is not None and not torch.equal(row.pooled, other.pooled):
        return False
    return row.numbers == other.numbers and torch.equal(row.context, other.context)


def _condition(network: Encoder, row: Row, types: Sequence[int]) -> Condition:
    device = next(network.parameters()).device
    told = [row.context.to(device)]
    if row.pooled is not None:
        told += [row.pooled.to(device), torch.tensor([row.numbers], dtype=torch.float32, device=device)]
    return (
        network.encode_condition(*told, types=types)
        if isinstance(network, ControlNet)
        else network.encode_condition(*told)
    )

"""DDPM: ancestral sampling, fresh noise at every step (arXiv 2006.11239)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from typing_extensions import override

from diffsynth.schedulers.base import Grid, Mix, Scheduler, Update
from diffsynth.schedulers.betas import Level
from diffsynth.schedulers.ddim import posterior_variance
from diffsynth.schedulers.spacing import Leading, Spacing

_LEAST_VARIANCE = 1e-20  # what others clamp to, so that the last step draws noise too


@dataclass(frozen=True, kw_only=True)
class DDPMScheduler(Scheduler):
    """DDPM with the small fixed variance, each step leading to the next timestep of the grid.

    Noise is drawn at every step, the last included, where its weight is 1e-10; only a step from timestep 0 draws
    none. That order of draws is what makes pictures repeat those of other implementations.
    """

    last_alpha_bar: ClassVar[float] = 0.0

    spacing: Spacing = field(default_factory=partial(Leading, steps_offset=1))

    @override
    def plan(self, grid: Grid) -> list[Update]:
        updates = []
        for timestep, start, end in zip(grid.timesteps, grid.levels, grid.levels[1:], strict=False):
            noise = math.sqrt(max(posterior_variance(start, end), _LEAST_VARIANCE)) if timestep > 0 else None
            updates.append(Update(_posterior_mean(start, end), noise=noise))
        return updates


def _posterior_mean(start: Level, end: Level) -> Mix:
    """Return the mean of the latents at ``end``, given those at ``start`` and the clean data (equation 7)."""
    kept = start.alpha / end.alpha  # signal kept by the noising step from end to start
    return Mix(kept * (end.sigma / start.sigma) ** 2, (end.alpha * (1.0 - kept**2) / start.sigma**2,))

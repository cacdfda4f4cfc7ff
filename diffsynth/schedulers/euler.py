"""Euler's method on sigma / alpha, plain and ancestral (arXiv 2206.00364, section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from diffsynth.schedulers.base import Grid, Scheduler
from diffsynth.schedulers.ddim import DDIMScheduler
from diffsynth.schedulers.spacing import Leading


@dataclass(frozen=True, kw_only=True)
class EulerScheduler(DDIMScheduler):
    """Euler's method; with ``eta`` 1 the ancestral one, which draws noise at each step.

    In latents of unit variance an Euler step in sigma / alpha is a step of DDIM. What differs is the start: noise
    stands for latents at the first level and is scaled to it, except with ``Leading`` spacing.
    """

    last_alpha_bar: ClassVar[float] = Scheduler.last_alpha_bar

    @override
    def noise_scale(self, grid: Grid) -> float:
        return 1.0 if isinstance(self.spacing, Leading) else grid.levels[0].sigma

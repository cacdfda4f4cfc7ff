"""The order of every solver, on a mixture of Gaussians whose best denoiser is known in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from diffsynth.schedulers.base import Scheduler
from diffsynth.schedulers.betas import Level, noise_schedule
from diffsynth.schedulers.ddim import DDIMScheduler
from diffsynth.schedulers.dpm_solver import DPMSolverScheduler
from diffsynth.schedulers.spacing import LogUniform
from diffsynth.schedulers.unipc import UniPCScheduler

WEIGHTS = torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64)
MEANS = torch.tensor([-1.5, 0.4, 2.0], dtype=torch.float64)
DEVIATIONS = torch.tensor([0.6, 0.5, 0.7], dtype=torch.float64)
START = torch.linspace(-2.0, 2.0, 33, dtype=torch.float64).reshape(1, 1, 3, 11)
INTERVALS = (40, 80, 160)


def denoise(latents: Tensor, level: Level) -> Tensor:
    """Return the expected clean value, given noisy ones."""
    variance = (level.alpha * DEVIATIONS) ** 2 + level.sigma**2
    distance = latents[..., None] - level.alpha * MEANS
    share = torch.softmax(WEIGHTS.log() - 0.5 * distance**2 / variance - 0.5 * variance.log(), dim=-1)
    return (share * (MEANS + level.alpha * DEVIATIONS**2 / variance * distance)).sum(-1)


@cache
def solution(beta_end: float) -> Tensor:
    """Solve the same equation from timestep 999 to 0 by the classical fourth-order Runge-Kutta method.

    With y = latents / alpha and u = log(sigma / alpha) it reads dy/du = y - denoise(y).
    """
    schedule = noise_schedule(0.00085, beta_end)
    first, last = -schedule.level(999).log_snr, -schedule.level(0).log_snr
    width = (last - first) / 3000

    def slope(y: Tensor, u: float) -> Tensor:
        alpha = 1.0 / math.hypot(1.0, math.exp(u))
        return y - denoise(y * alpha, Level(alpha, alpha * math.exp(u)))

    y = START / schedule.level(999).alpha
    for index in range(3000):
        u = first + index * width
        k1 = slope(y, u)
        k2 = slope(y + 0.5 * width * k1, u + 0.5 * width)
        k3 = slope(y + 0.5 * width * k2, u + 0.5 * width)
        k4 = slope(y + width * k3, u + width)
        y = y + width / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)
    return y * schedule.level(0).alpha


def error(scheduler: Scheduler, intervals: int) -> float:
    run = scheduler.start(intervals + 1)
    latents = START
    for step, level in enumerate(run.levels[:-1]):
        latents = run.step(denoise(latents, level), latents, step)
    return float((latents - solution(scheduler.beta_end)).abs().max())


@pytest.mark.parametrize("beta_end", [0.018, 0.03])
@pytest.mark.parametrize(
    ("kind", "settings", "order"),
    [
        (DDIMScheduler, {}, 1),
        (DPMSolverScheduler, {"order": 1}, 1),
        (DPMSolverScheduler, {"order": 2}, 2),
        (DPMSolverScheduler, {"order": 2, "integration": "exact"}, 2),
        (DPMSolverScheduler, {"order": 3}, 2),  # the published weights: see exponential.published_third
        (DPMSolverScheduler, {"order": 3, "integration": "exact"}, 3),
        (UniPCScheduler, {"order": 1}, 2),
        (UniPCScheduler, {"order": 2}, 3),
        (UniPCScheduler, {"order": 3}, 4),
    ],
)
def test_halving_the_steps_divides_the_error_as_the_order_says(
    kind: Callable[..., Scheduler], settings: dict[str, Any], order: int, beta_end: float
) -> None:
    # It ends at timestep 0: the last leap from there to clean has an error of its own, whatever the steps.
    scheduler = kind(beta_end=beta_end, prediction="sample", spacing=LogUniform(), final_sigma="sigma_min", **settings)

    errors = [error(scheduler, intervals) for intervals in INTERVALS]

    observed = math.log(errors[0] / errors[-1]) / math.log(INTERVALS[-1] / INTERVALS[0])
    assert observed == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize("steps", [10, 15, 20])
def test_a_corrector_beats_the_same_solver_without_one(steps: int) -> None:
    settings: dict[str, Any] = {"beta_end": 0.018, "prediction": "sample", "spacing": LogUniform()}

    with_corrector = error(UniPCScheduler(**settings, final_sigma="sigma_min"), steps)
    without = error(DPMSolverScheduler(**settings, final_sigma="sigma_min"), steps)

    assert with_corrector < 0.8 * without

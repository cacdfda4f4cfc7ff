"""Every scheduler that is offered, on every spacing that is offered, over whole runs against other implementations.

Where the places of the timesteps come from is tested in ``test_spacing.py``; here others' solvers walk along them.
The library's classes follow any list of sigmas that is put into them. What it has no class for, or one that knows
evenly spread whole timesteps alone (PNDM), is written out below in another way, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diffsynth.schedulers.base import Prediction, SchedulerRun
from diffsynth.schedulers.betas import Level
from diffsynth.schedulers.catalog import SCHEDULERS, make_scheduler
from diffsynth.schedulers.spacing import SPACINGS

diffusers = pytest.importorskip("diffusers", reason="diffusers is the independent implementation")
pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # theirs, on arrays made from tensors

SHAPE = (2, 4, 6, 5)
STEPS = (1, 2, 3, 5, 20, 50)
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
KINDS: dict[Prediction, str] = {"velocity": "v_prediction", "epsilon": "epsilon"}

FIRST: dict[str, Any] = {"solver_order": 1}
SDE: dict[str, Any] = {"algorithm_type": "sde-dpmsolver++"}
DPM = "DPMSolverMultistepScheduler"
CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": (DPM, FIRST),  # which it is, and DDPM and Euler's ancestral method are its stochastic variant
    "ddim_diffsynth": (DPM, FIRST),
    "ddpm": (DPM, FIRST | SDE),
    "dpmms": (DPM, {"final_sigmas_type": "sigma_min"}),
    "dpm++2m": (DPM, {}),
    "dpm++2m_sde": (DPM, SDE),
    "dpm++3m": (DPM, {"solver_order": 3}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
}


def network(latents: Tensor, timestep: float) -> Tensor:
    places = torch.linspace(0.5, 1.5, latents.numel()).reshape(latents.shape).to(latents.dtype)
    return torch.tanh(0.7 * places * latents + timestep / 1000) - 0.2 * torch.cos(3 * places + timestep / 300)


def normal(seed: int) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(SHAPE, generator=generator)


def run_ours(run: SchedulerRun, latents: Tensor) -> Tensor:
    for step, timestep in enumerate(run.timesteps):
        latents = run.step(network(latents, timestep), latents, step)
    return latents


def run_class(name: str, prediction: Prediction, run: SchedulerRun, latents: Tensor) -> Tensor:
    """Walk along our levels with a class of the library."""
    kind, settings = CLASSES[name]
    scheduler = getattr(diffusers, kind)(**BETAS, prediction_type=KINDS[prediction], **settings)
    scheduler.set_timesteps(len(run.timesteps))
    scheduler.sigmas = torch.tensor([level.noise_ratio for level in run.levels])
    scheduler.timesteps = torch.tensor(run.timesteps)
    scheduler.set_begin_index(0)
    generator = torch.Generator().manual_seed(1)
    extra = {} if name == "unipc" else {"generator": generator}
    in_sigma = name.startswith("euler")
    latents = latents / run.levels[0].alpha if in_sigma else latents
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(latents, timestep)
        latents = scheduler.step(network(scaled, float(timestep)), timestep, latents, **extra).prev_sample
    return latents * run.levels[-1].alpha if in_sigma else latents


def noise_and_data(level: Level, latents: Tensor, said: Tensor, prediction: Prediction) -> tuple[Tensor, Tensor]:
    """Return the noise and the clean latents that the network's answer stands for."""
    if prediction == "epsilon":
        return said, (latents - level.sigma * said) / level.alpha
    return level.sigma * latents + level.alpha * said, level.alpha * latents - level.sigma * said


def run_pndm(prediction: Prediction, run: SchedulerRun, latents: Tensor) -> Tensor:
    """The linear multistep method of arXiv 2202.09778, started by a step of the improved Euler method."""
    adams: dict[int, list[float]] = {
        1: [1],
        2: [3 / 2, -1 / 2],
        3: [23 / 12, -4 / 3, 5 / 12],
        4: [55 / 24, -59 / 24, 37 / 24, -3 / 8],
    }
    levels, times = [*run.levels], [*run.timesteps]
    if len(times) > 2:
        del levels[1], times[1]  # the second timestep, at which the network is asked twice

    def noise(latents: Tensor, at: int) -> Tensor:
        return noise_and_data(levels[at], latents, network(latents, times[at]), prediction)[0]

    def moved(latents: Tensor, at: int, mean: Tensor) -> Tensor:
        clean = (latents - levels[at].sigma * mean) / levels[at].alpha
        return levels[at + 1].alpha * clean + levels[at + 1].sigma * mean

    past = [noise(latents, 0)]
    start, latents = latents, moved(latents, 0, past[0])
    if len(times) > 1:
        latents = moved(start, 0, (past[0] + noise(latents, 1)) / 2)
    for at in range(1, len(times)):
        past = [noise(latents, at), *past][:4]
        mean = sum((w * e for w, e in zip(adams[len(past)], past, strict=True)), start=torch.zeros_like(latents))
        latents = moved(latents, at, mean)
    return latents


def run_exact(prediction: Prediction, run: SchedulerRun, latents: Tensor) -> Tensor:
    """Order 3 of DPM-Solver++: the weights solve for the integrals of 1, s and s squared against exp(s - h)."""
    steps = len(run.timesteps)
    past: list[tuple[float, Tensor]] = []
    for step, (start, end) in enumerate(zip(run.levels, run.levels[1:], strict=False)):
        data = noise_and_data(start, latents, network(latents, run.timesteps[step]), prediction)[1]
        past = [(start.log_snr, data), *past][:3]
        left = steps - step
        order = min(len(past), left if steps < 15 else 3, 1 if left == 1 else 3)
        if order == 1:
            ratio = end.sigma / start.sigma
            latents = ratio * latents + (end.alpha - ratio * start.alpha) * data
            continue
        h = end.log_snr - start.log_snr
        moments = [-math.expm1(-h)]
        for power in range(1, order):  # by parts
            moments.append(h**power - power * moments[-1])
        places = np.array([log_snr - start.log_snr for log_snr, _ in past[:order]])
        weights = np.linalg.solve(np.vander(places, increasing=True).T, moments)
        mixed = sum(float(weight) * data for weight, (_, data) in zip(weights, past, strict=False))
        latents = end.sigma / start.sigma * latents + end.alpha * mixed
    return latents


def run_other(name: str, prediction: Prediction, run: SchedulerRun, latents: Tensor) -> Tensor:
    if name == "pndm":
        return run_pndm(prediction, run, latents.double())
    if name == "dpm++3m_exact":
        return run_exact(prediction, run, latents.double())
    return run_class(name, prediction, run, latents)


@pytest.mark.parametrize("prediction", KINDS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_whole_run_is_that_of_another_implementation(name: str, spacing: str, prediction: Prediction) -> None:
    scheduler = make_scheduler(name, beta_start=0.00085, beta_end=0.012, prediction=prediction, spacing=spacing)

    for steps in STEPS:
        ours, asked = (scheduler.start(steps, draw_noise=normal(1)) for _ in range(2))
        start = normal(0)() * ours.noise_scale

        found = run_ours(ours, start)
        expected = run_other(name, prediction, asked, start)

        assert float((found - expected).abs().max() / expected.abs().max().clamp(min=1.0)) < 1e-5, steps

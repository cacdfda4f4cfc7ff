"""Whole runs of every scheduler against the diffusers class of the same name.

The network is a fixed function of latents and timestep. Deviations are relative to the largest value, since epsilon
predictions of a network that is none make the latents grow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from diffsynth.schedulers.base import FinalSigma, Prediction, Scheduler, SchedulerRun
from diffsynth.schedulers.ddim import DDIMScheduler
from diffsynth.schedulers.ddpm import DDPMScheduler
from diffsynth.schedulers.dpm_solver import DPMSolverScheduler
from diffsynth.schedulers.spacing import Explicit, Karras, Leading, Linspace, LogUniform, Trailing
from diffsynth.schedulers.unipc import UniPCScheduler

diffusers = pytest.importorskip("diffusers", reason="diffusers is the independent implementation")
pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # theirs, on arrays made from tensors

SHAPE = (2, 4, 6, 5)
PREDICTION_NAMES = {"velocity": "v_prediction", "epsilon": "epsilon", "sample": "sample"}


@dataclass(frozen=True)
class Case:
    """One of our schedulers, and the diffusers class and settings that should do the same."""

    ours: Callable[..., Scheduler]
    changes: dict[str, Any]
    theirs: str
    settings: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.ours.__name__}-{'-'.join(map(str, self.changes.values()))}"


SIGMA_MIN: FinalSigma = "sigma_min"
DDIM, DDPM = "DDIMScheduler", "DDPMScheduler"
DPM, UNIPC = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"
OFFSET, TRAILING = {"timestep_spacing": "leading", "steps_offset": 1}, {"timestep_spacing": "trailing"}
THIRD, SDE = {"solver_order": 3}, {"algorithm_type": "sde-dpmsolver++"}
CASES = [
    Case(DDIMScheduler, {}, DDIM, {**OFFSET, "set_alpha_to_one": True}),
    Case(DDIMScheduler, {"final_sigma": SIGMA_MIN}, DDIM, {**OFFSET, "set_alpha_to_one": False}),
    Case(DDIMScheduler, {"spacing": Leading()}, DDIM),
    Case(DDIMScheduler, {"spacing": Trailing()}, DDIM, TRAILING),
    Case(DDPMScheduler, {}, DDPM, OFFSET),
    Case(DDPMScheduler, {"spacing": Leading()}, DDPM),
    Case(DDPMScheduler, {"spacing": Trailing()}, DDPM, TRAILING),
    Case(DPMSolverScheduler, {}, DPM),
    Case(DPMSolverScheduler, {"final_sigma": SIGMA_MIN}, DPM, {"final_sigmas_type": "sigma_min"}),
    Case(DPMSolverScheduler, {"lower_order_final": False}, DPM, {"lower_order_final": False}),
    Case(DPMSolverScheduler, {"order": 1}, DPM, {"solver_order": 1}),
    Case(DPMSolverScheduler, {"order": 3}, DPM, THIRD),
    Case(DPMSolverScheduler, {"order": 3, "final_sigma": SIGMA_MIN}, DPM, {**THIRD, "final_sigmas_type": "sigma_min"}),
    Case(DPMSolverScheduler, {"integration": "exact"}, DPM, {"solver_type": "heun"}),
    Case(DPMSolverScheduler, {"spacing": Trailing()}, DPM, TRAILING),
    Case(DPMSolverScheduler, {"spacing": Karras()}, DPM, {"use_karras_sigmas": True}),
    Case(DPMSolverScheduler, {"spacing": LogUniform()}, DPM, {"use_exponential_sigmas": True}),
    Case(DPMSolverScheduler, {"stochastic": True}, DPM, SDE),
    Case(DPMSolverScheduler, {"stochastic": True, "order": 1}, DPM, {**SDE, "solver_order": 1}),
    Case(UniPCScheduler, {"spacing": Linspace()}, UNIPC),
    Case(UniPCScheduler, {"spacing": Linspace(), "order": 1}, UNIPC, {"solver_order": 1}),
    Case(UniPCScheduler, {"spacing": Linspace(), "order": 3}, UNIPC, THIRD),
    Case(UniPCScheduler, {"spacing": Trailing()}, UNIPC, TRAILING),
    Case(UniPCScheduler, {"spacing": LogUniform()}, UNIPC, {"use_exponential_sigmas": True}),
]  # fmt: skip


def normal(generator: torch.Generator) -> Tensor:
    return torch.randn(SHAPE, generator=generator)


def network(latents: Tensor, timestep: float) -> Tensor:
    places = torch.linspace(0.5, 1.5, latents.numel()).reshape(latents.shape)
    return torch.tanh(0.7 * places * latents + timestep / 1000) - 0.2 * torch.cos(3 * places + timestep / 300)


def our_run(case: Case, steps: int, beta_end: float, prediction: Prediction, **start: Any) -> SchedulerRun:
    scheduler = case.ours(beta_end=beta_end, prediction=prediction, **case.changes)
    generator = torch.Generator().manual_seed(1)
    return scheduler.start(steps, draw_noise=lambda: normal(generator), **start)


def their_scheduler(case: Case, steps: int, beta_end: float, prediction: Prediction) -> Any:
    common = {"beta_start": 0.00085, "beta_end": beta_end, "beta_schedule": "scaled_linear"}
    if case.theirs in (DDIM, DDPM):
        common["clip_sample"] = False
    kind = getattr(diffusers, case.theirs)
    scheduler = kind(**common, prediction_type=PREDICTION_NAMES[prediction], **case.settings)
    scheduler.set_timesteps(steps)
    return scheduler


def draw_ours(run: SchedulerRun, latents: Tensor) -> Tensor:
    for step, timestep in enumerate(run.timesteps):
        latents = run.step(network(latents, timestep), latents, step)
    return latents


def draw_theirs(scheduler: Any, theirs: Tensor, run: SchedulerRun, latents: Tensor) -> Tensor:
    """Their steps, with the network asked at our timesteps: theirs are cut to whole numbers."""
    generator = torch.Generator().manual_seed(1)
    extra = {} if type(scheduler).__name__ == UNIPC else {"generator": generator}
    for own, timestep in zip(theirs, run.timesteps, strict=True):
        latents = scheduler.step(network(latents, timestep), own, latents, **extra).prev_sample
    return latents


def deviation(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1.0))


@pytest.mark.parametrize("prediction", PREDICTION_NAMES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_whole_run_equals_that_of_diffusers(case: Case, prediction: Prediction) -> None:
    start = normal(torch.Generator().manual_seed(0))

    for beta_end in (0.03, 0.018):
        for steps in (1, 2, 5, 20, 25, 50):
            run = our_run(case, steps, beta_end, prediction)
            oracle = their_scheduler(case, steps, beta_end, prediction)
            assert len(run.timesteps) == steps

            ours = draw_ours(run, start)
            theirs = draw_theirs(oracle, oracle.timesteps, run, start)

            assert deviation(ours, theirs) < 1e-5


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_run_from_an_input_image_equals_that_of_diffusers(case: Case) -> None:
    clean, noise = normal(torch.Generator().manual_seed(0)), normal(torch.Generator().manual_seed(2))
    oracle = their_scheduler(case, 20, 0.018, "velocity")
    dropped = 20 - int(20 * 0.7)
    if hasattr(oracle, "set_begin_index"):
        oracle.set_begin_index(dropped)
    run = our_run(case, 20, 0.018, "velocity", denoising_strength=0.7)

    ours = run.add_noise(clean, noise)
    theirs = oracle.add_noise(clean, noise, oracle.timesteps[dropped : dropped + 1])
    assert deviation(ours, theirs) < 1e-5

    assert deviation(draw_ours(run, ours), draw_theirs(oracle, oracle.timesteps[dropped:], run, ours)) < 1e-5


def test_a_written_list_of_timesteps_equals_that_of_diffusers() -> None:
    timesteps = [990, 700, 444, 200, 80, 7]
    case = Case(DPMSolverScheduler, {"spacing": Explicit(tuple(map(float, timesteps)))}, DPM)
    oracle = their_scheduler(case, 6, 0.03, "velocity")
    oracle.set_timesteps(timesteps=timesteps)
    start = normal(torch.Generator().manual_seed(0))
    run = our_run(case, 6, 0.03, "velocity")

    assert deviation(draw_ours(run, start), draw_theirs(oracle, oracle.timesteps, run, start)) < 1e-5


@pytest.mark.parametrize("steps", [10, 25])
def test_ddim_with_eta_equals_that_of_diffusers(steps: int) -> None:
    case = Case(DDIMScheduler, {"eta": 0.6}, DDIM, OFFSET)
    oracle = their_scheduler(case, steps, 0.018, "velocity")
    generator = torch.Generator().manual_seed(1)
    run = our_run(case, steps, 0.018, "velocity")
    latents = start = normal(torch.Generator().manual_seed(0))

    for timestep in oracle.timesteps:
        prediction = network(latents, float(timestep))
        latents = oracle.step(prediction, timestep, latents, eta=0.6, generator=generator).prev_sample

    assert deviation(draw_ours(run, start), latents) < 1e-5

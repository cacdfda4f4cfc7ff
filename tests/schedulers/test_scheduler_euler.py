"""Whole runs of Euler's method and of PNDM against the diffusers classes, started from noise and from an image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from diffsynth.schedulers.base import Prediction, Scheduler
from diffsynth.schedulers.catalog import make_scheduler
from diffsynth.schedulers.pndm import PNDMScheduler
from diffsynth.schedulers.spacing import Explicit, Karras, Leading, LogUniform, Spacing, Trailing

diffusers = pytest.importorskip("diffusers", reason="diffusers is the independent implementation")
pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # theirs, on arrays made from tensors

SHAPE = (2, 4, 6, 5)
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
THEIRS = {"euler": "EulerDiscreteScheduler", "euler_a": "EulerAncestralDiscreteScheduler"}
LEADING = {"timestep_spacing": "leading", "steps_offset": 1}
SPACINGS: list[tuple[Spacing, dict[str, Any]]] = [
    (Leading(steps_offset=1), LEADING),
    (Leading(), {"timestep_spacing": "leading"}),
    (Trailing(), {"timestep_spacing": "trailing"}),
]
SIGMAS: list[tuple[Spacing, dict[str, Any]]] = [
    (Karras(), {"timestep_spacing": "linspace", "use_karras_sigmas": True}),
    (LogUniform(), {"timestep_spacing": "linspace", "use_exponential_sigmas": True}),
]


def network(latents: Tensor, timestep: float) -> Tensor:
    places = torch.linspace(0.5, 1.5, latents.numel()).reshape(latents.shape)
    return torch.tanh(0.7 * places * latents + timestep / 1000) - 0.2 * torch.cos(3 * places + timestep / 300)


def normal(seed: int) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(SHAPE, generator=generator)


def run_ours(scheduler: Scheduler, steps: int, noise: Tensor, clean: Tensor | None, strength: float) -> Tensor:
    run = scheduler.start(steps, denoising_strength=strength, draw_noise=normal(1))
    latents = noise * run.noise_scale if clean is None else run.add_noise(clean, noise)
    for step, timestep in enumerate(run.timesteps):
        latents = run.step(network(latents, timestep), latents, step)
    return latents


def run_theirs(
    scheduler: Any, steps: int, ours: Scheduler, noise: Tensor, clean: Tensor | None, strength: float
) -> Tensor:
    """Their steps, with the network asked at our timesteps: theirs may be cut to fewer digits."""
    scheduler.set_timesteps(steps)
    asked = ours.start(steps, denoising_strength=strength, draw_noise=normal(1)).timesteps
    timesteps = scheduler.timesteps[len(scheduler.timesteps) - len(asked) :]
    latents: Tensor = noise * scheduler.init_noise_sigma
    if clean is not None:
        scheduler.set_begin_index(len(scheduler.timesteps) - len(asked))
        latents = scheduler.add_noise(clean, noise, timesteps[:1])
    generator = torch.Generator().manual_seed(1)
    extra = {} if isinstance(scheduler, diffusers.PNDMScheduler) else {"generator": generator}
    for own, timestep in zip(timesteps, asked, strict=True):
        prediction = network(scheduler.scale_model_input(latents, own), timestep)
        latents = scheduler.step(prediction, own, latents, **extra).prev_sample
    return latents


def deviation(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1.0))


def assert_same_runs(
    name: str, spacing: Spacing, settings: dict[str, Any], prediction: Prediction, **case: Any
) -> None:
    ours = make_scheduler(name, beta_start=0.00085, beta_end=0.012, prediction=prediction, spacing=spacing)
    kind = {"velocity": "v_prediction", "epsilon": "epsilon"}[prediction]
    theirs = getattr(diffusers, THEIRS[name])(**BETAS, prediction_type=kind, **settings)
    noise, clean = normal(0)(), normal(2)() if case["strength"] < 1 else None

    for steps in case["steps"]:
        found = run_ours(ours, steps, noise, clean, case["strength"])
        expected = run_theirs(theirs, steps, ours, noise, clean, case["strength"])

        assert deviation(found, expected) < 1e-5, steps


@pytest.mark.parametrize("prediction", ["epsilon", "velocity"])
@pytest.mark.parametrize(("spacing", "settings"), SPACINGS, ids=str)
@pytest.mark.parametrize("name", THEIRS)
def test_euler_runs_equal_those_of_diffusers(
    name: str, spacing: Spacing, settings: dict[str, Any], prediction: Prediction
) -> None:
    assert_same_runs(name, spacing, settings, prediction, steps=(1, 2, 4, 20, 30, 50), strength=1.0)


@pytest.mark.parametrize(("spacing", "settings"), SIGMAS, ids=str)
def test_euler_runs_on_spacings_in_sigma_equal_those_of_diffusers(spacing: Spacing, settings: dict[str, Any]) -> None:
    assert_same_runs("euler", spacing, settings, "epsilon", steps=(2, 10, 30), strength=1.0)


@pytest.mark.parametrize(("spacing", "settings"), SPACINGS, ids=str)
@pytest.mark.parametrize("name", THEIRS)
def test_euler_runs_from_an_image_equal_those_of_diffusers(
    name: str, spacing: Spacing, settings: dict[str, Any]
) -> None:
    assert_same_runs(name, spacing, settings, "epsilon", steps=(4, 20), strength=0.7)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 6, 20, 50])
def test_pndm_runs_equal_those_of_diffusers(steps: int) -> None:
    ours = PNDMScheduler(beta_end=0.012, prediction="epsilon")
    theirs = diffusers.PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False)
    noise = normal(0)()

    found = run_ours(ours, steps, noise, None, 1.0)
    expected = run_theirs(theirs, steps, ours, noise, None, 1.0)

    assert deviation(found, expected) < 1e-5


def test_pndm_asks_twice_at_the_second_timestep() -> None:
    run = PNDMScheduler(beta_end=0.012, prediction="epsilon").start(20)

    assert run.timesteps[:4] == (951.0, 901.0, 901.0, 851.0)
    assert len(run.timesteps) == 21


def test_noise_is_scaled_to_the_first_level_except_with_leading_spacing() -> None:
    settings: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "prediction": "epsilon"}

    trailing = make_scheduler("euler_a", spacing="trailing", **settings).start(1, draw_noise=normal(0))

    assert trailing.noise_scale == trailing.levels[0].sigma < 1
    assert make_scheduler("euler", **settings).start(1).noise_scale == 1
    assert make_scheduler("euler", spacing=Explicit((999.0,)), **settings).start(1).noise_scale < 1

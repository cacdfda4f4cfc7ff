"""The schedule that is rescaled to end in pure noise (arXiv 2305.08891), against the diffusers library."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from diffsynth.errors import InvalidRequest
from diffsynth.schedulers.betas import noise_schedule
from diffsynth.schedulers.catalog import SCHEDULERS, make_scheduler
from diffsynth.schedulers.spacing import SPACINGS

SHAPE = (2, 4, 6, 5)
BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012}
DPM = "DPMSolverMultistepScheduler"
SDE = {"algorithm_type": "sde-dpmsolver++"}
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("ddim", "DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": True}),
    ("ddpm", "DDPMScheduler", {"clip_sample": False}),
    ("euler", "EulerDiscreteScheduler", {}),
    ("euler_a", "EulerAncestralDiscreteScheduler", {}),
    ("dpm++2m", DPM, {}),
    ("dpm++3m", DPM, {"solver_order": 3}),
    ("dpm++2m_sde", DPM, SDE),
    ("unipc", "UniPCMultistepScheduler", {}),
]


def normal(generator: torch.Generator) -> Tensor:
    return torch.randn(SHAPE, generator=generator)


def network(latents: Tensor, timestep: float) -> Tensor:
    places = torch.linspace(0.5, 1.5, latents.numel()).reshape(latents.shape)
    return torch.tanh(0.7 * places * latents + timestep / 1000) - 0.2 * torch.cos(3 * places + timestep / 300)


def deviation(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1.0))


def test_the_levels_are_those_of_the_paper() -> None:
    plain, rescaled = noise_schedule(0.00085, 0.012), noise_schedule(0.00085, 0.012, last=0.0)

    assert rescaled.alpha_bars[0] == pytest.approx(plain.alpha_bars[0], rel=1e-7)
    assert rescaled.alpha_bars[500] == pytest.approx(0.241018549, rel=1e-5)
    last = rescaled.level(999)
    assert (last.alpha, last.sigma, last.noise_ratio, last.log_snr) == (0.0, 1.0, math.inf, -math.inf)


def test_the_betas_are_those_of_diffusers() -> None:
    ddim = pytest.importorskip("diffusers.schedulers.scheduling_ddim")
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2

    expected = torch.cumprod(1 - ddim.rescale_zero_terminal_snr(betas), dim=0)

    found = torch.tensor(noise_schedule(0.00085, 0.012, last=0.0).alpha_bars)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_between_the_last_two_timesteps_levels_stay_finite_and_in_order() -> None:
    schedule = noise_schedule(0.00085, 0.012, last=0.0)

    ratios = [schedule.level(timestep).noise_ratio for timestep in (998, 998.25, 998.75, 999)]

    assert ratios == sorted(ratios)
    assert math.isfinite(ratios[2])
    assert schedule.timestep(ratios[1]) == pytest.approx(998.25)


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
@pytest.mark.parametrize("steps", [1, 2, 5, 20, 50])
@pytest.mark.parametrize(
    ("name", "theirs", "settings"), CASES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_whole_run_equals_that_of_diffusers(name: str, theirs: str, settings: dict[str, Any], steps: int) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is the independent implementation")
    common = {**BETAS, "beta_schedule": "scaled_linear", "prediction_type": "v_prediction"}
    oracle = getattr(diffusers, theirs)(**common, rescale_betas_zero_snr=True, timestep_spacing="trailing", **settings)
    oracle.set_timesteps(steps)
    noise = [torch.Generator().manual_seed(1) for _ in range(2)]
    scheduler = make_scheduler(name, prediction="velocity", spacing="trailing", zero_terminal_snr=True, **BETAS)
    run = scheduler.start(steps, draw_noise=lambda: normal(noise[0]))
    start = normal(torch.Generator().manual_seed(0))

    ours = start * run.noise_scale
    for step, timestep in enumerate(run.timesteps):
        ours = run.step(network(ours, timestep), ours, step)
    expected = start * oracle.init_noise_sigma
    extra = {} if theirs.startswith("UniPC") else {"generator": noise[1]}
    for timestep in oracle.timesteps:
        seen = oracle.scale_model_input(expected, timestep)
        expected = oracle.step(network(seen, float(timestep)), timestep, expected, **extra).prev_sample

    # Their Euler keeps latents of about 4096 in float32, where the last digit is 2.4e-4; the test below does not.
    tolerance = 5e-4 if "Euler" in theirs else 1e-5
    assert run.timesteps[0] == 999
    assert deviation(ours, expected) < tolerance


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
@pytest.mark.parametrize("steps", [1, 2, 5, 20, 50])
def test_a_run_of_euler_is_that_of_their_sigmas_in_float64(steps: int) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is the independent implementation")
    oracle = diffusers.EulerDiscreteScheduler(
        **BETAS, beta_schedule="scaled_linear", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    oracle.set_timesteps(steps)
    scheduler = make_scheduler("euler", prediction="velocity", spacing="trailing", zero_terminal_snr=True, **BETAS)
    run = scheduler.start(steps)
    start = normal(torch.Generator().manual_seed(0))

    ours = start * run.noise_scale
    for step, timestep in enumerate(run.timesteps):
        ours = run.step(network(ours, timestep), ours, step)
    sigmas = oracle.sigmas.double().tolist()
    expected = start.double() * sigmas[0]
    for timestep, sigma, lower in zip(oracle.timesteps.tolist(), sigmas, sigmas[1:], strict=False):
        seen = expected / math.hypot(sigma, 1)
        clean = seen / math.hypot(sigma, 1) - network(seen.float(), timestep).double() * sigma / math.hypot(sigma, 1)
        expected = clean + (expected - clean) * lower / sigma

    assert sigmas[0] == pytest.approx(4096, rel=1e-3)
    assert deviation(ours, expected.float()) < 1e-5


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_sampler_and_spacing_takes_it(name: str, spacing: str) -> None:
    generator = torch.Generator().manual_seed(1)
    scheduler = make_scheduler(name, prediction="velocity", spacing=spacing, zero_terminal_snr=True, **BETAS)
    run = scheduler.start(8, draw_noise=lambda: normal(generator))

    latents = normal(generator) * run.noise_scale
    for step, timestep in enumerate(run.timesteps):
        latents = run.step(network(latents, timestep), latents, step)

    assert latents.isfinite().all()
    assert 0.05 < float(latents.std()) < 20


def test_an_input_image_is_not_seen_at_full_strength() -> None:
    run = make_scheduler("ddim", prediction="velocity", spacing="trailing", zero_terminal_snr=True, **BETAS).start(5)
    noise = normal(torch.Generator().manual_seed(0))

    assert torch.equal(run.add_noise(torch.ones(SHAPE), noise), noise)


def test_a_network_that_predicts_the_noise_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="at the end of that schedule latents are noise alone"):
        make_scheduler("ddim", prediction="epsilon", zero_terminal_snr=True, **BETAS)

"""What every scheduler promises: its golden numbers, its errors, and runs that share nothing and wait for nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch
from torch import Tensor

from diffsynth.errors import InvalidRequest
from diffsynth.schedulers.base import Scheduler, SchedulerRun
from diffsynth.schedulers.catalog import SCHEDULERS, make_scheduler
from diffsynth.schedulers.ddim import DDIMScheduler
from diffsynth.schedulers.ddpm import DDPMScheduler
from diffsynth.schedulers.dpm_solver import DPMSolverScheduler
from diffsynth.schedulers.spacing import EndToEnd, Explicit
from diffsynth.schedulers.unipc import UniPCScheduler

SHAPE = (1, 4, 5, 3)


def scheduler(name: str, prediction: str = "velocity") -> Scheduler:
    return make_scheduler(name, beta_start=0.00085, beta_end=0.03, prediction=prediction)


def noise_source(seed: int) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(SHAPE, generator=generator)


def ask(latents: Tensor, timestep: float) -> Tensor:
    return torch.tanh(latents + timestep / 1000)


def draw(run: SchedulerRun, latents: Tensor) -> Tensor:
    for step, timestep in enumerate(run.timesteps):
        latents = run.step(ask(latents, timestep), latents, step)
    return latents


@pytest.mark.parametrize(
    ("start", "end", "of_latents", "of_velocity"),
    [(999, 946, 0.99999615, -0.00277367), (53, 0, 0.97748561, -0.21100207), (0, None, 0.99957490, -0.02915513)],
)
def test_ddim_has_the_weights_of_diffsynth(start: int, end: int | None, of_latents: float, of_velocity: float) -> None:
    timesteps = (float(start),) if end is None else (float(start), float(end))
    ddim = DDIMScheduler(beta_end=0.03, spacing=Explicit(timesteps))
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)

    from_latents = ddim.start(len(timesteps)).step(zero, one, 0)
    from_velocity = ddim.start(len(timesteps)).step(one, zero, 0)

    assert from_latents.item() == pytest.approx(of_latents, abs=1e-8)
    assert from_velocity.item() == pytest.approx(of_velocity, abs=1e-8)


def test_ddim_takes_the_published_step_for_epsilon() -> None:
    ddim = DDIMScheduler(beta_end=0.012, prediction="epsilon", spacing=Explicit((981.0, 961.0)))
    latents = torch.tensor([1.372227, 1.502131, -1.464528, -0.850476])
    epsilon = torch.tensor([0.277302, 0.868315, -1.245252, -1.030154])

    result = ddim.start(2).step(epsilon, latents, 0)

    torch.testing.assert_close(result, torch.tensor([1.506629, 1.579649, -1.490968, -0.827990]), atol=2e-6, rtol=0)


def test_diffsynth_ddim_runs_all_steps_from_a_shorter_range_and_ends_clean() -> None:
    run = scheduler("ddim_diffsynth").start(20, denoising_strength=0.7)

    assert (len(run.timesteps), run.timesteps[0], run.timesteps[-1]) == (20, 699.0, 0.0)
    assert run.levels[-1].sigma == 0.0


def test_ddpm_has_the_published_variance_and_draws_noise_at_the_last_step_too() -> None:
    ddpm = DDPMScheduler(beta_end=0.018)
    draws: list[Tensor] = []

    def draw_noise() -> Tensor:
        draws.append(torch.ones(SHAPE))
        return draws[-1]

    run = ddpm.start(50, draw_noise=draw_noise)
    nothing = torch.zeros(SHAPE, dtype=torch.float64)
    first = run.step(nothing, nothing, 0)
    for step in range(1, 50):
        last = run.step(nothing, nothing, step)

    assert first.max().item() ** 2 == pytest.approx(0.2935836, abs=1e-7)
    assert len(draws) == 50
    assert last.max().item() == pytest.approx(1e-10)


def test_dpmms_ends_at_timestep_zero_as_it_did_when_the_model_came_out_or_clean_if_asked() -> None:
    then = scheduler("dpmms").start(20)
    now = make_scheduler("dpmms", beta_start=0.00085, beta_end=0.03, prediction="velocity", final_sigma="zero").start(
        20
    )

    assert then.levels[-1].alpha ** 2 == pytest.approx(0.99915, abs=1e-6)
    assert now.levels[-1].alpha == 1.0
    assert then.timesteps == now.timesteps


@pytest.mark.parametrize(("steps", "order"), [(14, 1), (15, 2)])
def test_dpmms_falls_to_first_order_at_the_end_of_short_runs_only(steps: int, order: int) -> None:
    dpmms = DPMSolverScheduler(beta_end=0.03, final_sigma="sigma_min", prediction="sample")
    clean_then = torch.full((1,), 5.0)
    run = dpmms.start(steps)

    latents = torch.zeros(1)
    for step in range(steps):
        before, latents = latents, run.step(clean_then * (step == steps - 2), latents, step)

    # The last prediction is 0, so anything but the scaled latents stems from the one before it.
    scaled = before * (run.levels[-1].sigma / run.levels[-2].sigma)
    assert torch.allclose(latents, scaled) == (order == 1)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_perfect_network_leads_back_to_the_clean_latents(name: str) -> None:
    """If the velocity always points to one image, any solver must arrive there."""
    clean = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
    run = scheduler(name).start(12, draw_noise=noise_source(1))
    latents = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))

    for step, level in enumerate(run.levels[:-1]):
        latents = run.step((level.alpha * latents - clean) / level.sigma, latents, step)

    rest = run.levels[-1].sigma
    torch.testing.assert_close(latents, clean, atol=1e-4 + 5 * rest, rtol=0)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 20, 999])
def test_every_run_stays_finite_and_keeps_its_shape(name: str, steps: int) -> None:
    run = scheduler(name).start(steps, draw_noise=noise_source(1))

    result = draw(run, torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)))

    assert result.shape == SHAPE
    assert result.dtype == torch.float32
    assert result.isfinite().all()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_interleaved_runs_equal_separate_ones(name: str) -> None:
    description = scheduler(name)
    starts = [torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)) for seed in (10, 11)]
    separate = [draw(description.start(9, draw_noise=noise_source(seed)), starts[seed]) for seed in (0, 1)]

    runs = [description.start(9, draw_noise=noise_source(seed)) for seed in (0, 1)]
    latents = list(starts)
    for step, timestep in enumerate(runs[0].timesteps):
        for image in (0, 1):
            latents[image] = runs[image].step(ask(latents[image], timestep), latents[image], step)

    assert all(torch.equal(ours, theirs) for ours, theirs in zip(latents, separate, strict=True))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_step_changes_neither_latents_nor_prediction(name: str) -> None:
    run = scheduler(name).start(5, draw_noise=noise_source(1))
    latents = torch.ones(SHAPE)

    for step in range(5):
        prediction = torch.full(SHAPE, 0.5)
        kept = latents.clone()
        result = run.step(prediction, latents, step)
        assert torch.equal(latents, kept)
        assert torch.equal(prediction, torch.full(SHAPE, 0.5))
        latents = result


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_predictions_are_widened_first(dtype: torch.dtype) -> None:
    latents, prediction = torch.randn(SHAPE), torch.randn(SHAPE).to(dtype)

    narrow = scheduler("unipc").start(4).step(prediction, latents, 0)
    wide = scheduler("unipc").start(4).step(prediction.float(), latents, 0)

    assert narrow.dtype == torch.float32
    assert torch.equal(narrow, wide)


def test_half_precision_latents_are_refused() -> None:
    run = scheduler("ddim").start(4)

    with pytest.raises(ValueError, match=r"latents are torch.float16; .* float32"):
        run.step(torch.zeros(SHAPE), torch.zeros(SHAPE, dtype=torch.float16), 0)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_run_never_waits_for_a_value_from_the_device(name: str) -> None:
    """Tensors on the meta device have no values, and reading one raises."""
    clean = torch.ones(SHAPE, device="meta")
    with pytest.raises(RuntimeError):
        clean.max().item()

    run = scheduler(name).start(6, draw_noise=noise_source(1))
    result = draw(run, run.add_noise(clean, torch.ones(SHAPE)))

    assert result.device.type == "meta"


def test_noise_of_another_dtype_is_brought_to_that_of_the_latents() -> None:
    run = scheduler("ddpm").start(3, draw_noise=lambda: torch.ones(SHAPE, dtype=torch.float64))

    assert run.step(torch.zeros(SHAPE), torch.zeros(SHAPE), 0).dtype == torch.float32
    assert run.add_noise(torch.zeros(SHAPE), torch.zeros(SHAPE, dtype=torch.float64)).dtype == torch.float32


@pytest.mark.parametrize("name", SCHEDULERS)
def test_noise_is_added_to_the_level_of_the_first_timestep(name: str) -> None:
    run = scheduler(name).start(10, denoising_strength=0.5, draw_noise=noise_source(1))
    alpha_bar = scheduler(name).noise_schedule.level(run.timesteps[0]).alpha ** 2
    clean, noise = torch.full(SHAPE, 2.0), torch.full(SHAPE, -1.0)

    noisy = run.add_noise(clean, noise)

    torch.testing.assert_close(noisy, torch.full(SHAPE, 2 * math.sqrt(alpha_bar) - math.sqrt(1 - alpha_bar)))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_only_stochastic_runs_draw_noise_and_they_insist_on_a_source(name: str) -> None:
    if name in ("ddpm", "dpm++2m_sde", "euler_a"):
        assert scheduler(name).start(3, draw_noise=noise_source(1)).stochastic
        with pytest.raises(ValueError, match="needs draw_noise"):
            scheduler(name).start(3)
    else:
        assert not scheduler(name).start(3).stochastic


def test_steps_out_of_order_are_refused() -> None:
    run = scheduler("unipc").start(2)
    zeros = torch.zeros(SHAPE)

    with pytest.raises(ValueError, match="step 1 of 2 was taken when step 0 was due"):
        run.step(zeros, zeros, 1)
    run.step(zeros, zeros, 0)
    run.step(zeros, zeros, 1)
    with pytest.raises(ValueError, match="step 2 of 2"):
        run.step(zeros, zeros, 2)


@pytest.mark.parametrize("steps", [0, -1, 1001, True, 2.5, "20", None])
def test_a_number_of_steps_out_of_range_is_refused(steps: Any) -> None:
    with pytest.raises(InvalidRequest, match="num_inference_steps"):
        scheduler("ddim").start(steps)


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.01, math.nan, math.inf])
@pytest.mark.parametrize("name", ["ddim_diffsynth", "unipc"])
def test_a_denoising_strength_out_of_range_is_refused(name: str, strength: float) -> None:
    with pytest.raises(InvalidRequest, match=r"denoising_strength is .*; it must be above 0 and at most 1"):
        scheduler(name).start(20, denoising_strength=strength)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DDIMScheduler(beta_end=0.03, eta=1.5), "eta is 1.5"),
        (lambda: DPMSolverScheduler(beta_end=0.03, order=4), "order is 4"),
        (lambda: DPMSolverScheduler(beta_end=0.03, order=3, stochastic=True), "stochastic solver has order 1 or 2"),
        (lambda: DPMSolverScheduler(beta_end=0.03, stochastic=True, integration="exact"), "stochastic solver"),
        (lambda: DPMSolverScheduler(beta_end=0.03, integration="simpson"), "unknown integration 'simpson'"),  # type: ignore[arg-type]
        (lambda: UniPCScheduler(beta_end=0.03, order=0), "order is 0"),
        (lambda: UniPCScheduler(beta_end=3.0), "0 < start <= end < 1"),
    ],
)
def test_impossible_settings_are_refused_when_the_scheduler_is_made(
    make: Callable[[], Scheduler], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        make()


def test_a_scheduler_is_immutable_and_equal_to_another_of_the_same_settings() -> None:
    one, two = scheduler("unipc"), scheduler("unipc")

    assert one == two
    assert hash(one) == hash(two)
    assert one != scheduler("ddim")
    with pytest.raises(FrozenInstanceError):
        one.beta_end = 0.02  # type: ignore[misc]


def test_a_last_step_between_equal_levels_leaves_the_latents_alone() -> None:
    latents = torch.randn(SHAPE)

    for kind in (DPMSolverScheduler, UniPCScheduler, DDIMScheduler):
        run = kind(beta_end=0.03, final_sigma="sigma_min", spacing=EndToEnd()).start(1, denoising_strength=0.001)
        torch.testing.assert_close(run.step(torch.randn(SHAPE), latents, 0), latents)
    sde = DPMSolverScheduler(beta_end=0.03, final_sigma="sigma_min", spacing=EndToEnd(), stochastic=True)
    run = sde.start(1, denoising_strength=0.001, draw_noise=noise_source(1))
    torch.testing.assert_close(run.step(torch.randn(SHAPE), latents, 0), latents)

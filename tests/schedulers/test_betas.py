from __future__ import annotations

import math

import pytest
import torch

from diffsynth.errors import InvalidRequest
from diffsynth.schedulers.betas import CLEAN, NoiseSchedule, noise_schedule

ALPHA_BARS = {  # beta_end → timestep → alpha-bar of the published schedules
    0.018: {1: 0.99829453, 20: 0.98100513, 500: 0.19037585, 981: 6.7001523e-4, 999: 4.8527837e-4},
    0.02: {1: 0.99829412, 20: 0.98091328, 500: 0.16890644, 981: 3.2925888e-4, 999: 2.3001258e-4},
    0.03: {1: 0.99829227, 20: 0.98050791, 500: 0.09486447, 981: 9.7376e-6, 999: 5.6722e-6},
    0.012: {0: 0.999149978, 1: 0.998296022, 500: 0.276332468, 981: 0.005775496, 999: 0.004660095},
}


@pytest.mark.parametrize("beta_end", ALPHA_BARS)
def test_alpha_bars_are_those_of_the_published_schedules(beta_end: float) -> None:
    alpha_bars = noise_schedule(0.00085, beta_end).alpha_bars

    for timestep, expected in ALPHA_BARS[beta_end].items():
        assert alpha_bars[timestep] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["scaled_linear", "linear"])
@pytest.mark.parametrize("beta_end", [0.012, 0.02, 0.03])
def test_alpha_bars_equal_those_of_diffusers_to_the_last_bit(kind: str, beta_end: float) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is the independent implementation")
    oracle = diffusers.DDIMScheduler(beta_start=0.00085, beta_end=beta_end, beta_schedule=kind)

    ours = noise_schedule(0.00085, beta_end, "linear" if kind == "linear" else "scaled_linear")

    assert list(ours.alpha_bars) == oracle.alphas_cumprod.tolist()


def test_a_level_keeps_the_variance_of_the_latents() -> None:
    schedule = noise_schedule(0.00085, 0.03)

    for timestep in (0, 0.5, 1, 333.3, 998.75, 999):
        level = schedule.level(timestep)
        assert level.alpha**2 + level.sigma**2 == pytest.approx(1.0, abs=1e-12)
        assert level.log_snr == pytest.approx(-math.log(level.noise_ratio))


def test_a_fractional_level_lies_between_its_neighbours_and_leads_back_to_its_timestep() -> None:
    schedule = noise_schedule(0.00085, 0.018)

    level = schedule.level(420.25)

    below, above = schedule.level(420).log_snr, schedule.level(421).log_snr
    assert level.log_snr == pytest.approx(0.75 * below + 0.25 * above, abs=1e-12)
    assert schedule.timestep(level.noise_ratio) == pytest.approx(420.25, abs=1e-9)


def test_the_clean_end_is_infinitely_far_in_log_snr() -> None:
    assert math.isinf(CLEAN.log_snr)


@pytest.mark.parametrize("timestep", [-1, 999.5, 1000, math.nan])
def test_a_timestep_outside_training_is_refused(timestep: float) -> None:
    with pytest.raises(ValueError, match="outside 0 to 999"):
        noise_schedule(0.00085, 0.03).level(timestep)


@pytest.mark.parametrize("betas", [(0.0, 0.02), (0.02, 0.01), (0.1, 1.0), (math.nan, 0.02), (0.01, math.nan)])
def test_betas_out_of_range_are_refused(betas: tuple[float, float]) -> None:
    with pytest.raises(InvalidRequest, match="0 < start <= end < 1"):
        noise_schedule(*betas)


@pytest.mark.parametrize("alpha_bars", [(0.5, 0.5), (1.0, 0.5), (0.5, -0.1), (0.5, 0.0, 0.0), (0.9, math.nan)])
def test_alpha_bars_must_fall_from_one_to_zero(alpha_bars: tuple[float, ...]) -> None:
    with pytest.raises(InvalidRequest, match="fall strictly"):
        NoiseSchedule(alpha_bars)


def test_betas_that_vanish_in_float32_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="fall strictly"):
        noise_schedule(1e-12, 1e-10)


def test_a_default_device_of_the_caller_does_not_move_the_schedule() -> None:
    with torch.device("meta"):
        schedule = noise_schedule(0.00085, 0.0123)

    assert 0.0 < schedule.alpha_bars[-1] < schedule.alpha_bars[0] < 1.0

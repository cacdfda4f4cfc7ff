"""Targets and weights against plain formulas."""

from __future__ import annotations

import math

import pytest
import torch

from diffsynth.schedulers.betas import noise_schedule
from diffsynth.training.objective import Levels, Objective, Prediction, add_noise, min_snr_weight, separate, target

KINDS: tuple[Prediction, ...] = ("velocity", "epsilon", "flow")


def example(kind: Prediction) -> tuple[torch.Tensor, torch.Tensor, Levels]:
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(3, 2, 4, 5, generator=generator) for _ in range(2))
    return clean, noise, Objective(prediction=kind).at(torch.tensor([0.1, 0.5, 0.9]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_answer_gives_back_picture_and_noise(kind: Prediction) -> None:
    clean, noise, levels = example(kind)

    found = separate(kind, target(kind, clean, noise, levels), add_noise(clean, noise, levels), levels)

    assert torch.allclose(found[0], clean, atol=1e-5)
    assert torch.allclose(found[1], noise, atol=1e-5)


def test_velocity_and_noise_follow_the_schedule_of_the_pipeline() -> None:
    clean, noise, levels = example("velocity")
    level = noise_schedule(0.00085, 0.018).level(500)

    assert levels.timestep.tolist() == [100, 500, 900]
    assert torch.allclose(add_noise(clean, noise, levels)[1], level.alpha * clean[1] + level.sigma * noise[1])
    assert torch.allclose(
        target("velocity", clean, noise, levels)[1], level.alpha * noise[1] - level.sigma * clean[1], atol=1e-6
    )
    assert torch.equal(target("epsilon", clean, noise, levels), noise)


def test_a_flow_is_the_straight_line_from_picture_to_noise() -> None:
    clean, noise, levels = example("flow")

    assert torch.allclose(add_noise(clean, noise, levels)[0], 0.9 * clean[0] + 0.1 * noise[0])
    assert torch.allclose(target("flow", clean, noise, levels), noise - clean)
    assert torch.allclose(levels.timestep, torch.tensor([100.0, 500.0, 900.0]))


@pytest.mark.parametrize("snr", [0.01, 1.0, 4.9, 5.1, 400.0])
def test_weights_are_those_of_the_min_snr_paper(snr: float) -> None:
    alpha, sigma = math.sqrt(snr / (1 + snr)), math.sqrt(1 / (1 + snr))
    levels = (torch.tensor([alpha]), torch.tensor([sigma]))

    assert min_snr_weight("epsilon", *levels, 5.0).item() == pytest.approx(min(snr, 5) / snr, rel=1e-4)
    assert min_snr_weight("velocity", *levels, 5.0).item() == pytest.approx(min(snr, 5) / (snr + 1), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_weighted_errors_are_errors_of_the_picture(kind: Prediction) -> None:
    clean, noise, levels = example(kind)
    noisy, said = add_noise(clean, noise, levels), target(kind, clean, noise, levels) + 0.01
    snr = (levels.alpha / levels.sigma).square()

    weighted = min_snr_weight(kind, levels.alpha, levels.sigma, 5.0) * 0.01**2

    error = (separate(kind, said, noisy, levels)[0] - clean).square().mean(dim=(1, 2, 3))
    assert torch.allclose(weighted, snr.clamp(max=5) * error, rtol=1e-2)


def test_a_clean_level_has_a_finite_weight() -> None:
    levels = Objective(prediction="flow", min_snr=5.0).at(torch.tensor([0.0, 1.0]))

    assert Objective(prediction="flow", min_snr=5.0).weight(levels).tolist() == [0.0, 0.0]


def test_without_a_limit_all_levels_weigh_the_same() -> None:
    objective = Objective()

    assert objective.weight(objective.at(torch.tensor([0.0, 0.5]))).tolist() == [1.0, 1.0]


def test_timesteps_are_drawn_evenly_or_more_often_in_the_middle() -> None:
    generator = torch.Generator().manual_seed(0)

    even = Objective().draw(4000, generator).timestep
    middle = Objective(timesteps="logit_normal").draw(4000, generator).timestep

    assert (int(even.min()), int(even.max())) == (0, 999)
    assert even.mean().item() == pytest.approx(500, abs=20)
    assert ((even > 250) & (even < 750)).float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert ((middle > 250) & (middle < 750)).float().mean().item() == pytest.approx(0.73, abs=0.03)

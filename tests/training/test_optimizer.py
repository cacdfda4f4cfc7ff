"""Learning rates, groups, the moving average, and clipping, against plain formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from diffsynth.training.config import OptimizerConfig, ScheduleConfig
from diffsynth.training.optimizer import MovingAverage, clip, make_optimizer, named_weights, rate_factor, set_rate


def rates(**settings: Any) -> list[float]:
    config = ScheduleConfig(steps=10, **settings)
    return [rate_factor(config, step) for step in range(12)]


def test_the_rate_rises_over_the_warm_up_and_stays() -> None:
    assert rates(warmup=4, decay="constant") == [0.25, 0.5, 0.75, 1.0] + [1.0] * 8


def test_a_cosine_falls_to_its_end_and_stays_there() -> None:
    found = rates(warmup=2, decay="cosine", final_rate=0.1)

    expected = [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - 2) / 8)) for step in range(2, 11)]
    assert found == pytest.approx([0.5, 1.0, *expected, 0.1])


def test_a_step_schedule_multiplies_at_its_milestones() -> None:
    assert rates(decay="step", milestones=(3, 6), factor=0.5) == [1.0] * 3 + [0.5] * 3 + [0.25] * 6


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 3)
        self.linear = nn.Linear(3, 3)
        self.norm = nn.LayerNorm(3)
        self.frozen = nn.Linear(2, 2).requires_grad_(requires_grad=False)


def test_only_matrices_decay_and_networks_have_rates_of_their_own() -> None:
    networks = {"first": Mixed(), "second": nn.Linear(2, 2)}

    optimizer = make_optimizer(OptimizerConfig(weight_decay=0.1), networks, {"second": 0.5})
    set_rate(optimizer, 0.01)

    decays = {id(weight): group["weight_decay"] for group in optimizer.param_groups for weight in group["params"]}
    first = networks["first"]
    assert {name for name, weight in first.named_parameters() if decays.get(id(weight))} == {"linear.weight"}
    assert len(decays) == len(named_weights(networks)) == 7
    rate_of = {id(weight): group["lr"] for group in optimizer.param_groups for weight in group["params"]}
    assert rate_of[id(networks["second"].weight)] == pytest.approx(0.005)
    assert rate_of[id(networks["first"].linear.weight)] == pytest.approx(0.01)  # type: ignore[union-attr]


def test_the_moving_average_is_the_plain_formula() -> None:
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    average, expected = MovingAverage({"weight": weight}, 0.9), weight.detach().clone()

    for step in range(30):
        with torch.no_grad():
            weight.add_(1)
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight.detach()

    assert torch.allclose(average.average["weight"], expected)
    assert average.decay(100) == 0.9


def test_weights_and_average_change_places_and_back_bit_for_bit() -> None:
    weight = nn.Parameter(torch.randn(5))
    average = MovingAverage({"weight": weight}, 0.5)
    with torch.no_grad():
        weight.add_(0.1)
    before, mean = weight.detach().clone(), average.average["weight"].clone()

    average.swap()
    swapped = weight.detach().clone()
    average.swap()

    assert torch.equal(swapped, mean)
    assert torch.equal(weight, before)


def test_a_gradient_is_shortened_to_the_limit_over_all_weights() -> None:
    weights = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    weights[0].grad, weights[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])

    lengths = [clip(weights, longest).item() for longest in (0.0, 1.0, 2.0)]

    assert lengths == pytest.approx([5.0, 5.0, 1.0])
    assert weights[0].grad.tolist() == pytest.approx([0.6, 0.0])

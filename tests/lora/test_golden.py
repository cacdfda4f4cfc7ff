"""Changes of layers against numbers that were computed elsewhere, from the formula in ``golden.py``."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from diffsynth.lora.layers import Addition, Change, Strength
from tests.models import golden


def values(shape: tuple[int, ...], stream: int) -> Tensor:
    return golden.values(shape, stream, scale=1.7)


@pytest.mark.parametrize(
    ("layer", "up", "down", "factor", "expected"),
    [
        (nn.Linear(7, 5), values((5, 2), 4000), values((2, 7), 4001), 0.5, (-0.238937, 0.509553, -0.168282)),
        (
            nn.Conv2d(4, 6, 3),
            values((6, 2, 1, 1), 4002),
            values((2, 4, 3, 3), 4003),
            1.0,
            (-0.310347, -0.923634, -1.361545),
        ),
    ],
    ids=["linear, alpha 1 of rank 2", "convolution"],
)
@torch.no_grad()
def test_a_change_has_the_golden_numbers(
    layer: nn.Linear | nn.Conv2d, up: Tensor, down: Tensor, factor: float, expected: tuple[float, ...]
) -> None:
    nn.init.zeros_(layer.weight)
    addition = Addition(Strength(1.0), [Change(0, up.flatten(1), down.flatten(1), factor)])

    merged = addition.merged(layer)

    torch.testing.assert_close(merged.flatten()[:3], torch.tensor(expected), atol=1e-6, rtol=0.0)
    sample = torch.ones(1, 4, 5, 5) if isinstance(layer, nn.Conv2d) else torch.ones(1, 7)
    plain = layer(sample)
    attached = addition(layer, (sample,), plain.clone())
    layer.weight.copy_(merged)
    torch.testing.assert_close(attached, layer(sample), atol=1e-5, rtol=1e-5)

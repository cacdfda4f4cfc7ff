from __future__ import annotations

import pytest
import torch
from torch import nn

from diffsynth.nn.norm import LayerNormFloat32


def test_in_float32_it_is_the_plain_norm() -> None:
    norm, plain = LayerNormFloat32(12, eps=1e-6), nn.LayerNorm(12, eps=1e-6)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    plain.load_state_dict(norm.state_dict())
    values = torch.randn(2, 5, 12)

    assert torch.equal(norm(values), plain(values))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_rounded_once_at_the_end(dtype: torch.dtype) -> None:
    norm = LayerNormFloat32(12).to(dtype)
    values = (torch.randn(2, 5, 12).clamp(-3, 3) * 20000).to(dtype)  # squares overflow float16

    result = norm(values)

    expected = nn.functional.layer_norm(values.float(), (12,)).to(dtype)
    assert torch.equal(result, expected)


def test_it_may_have_no_weights() -> None:
    norm = LayerNormFloat32(12, elementwise_affine=False)

    assert norm(torch.randn(3, 12)).std(unbiased=False) == pytest.approx(1, abs=1e-3)
    assert not norm.state_dict()

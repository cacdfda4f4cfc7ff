from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from diffsynth.nn.activation import GELUTanh, SiLUFloat32, silu_float32


def test_silu_is_computed_in_float32_and_rounded_once() -> None:
    values = torch.linspace(-20, 20, 101).half()

    result = SiLUFloat32()(values)

    expected = values.float() * torch.sigmoid(values.float())
    assert result.dtype == torch.float16
    torch.testing.assert_close(result, expected.half(), atol=1e-7, rtol=2**-10)
    assert torch.equal(silu_float32(values), result)


def test_gelu_without_a_gradient_is_that_of_torch_to_the_last_digits() -> None:
    values = torch.cat((torch.linspace(-12, 12, 10_001), torch.tensor([-1e30, -200.0, 0.0, 200.0, 1e30])))
    before = values.clone()

    with torch.no_grad():
        result = GELUTanh()(values)

    exact = F.gelu(values.double(), approximate="tanh")
    torch.testing.assert_close(result.double(), exact, atol=3e-7, rtol=3e-7)
    assert torch.equal(values, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_gelu_in_other_precisions_is_torchs(dtype: torch.dtype) -> None:
    values = torch.linspace(-12, 12, 1001, dtype=dtype)

    with torch.no_grad():
        assert torch.equal(GELUTanh()(values), F.gelu(values, approximate="tanh"))


def test_gelu_with_a_gradient_is_torchs() -> None:
    values = torch.linspace(-5, 5, 101, requires_grad=True)

    (found,) = torch.autograd.grad(GELUTanh()(values).sum(), values)

    (expected,) = torch.autograd.grad(F.gelu(values, approximate="tanh").sum(), values)
    assert torch.equal(found, expected)

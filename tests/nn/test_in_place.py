from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diffsynth.nn.in_place import PIECE, add, gelu_tanh, silu

STEPS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": silu,
    "gelu": gelu_tanh,
    "add": lambda fresh: add(fresh, torch.ones(3)),
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_a_tensor_is_overwritten_only_where_no_gradient_is_recorded(step: Callable[[Tensor], Tensor]) -> None:
    values = torch.tensor([[-1.0, 0.0, 2.0]])
    kept, fresh = values.clone(), values.clone()

    with_gradient = step(kept)
    with torch.no_grad():
        without = step(fresh)

    assert torch.equal(kept, values)
    assert without.data_ptr() == fresh.data_ptr()
    torch.testing.assert_close(with_gradient, without)
    assert not torch.equal(without, values)


def test_gelu_without_a_gradient_is_the_exact_one_to_the_last_digits() -> None:
    """Over several pieces, the last one smaller, and far outside of what a network gives."""
    values = torch.cat((torch.linspace(-12, 12, 2 * PIECE), torch.tensor([-1e30, -200.0, 0.0, 200.0, 1e30])))

    with torch.no_grad():
        result = gelu_tanh(values.clone())

    exact = F.gelu(values.double(), approximate="tanh")
    torch.testing.assert_close(result.double(), exact, atol=3e-7, rtol=3e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_gelu_in_other_precisions_is_torchs(dtype: torch.dtype) -> None:
    values = torch.linspace(-12, 12, 1001, dtype=dtype)

    with torch.no_grad():
        assert torch.equal(gelu_tanh(values), F.gelu(values, approximate="tanh"))


def test_gelu_of_values_that_do_not_lie_together_is_torchs() -> None:
    values = torch.linspace(-5, 5, 60).view(6, 10).T

    with torch.no_grad():
        assert torch.equal(gelu_tanh(values), F.gelu(values, approximate="tanh"))


def test_gelu_with_a_gradient_is_torchs() -> None:
    values = torch.linspace(-5, 5, 101, requires_grad=True)

    (found,) = torch.autograd.grad(gelu_tanh(values).sum(), values)

    (expected,) = torch.autograd.grad(F.gelu(values, approximate="tanh").sum(), values)
    assert torch.equal(found, expected)

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from diffsynth.nn.in_place import add, silu

STEPS: dict[str, Callable[[Tensor], Tensor]] = {"silu": silu, "add": lambda fresh: add(fresh, torch.ones(3))}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_a_tensor_is_overwritten_only_where_no_gradient_is_recorded(step: Callable[[Tensor], Tensor]) -> None:
    values = torch.tensor([[-1.0, 0.0, 2.0]])
    kept, fresh = values.clone(), values.clone()

    with_gradient = step(kept)
    with torch.no_grad():
        without = step(fresh)

    assert torch.equal(kept, values)
    assert without.data_ptr() == fresh.data_ptr()
    assert torch.equal(with_gradient, without)
    assert not torch.equal(without, values)

from __future__ import annotations

import torch

from diffsynth.nn.activation import SiLUFloat32, silu_float32


def test_silu_is_computed_in_float32_and_rounded_once() -> None:
    values = torch.linspace(-20, 20, 101).half()

    result = SiLUFloat32()(values)

    expected = values.float() * torch.sigmoid(values.float())
    assert result.dtype == torch.float16
    torch.testing.assert_close(result, expected.half(), atol=1e-7, rtol=2**-10)
    assert torch.equal(silu_float32(values), result)

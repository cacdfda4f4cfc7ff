"""Doubling an image's sides: the way that drawing takes against the plain one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from diffsynth.nn.resnet import Upsample, channels_together

LAYOUTS = {"channels first": torch.contiguous_format, "channels last": torch.channels_last}


def layer(channels: int = 5) -> Upsample:
    torch.manual_seed(0)
    return Upsample(channels).requires_grad_(False)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)], ids=["32", "64"])
@pytest.mark.parametrize("size", [(1, 2), (3, 4), (6, 5)], ids=["1x2", "3x4", "6x5"])
def test_four_small_convolutions_are_the_large_one(
    size: tuple[int, int], dtype: torch.dtype, tolerance: float, layout: torch.memory_format
) -> None:
    upsample = layer().to(dtype)
    images = torch.randn(2, 5, *size, dtype=dtype).contiguous(memory_format=layout)
    before = images.clone()

    with torch.no_grad():
        doubled = upsample(images)

    expected = upsample.conv(F.interpolate(images, scale_factor=2.0, mode="nearest"))
    torch.testing.assert_close(doubled, expected, atol=tolerance, rtol=tolerance)
    assert doubled.is_contiguous(memory_format=layout)
    assert torch.equal(images, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision_they_are_as_near_to_the_truth(dtype: torch.dtype) -> None:
    upsample, images = layer(16), torch.randn(1, 16, 8, 8)
    exact = upsample(images)
    half, rounded = layer(16).to(dtype), images.to(dtype)

    with torch.no_grad():
        found = half(rounded)

    plain = half.conv(F.interpolate(rounded, scale_factor=2.0, mode="nearest"))
    assert found.dtype == dtype
    assert (found - exact).abs().max() < 2 * (plain - exact).abs().max()


def test_a_hook_on_the_convolution_is_heard() -> None:
    """A LoRA adds what it makes of the layer's own input."""
    upsample, images = layer(), torch.randn(1, 5, 3, 4)
    upsample.conv.register_forward_hook(lambda _, inputs, output: output + inputs[0])

    with torch.no_grad():
        found = upsample(images)

    repeated = F.interpolate(images, scale_factor=2.0, mode="nearest")
    bias = upsample.conv.bias
    expected = F.conv2d(repeated, upsample.conv.weight, bias, padding=1) + repeated
    torch.testing.assert_close(found, expected)


def test_a_gradient_reaches_kernel_and_image() -> None:
    upsample = layer().requires_grad_(True)
    images = torch.randn(1, 5, 3, 3, requires_grad=True)

    torch.autograd.backward(upsample(images).square().sum())

    assert images.grad is not None
    assert all(weight.grad is not None for weight in upsample.parameters())


def test_a_size_that_is_not_the_double_is_reached() -> None:
    with torch.no_grad():
        assert layer()(torch.randn(1, 5, 3, 4), size=(5, 8)).shape == (1, 5, 5, 8)


def test_a_cpu_that_draws_has_all_channels_of_a_pixel_together() -> None:
    images = torch.randn(2, 3, 4, 5)

    with torch.no_grad():
        laid_out, elsewhere = channels_together(images), channels_together(images.to("meta"))

    assert torch.equal(laid_out, images)
    assert laid_out.is_contiguous(memory_format=torch.channels_last)
    assert elsewhere.is_contiguous()
    assert channels_together(images) is images

"""Convolutional building blocks of the autoencoder and the UNets: residual block, down- and upsampling."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffsynth.nn.in_place import add, silu

# What a row of a 3x3 kernel sees of an image whose pixels are repeated: for an even and an odd place, the row's
# weight on each of the two source pixels in reach. Two of three fall on the same one.
HALVES = ((1.0, 0.0, 0.0), (0.0, 1.0, 1.0), (1.0, 1.0, 0.0), (0.0, 0.0, 1.0))


def channels_together(images: Tensor) -> Tensor:
    """Return images as convolutions want them in memory: on a CPU, all channels of a pixel beside one another.

    Norms and convolutions keep what they are given. Where a gradient is recorded, nothing is changed.
    """
    wanted = images.device.type == "cpu" and not torch.is_grad_enabled()
    return images.contiguous(memory_format=torch.channels_last) if wanted else images


class ResnetBlock(nn.Module):
    """Norm, SiLU, conv, twice, around a shortcut; the shortcut is a 1x1 conv where the width changes.

    Args:
        in_channels: width of the input.
        out_channels: width of the output.
        groups: groups of both GroupNorms; divides both widths.
        eps: added to the variance by both GroupNorms.
        time_size: width of a time embedding added between the convolutions; None for a block without one.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, groups: int = 32, eps: float = 1e-6, time_size: int | None = None
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = None if time_size is None else nn.Linear(time_size, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = None if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, images: Tensor, time_embedding: Tensor | None = None) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W).

        Args:
            images: (B, in_channels, H, W).
            time_embedding: (B, time_size); given exactly when the block was made with a ``time_size``.
        """
        if (time_embedding is None) != (self.time_emb_proj is None):
            raise ValueError("time_embedding must be given to a block made with a time_size, and to no other")
        hidden: Tensor = self.conv1(silu(self.norm1(images)))
        if self.time_emb_proj is not None and time_embedding is not None:
            hidden = add(hidden, self.time_emb_proj(F.silu(time_embedding))[:, :, None, None])
        hidden = self.conv2(silu(self.norm2(hidden)))
        return add(hidden, images if self.conv_shortcut is None else self.conv_shortcut(images))


class Downsample(nn.Module):
    """Halve height and width with a 3x3 convolution of stride 2.

    Args:
        channels: width of input and output.
        centred: True pads every side by one, as UNets do; False pads right and bottom only, as the autoencoder does.
    """

    def __init__(self, channels: int, *, centred: bool) -> None:
        super().__init__()
        self.centred = centred
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1 if centred else 0)

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H/2, W/2); an odd side is rounded up when centred, else down."""
        halved: Tensor = self.conv(images if self.centred else F.pad(images, (0, 1, 0, 1)))
        return halved


class Upsample(nn.Module):
    """Double height and width by repeating pixels, then smooth with a 3x3 convolution.

    Args:
        channels: width of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, images: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Map (B, C, H, W) to (B, C, 2H, 2W), or to the (height, width) given as ``size``."""
        plain = torch.is_grad_enabled() or self.conv._forward_hooks  # a hook, as a LoRA's, sees what the layer sees
        if size is None and not plain:
            return double_and_smooth(images, self.conv.weight, self.conv.bias)
        target = size or (2 * images.shape[-2], 2 * images.shape[-1])
        doubled: Tensor = self.conv(F.interpolate(images, size=target, mode="nearest"))
        return doubled


def double_and_smooth(images: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """Repeat every pixel twice along both sides, then convolve, without the repeated pixels ever being there.

    The places (even or odd row, even or odd column) are convolutions of the source with 2x2 kernels, whose weights are
    sums of the 3x3 ones: 16 products in place of 36, and less memory. Rounding differs from doing one after the other.

    Args:
        images: (B, C, H, W).
        kernel: (O, C, 3, 3).
        bias: (O,).

    Returns:
        (B, O, 2H, 2W), in the memory layout of ``images``.
    """
    height, width = images.shape[-2:]
    layout = torch.contiguous_format if images.is_contiguous() else torch.channels_last
    halves = torch.tensor(HALVES, dtype=kernel.dtype, device=kernel.device)
    sums = kernel.flatten(2) @ torch.kron(halves, halves).T
    parts = torch.unflatten(sums, 2, (2, 2, 2, 2))  # (O, C, row, its taps, column, its taps)
    doubled = torch.empty(
        (len(images), len(kernel), 2 * height, 2 * width),
        dtype=images.dtype, device=images.device, memory_format=layout,
    )  # fmt: skip
    for row in (0, 1):
        for column in (0, 1):
            part = parts[:, :, row, :, column].contiguous(memory_format=layout)
            found = F.conv2d(images, part, bias, padding=1)  # (B, O, H + 1, W + 1)
            doubled[..., row::2, column::2] = found[..., row : row + height, column : column + width]
    return doubled

"""The autoencoder between pixels and latents (arXiv 2112.10752), named as in files of the Diffusers layout."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffsynth.models.autoencoder_kl.config import AutoencoderKLConfig
from diffsynth.nn.in_place import silu
from diffsynth.nn.resnet import Downsample, ResnetBlock, Upsample, channels_together

NORM_EPS = 1e-6
LOGITS_AT_ONCE = 2**28  # in the attention, where the device's attention writes them out: all of an image of 1024 x 1024


@dataclass(frozen=True)
class Posterior:
    """What an image may be encoded as: a normal distribution for each latent value.

    Args:
        mean: (B, latent_channels, H/downscale, W/downscale), unscaled.
        std: the same shape, the standard deviations.
    """

    mean: Tensor
    std: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Return mean + std * noise; ``noise`` is N(0, 1) in the shape of ``mean``."""
        return self.mean + self.std * noise.to(self.mean)


class AutoencoderKL(nn.Module):
    """Convolutional autoencoder whose encoder predicts mean and variance of the latents.

    Latents are unscaled here: the factor that brings them to unit variance is no part of the
    network, and a pipeline multiplies and divides by it. Inputs are cast to the weights' dtype.
    """

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)

    def encode(self, pixels: Tensor) -> Posterior:
        """Encode an image.

        Args:
            pixels: (B, in_channels, H, W) in [-1, 1]; H and W are multiples of ``config.downscale``.

        Returns:
            The distribution of unscaled latents, each part (B, latent_channels, H/downscale, W/downscale).

        Raises:
            ValueError: if height or width is no multiple of ``config.downscale``.
        """
        self.config.latent_size(pixels.shape[-2], pixels.shape[-1])  # raises if a rim would be lost
        moments: Tensor = self.quant_conv(self.encoder(pixels.to(self.quant_conv.weight.dtype)))
        mean, log_variance = moments.contiguous().chunk(2, dim=1)
        return Posterior(mean, torch.exp(0.5 * log_variance.clamp(-30.0, 20.0)))

    def decode(self, latents: Tensor, *, norm_out_eps: float = NORM_EPS) -> Tensor:
        """Decode latents to an image.

        Args:
            latents: (B, latent_channels, H, W), unscaled.
            norm_out_eps: eps of the last GroupNorm alone. Files are trained with the default; 1e-5
                reproduces programs that use that value there.

        Returns:
            (B, in_channels, H * downscale, W * downscale), about [-1, 1], not clipped.
        """
        hidden: Tensor = self.post_quant_conv(latents.to(self.post_quant_conv.weight.dtype))
        pixels: Tensor = self.decoder(hidden, norm_out_eps)
        return pixels.contiguous()

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode an image and decode the mean: (B, in_channels, H, W) in [-1, 1] to the same."""
        return self.decode(self.encode(pixels).mean)


class Encoder(nn.Module):
    """Pixels (B, in_channels, H, W) to moments (B, 2 * latent_channels, H/downscale, W/downscale)."""

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        widths, groups = config.channels, config.norm_groups
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownBlock(widths[max(level - 1, 0)], width, config, last=level == len(widths) - 1)
            for level, width in enumerate(widths)
        )
        self.mid_block = MidBlock(widths[-1], groups)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels to moments, shapes as above."""
        hidden: Tensor = self.conv_in(channels_together(pixels))
        for block in self.down_blocks:
            hidden = block(hidden)
        hidden = self.mid_block(hidden)
        moments: Tensor = self.conv_out(silu(self.conv_norm_out(hidden)))
        return moments


class Decoder(nn.Module):
    """Latents (B, latent_channels, H, W) to pixels (B, in_channels, H * downscale, W * downscale)."""

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        widths, groups = config.channels[::-1], config.norm_groups
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0], groups)
        self.up_blocks = nn.ModuleList(
            UpBlock(widths[max(level - 1, 0)], width, config, last=level == len(widths) - 1)
            for level, width in enumerate(widths)
        )
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.in_channels, 3, padding=1)

    def forward(self, latents: Tensor, norm_out_eps: float = NORM_EPS) -> Tensor:
        """Map latents to pixels, shapes as above."""
        hidden: Tensor = self.mid_block(self.conv_in(channels_together(latents)))
        for block in self.up_blocks:
            hidden = block(hidden)
        norm = self.conv_norm_out
        hidden = F.group_norm(hidden, norm.num_groups, norm.weight, norm.bias, norm_out_eps)
        pixels: Tensor = self.conv_out(silu(hidden))
        return pixels


class DownBlock(nn.Module):
    """One level of the encoder: residual blocks, then half the size unless it is the last level."""

    def __init__(self, in_channels: int, out_channels: int, config: AutoencoderKLConfig, *, last: bool) -> None:
        super().__init__()
        self.resnets = resnets(in_channels, out_channels, config.layers_per_block, config.norm_groups)
        self.downsamplers = nn.ModuleList([] if last else [Downsample(out_channels, centred=False)])

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H/2, W/2), or keep the size on the last level."""
        for layer in (*self.resnets, *self.downsamplers):
            images = layer(images)
        return images


class UpBlock(nn.Module):
    """One level of the decoder: residual blocks, then twice the size unless it is the last level."""

    def __init__(self, in_channels: int, out_channels: int, config: AutoencoderKLConfig, *, last: bool) -> None:
        super().__init__()
        self.resnets = resnets(in_channels, out_channels, config.layers_per_block + 1, config.norm_groups)
        self.upsamplers = nn.ModuleList([] if last else [Upsample(out_channels)])

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, 2H, 2W), or keep the size on the last level."""
        for layer in (*self.resnets, *self.upsamplers):
            images = layer(images)
        return images


class MidBlock(nn.Module):
    """Residual block, attention over all positions, residual block; keeps the shape."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.resnets = resnets(channels, channels, 2, groups)
        self.attentions = nn.ModuleList([SpatialAttention(channels, groups)])

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        mixed: Tensor = self.resnets[1](self.attentions[0](self.resnets[0](images)))
        return mixed


class SpatialAttention(nn.Module):
    """Residual self-attention of one head between all H * W positions of an image."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=NORM_EPS)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        tokens = self.group_norm(images).flatten(2).transpose(1, 2).unsqueeze(1)  # (B, 1, H * W, C)
        mixed = _attend(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        change: Tensor = self.to_out[0](mixed)
        return images + change.transpose(2, 3).reshape(images.shape)


def _attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Softmax attention, each argument (B, 1, N, C), for as many queries at a time as bound the logits' memory."""
    at_once = max(1, LOGITS_AT_ONCE // (len(keys) * keys.shape[2]))
    parts = [F.scaled_dot_product_attention(part, keys, values) for part in torch.split(queries, at_once, dim=2)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def resnets(in_channels: int, out_channels: int, layers: int, groups: int) -> nn.ModuleList:
    """Return residual blocks in a row, of which the first changes the width."""
    return nn.ModuleList(
        ResnetBlock(out_channels if layer else in_channels, out_channels, groups=groups, eps=NORM_EPS)
        for layer in range(layers)
    )

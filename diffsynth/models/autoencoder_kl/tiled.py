"""The autoencoder over overlapping tiles, for images that do not fit into memory at once.

A tile's weight falls over half a stride towards all four of its sides, as in DiffSynth 1.x.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffsynth.models.autoencoder_kl.model import NORM_EPS, AutoencoderKL, Posterior
from diffsynth.nn.tiling import Window, tiled


def encode_tiled(vae: AutoencoderKL, pixels: Tensor, tile_size: int, tile_stride: int) -> Posterior:
    """Encode an image tile by tile.

    Tiles overlap by ``tile_size - tile_stride`` and are blended there; an image within one tile is encoded as
    `AutoencoderKL.encode` does. Larger ones differ a little, as each tile's norms see that tile alone.

    Args:
        vae: the autoencoder.
        pixels: (B, in_channels, H, W) in [-1, 1]; H and W are multiples of ``vae.config.downscale``.
        tile_size: side of a tile in latent pixels.
        tile_stride: latent pixels from one tile to the next, at most ``tile_size``.

    Returns:
        The distribution of unscaled latents, each part (B, latent_channels, H/downscale, W/downscale).

    Raises:
        ValueError: if the image's size or a number is out of range.
    """
    scale = vae.config.downscale

    def encode(window: Window) -> Tensor:
        posterior = vae.encode(window.scaled(scale).crop(pixels))
        return torch.cat([posterior.mean, posterior.std], dim=1)

    size = vae.config.latent_size(pixels.shape[-2], pixels.shape[-1])
    border = max(tile_stride // 2, 1)
    blended = tiled(encode, size, tile=tile_size, stride=tile_stride, border=border, everywhere=True)
    return Posterior(*blended.chunk(2, dim=1))


def decode_tiled(
    vae: AutoencoderKL, latents: Tensor, tile_size: int, tile_stride: int, *, norm_out_eps: float = NORM_EPS
) -> Tensor:
    """Decode latents tile by tile.

    Tiles overlap by ``tile_size - tile_stride`` and are blended there; latents within one tile are decoded as
    `AutoencoderKL.decode` does. Larger ones differ a little, as each tile's norms see that tile alone.

    Args:
        vae: the autoencoder.
        latents: (B, latent_channels, H, W), unscaled; any height and width.
        tile_size: side of a tile in latent pixels.
        tile_stride: latent pixels from one tile to the next, at most ``tile_size``.
        norm_out_eps: as in `AutoencoderKL.decode`.

    Returns:
        (B, in_channels, H * downscale, W * downscale), about [-1, 1], not clipped.

    Raises:
        ValueError: if a number is out of range.
    """

    def decode(window: Window) -> Tensor:
        return vae.decode(window.crop(latents), norm_out_eps=norm_out_eps)

    size = (latents.shape[-2], latents.shape[-1])
    scale = vae.config.downscale
    border = max(tile_stride * scale // 2, 1)
    return tiled(decode, size, tile=tile_size, stride=tile_stride, scale=scale, border=border, everywhere=True)

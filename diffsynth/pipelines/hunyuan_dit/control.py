"""Control networks of HunyuanDiT: which fit a denoiser, and what they are shown."""

from __future__ import annotations

import torch
from torch import Tensor

from diffsynth.core.loaded import LoadedModel
from diffsynth.models.hunyuan_dit.control import HunyuanDiTControlNet
from diffsynth.models.hunyuan_dit.model import HunyuanDiT
from diffsynth.pipelines.codec import ImageCodec, Tiles
from diffsynth.pipelines.control import Control
from diffsynth.pipelines.hunyuan_dit.request import HunyuanDiTRequest
from diffsynth.pipelines.latents import Noise, image_to_pixels

# Sizes that a control network has in common with its denoiser; only its inner widths are its own.
COMMON = (
    "size_conditioning",
    "hidden_size",
    "depth",
    "num_heads",
    "in_channels",
    "patch_size",
    "text_dim",
    "text_len",
    "t5_dim",
    "t5_len",
)


def misfit(dit: LoadedModel[HunyuanDiT], network: LoadedModel[HunyuanDiTControlNet]) -> str | None:
    """Say why a control network does not fit a denoiser; None if it does."""
    for name in COMMON:
        expected, found = getattr(dit.config, name), getattr(network.config, name)
        if expected == found:
            continue
        versions = [each.family.version(each.config) for each in (network, dit)]
        reason = (
            "it is for version {}, and the denoiser is {}".format(*versions)
            if name == "size_conditioning"
            else f"its {name} is {found}, and that of the denoiser is {expected}"
        )
        return f"{network.label} does not fit {dit.label}: {reason}. Load a control network made for this denoiser."
    return None


def hint_latents(
    control: Control[HunyuanDiTControlNet], codec: ImageCodec, request: HunyuanDiTRequest, noise: Noise, sides: int
) -> Tensor:
    """Return the latents of a control picture.

    Args:
        control: what is shown.
        codec: the autoencoder.
        request: a complete one.
        noise: what latents are sampled with, if the program does: for each image a row, or one for its negative
            prompt and one for its prompt.
        sides: how many rows the denoiser is run on for each image.

    Returns:
        (R, C, H / downscale, W / downscale); R divides the denoiser's rows, and row i is shown those of i modulo R.

    Raises:
        NonFiniteResult: numbers overflowed, in float32 too.
    """
    assert request.height is not None
    assert request.width is not None
    pixels = image_to_pixels(control.hint(request.height, request.width), request.height, request.width)
    latents = codec.encode_pixels(pixels, noise=noise, tiles=Tiles.of(request))
    if not codec.samples_posterior:
        return latents[:1]
    further = sides - noise.copies if noise.copies > 1 else 0  # local prompts are shown what the prompt is shown
    return torch.cat([latents, *[latents.chunk(noise.copies)[-1]] * further])

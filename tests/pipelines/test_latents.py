"""Images to pixels and back, masks for regions, previews."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffsynth import HunyuanDiTImagePipeline
from diffsynth.pipelines.latents import LatentPreview, image_to_pixels, pixels_to_images, region_mask

from .toy import PROMPT, draw_ours, largest_difference, load_toy


def test_every_eight_bit_value_survives_the_way_to_pixels_and_back() -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)

    (image,) = pixels_to_images(image_to_pixels(Image.fromarray(ramp), 16, 16), truncate=False)

    assert (np.asarray(image) == ramp).all()


def test_pixels_outside_their_range_are_clipped_and_fractions_cut_or_rounded() -> None:
    numbers = torch.tensor([-1.5, -1.0, 0.0, 1.0, 1.5, 99.7 / 127.5 - 1])
    pixels = numbers.expand(1, 3, 1, -1)

    cut, rounded = (pixels_to_images(pixels, truncate=truncate)[0] for truncate in (True, False))

    assert np.asarray(cut)[0, :, 0].tolist() == [0, 0, 127, 255, 255, 99]
    assert np.asarray(rounded)[0, :, 0].tolist() == [0, 0, 128, 255, 255, 100]


def test_a_mask_is_soft_at_its_edge_and_keeps_its_sides() -> None:
    half = Image.new("L", (320, 320))
    half.paste(255, (0, 0, 160, 320))

    mask = region_mask(half, 40, 40)

    assert mask.shape == (1, 1, 40, 40)
    assert torch.allclose(mask, mask[:, :, :1].expand_as(mask), atol=1e-6)
    profile = mask[0, 0, 0]
    assert (profile.diff() <= 1e-6).all()
    assert profile[0] > 0.95
    assert profile[-1] < 0.05
    assert profile[19:21].mean().item() == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (2, 7), (17, 5), (3, 40)])
def test_a_mask_of_one_colour_stays_so_at_any_size(size: tuple[int, int]) -> None:
    white = region_mask(Image.new("RGB", (64, 64), "white"), *size)
    black = region_mask(Image.new("RGB", (64, 64)), *size)

    torch.testing.assert_close(white, torch.ones(1, 1, *size))
    assert not black.any()


@pytest.mark.parametrize(("conventions", "eps"), [("diffsynth", 1e-5), ("original", 1e-6), ("diffusers", 1e-6)])
def test_the_last_norm_of_the_decoder_has_the_epsilon_of_the_program(
    v1_2: list[Path], conventions: str, eps: float
) -> None:
    pipe = load_toy(v1_2, conventions)
    for resnet in pipe.vae.decoder.get_submodule("up_blocks.3.resnets").children():
        for name, weight in resnet.named_parameters():
            if name.startswith(("conv2", "conv_shortcut")):
                weight.mul_(3e-4)  # so little variance that epsilon shows

    image, latents = draw_ours(pipe, PROMPT, seed=1, height=64, width=64, num_inference_steps=1, scheduler="dpm++2m",
                               resolution_binning=False)  # fmt: skip

    with torch.no_grad():
        pixels = {each: pipe.vae.decode(latents / pipe.latent_scale, norm_out_eps=each) for each in (1e-5, 1e-6)}
    truncate = conventions == "diffsynth"
    drawn = {each: pixels_to_images(decoded, truncate=truncate)[0] for each, decoded in pixels.items()}
    assert largest_difference(image, drawn[eps]) == 0
    assert largest_difference(drawn[1e-5], drawn[1e-6]) > 10


def test_a_preview_of_flat_latents_has_the_colour_that_is_decoded(pipe: HunyuanDiTImagePipeline) -> None:
    preview = LatentPreview(pipe.vae, pipe.latent_scale)
    latents = torch.randn(1, 4, 1, 1, generator=torch.Generator().manual_seed(5)).expand(-1, -1, 8, 8)

    (picture,) = preview(latents)

    decoded = pipe.vae.decode(latents / pipe.latent_scale).mean(dim=(2, 3))[0]
    colour = ((decoded / 2 + 0.5).clamp(0, 1) * 255).numpy()
    assert picture.size == (8, 8)
    assert np.abs(np.asarray(picture)[4, 4] - colour).mean() < 60  # one linear map for all colours

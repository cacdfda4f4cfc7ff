"""Images from images against the Diffusers library: painted over, painted in, and finished by a refiner."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffsynth import SDImagePipeline, SDXLImagePipeline
from diffsynth.errors import InvalidRequest
from diffsynth.pipelines.unet_request import UNetRequest

from .conftest import Release
from .toy import OTHER, PROMPT, assert_same, draw, load

pytest.importorskip("diffusers")

from .diffusers_parts import generator, make_pipeline
from .test_diffusers_parity import pytestmark, theirs

__all__ = ["pytestmark"]


def picture() -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((96, 64), Image.Resampling.BILINEAR)


def mask() -> Image.Image:
    values = np.zeros((64, 96), dtype=np.uint8)
    values[8:40, 16:64] = 255
    return Image.fromarray(values)


@pytest.mark.parametrize("scheduler", ["ddim", "euler"])
def test_an_image_painted_over_is_that_of_diffusers(release: Release, scheduler: str) -> None:
    pipe = load([release("sd15")], SDImagePipeline)
    case: dict[str, Any] = {"input_image": picture(), "denoising_strength": 0.7, "num_inference_steps": 5}

    _, latents = draw(pipe, PROMPT, scheduler=scheduler, **case)

    other = make_pipeline(pipe, "StableDiffusionImg2ImgPipeline", scheduler)
    expected = theirs_from_picture(other, **case)
    assert_same(latents, expected)


def theirs_from_picture(pipe: Any, prompt: str = PROMPT, **case: Any) -> torch.Tensor:
    """Return their clean latents; the size is that of the picture."""
    names = {"denoising_strength": "strength", "input_image": "image"}
    common = {names.get(name, name): value for name, value in case.items()}
    latents: torch.Tensor = pipe(prompt, generator=generator(3), output_type="latent", **common).images
    return latents


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_painting_in_is_that_of_diffusers(release: Release, strength: float) -> None:
    pipe = load([release("sd15")], SDImagePipeline)
    case: dict[str, Any] = {"input_image": picture(), "mask_image": mask(), "denoising_strength": strength}

    _, latents = draw(pipe, PROMPT, scheduler="ddim", num_inference_steps=5, **case)

    other = make_pipeline(pipe, "StableDiffusionInpaintPipeline", "ddim")
    assert_same(latents, theirs(other, PROMPT, num_inference_steps=5, **case))


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_a_network_made_for_inpainting_paints_as_that_of_diffusers(release: Release, strength: float) -> None:
    pipe = load([release("sd15-inpainting")], SDImagePipeline, prediction="velocity")
    case: dict[str, Any] = {"input_image": picture(), "mask_image": mask(), "denoising_strength": strength}

    _, latents = draw(pipe, PROMPT, scheduler="ddim", num_inference_steps=5, **case)

    other = make_pipeline(pipe, "StableDiffusionInpaintPipeline", "ddim")
    assert_same(latents, theirs(other, PROMPT, num_inference_steps=5, **case))


def test_a_refiner_paints_over_as_that_of_diffusers(release: Release) -> None:
    pipe = load([release("sdxl-refiner")], SDXLImagePipeline)
    case: dict[str, Any] = {"input_image": picture(), "denoising_strength": 0.5, "num_inference_steps": 6}
    case |= {"negative_prompt": OTHER, "aesthetic_score": 7.0}

    _, latents = draw(pipe, PROMPT, **case)

    other = make_pipeline(pipe, "StableDiffusionXLImg2ImgPipeline", "euler")
    assert_same(latents, theirs_from_picture(other, **case))


@pytest.mark.parametrize("share", [0.8, 0.5])
def test_the_hand_over_to_a_refiner_is_that_of_diffusers(release: Release, share: float) -> None:
    files = [release("sdxl"), release("sdxl-refiner")]
    pipe = load(files, SDXLImagePipeline, refiner=True)
    case: dict[str, Any] = {"negative_prompt": OTHER, "num_inference_steps": 6}

    _, latents = draw(pipe, PROMPT, refiner_start=share, **case)

    base = make_pipeline(pipe, "StableDiffusionXLPipeline", "euler")
    refiner = make_pipeline(pipe, "StableDiffusionXLImg2ImgPipeline", "euler", denoiser=pipe.refiner)
    half = theirs(base, PROMPT, denoising_end=share, **case)
    assert_same(latents, theirs_from_picture(refiner, input_image=half, denoising_start=share, **case))


def test_an_inpainting_network_without_a_mask_is_one_clear_error(release: Release) -> None:
    pipe = load([release("sd15-inpainting")], SDImagePipeline)

    with pytest.raises(InvalidRequest, match="made for inpainting: give an input_image and a mask_image"):
        draw(pipe, PROMPT)


def test_a_mask_needs_a_picture() -> None:
    with pytest.raises(InvalidRequest, match="mask_image needs an input_image"):
        UNetRequest.from_settings({"prompt": PROMPT, "mask_image": mask()})

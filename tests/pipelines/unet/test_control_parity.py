"""Images that control networks steer, against the pipelines of the Diffusers library with the same weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffsynth import SDImagePipeline, SDXLImagePipeline

from .conftest import Release
from .test_pictures_parity import mask, picture
from .toy import OTHER, PROMPT, SMALL, assert_same, draw, load

pytest.importorskip("diffusers")

from .diffusers_parts import generator, make_pipeline
from .test_diffusers_parity import pytestmark

__all__ = ["pytestmark"]

NAMES = {
    "cfg_scale": "guidance_scale",
    "controlnet_scales": "controlnet_conditioning_scale",
    "controlnet_starts": "control_guidance_start",
    "controlnet_ends": "control_guidance_end",
    "denoising_strength": "strength",
    "input_image": "image",
}
GUIDED: dict[str, Any] = {"negative_prompt": OTHER, "cfg_scale": 3.0, "num_inference_steps": 4, "scheduler": "ddim"}


def hint(seed: int = 4) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((96, 64), Image.Resampling.NEAREST)


def theirs(pipe: Any, **settings: Any) -> torch.Tensor:
    """Return the clean latents of Diffusers; a list of one is its only entry."""
    common = {NAMES.get(name, name): value for name, value in {**SMALL, **settings}.items()}
    common.pop("scheduler")
    latents: torch.Tensor = pipe(PROMPT, generator=generator(common.pop("seed")), output_type="latent", **common).images
    return latents


SD_CASES: list[dict[str, Any]] = [
    {},
    {"controlnet_scales": 0.6, "cfg_scale": 1.0},
    {"controlnet_starts": 0.25, "controlnet_ends": 0.8},
    {"guess_mode": True, "controlnet_scales": 0.7},
]


@pytest.mark.parametrize("case", SD_CASES, ids=str)
def test_an_image_of_stable_diffusion_is_that_of_diffusers(release: Release, case: dict[str, Any]) -> None:
    pipe = load([release("sd15"), release("sd15-controlnet")], SDImagePipeline)
    settings = {**GUIDED, **case}

    _, latents = draw(pipe, PROMPT, controlnet_image=hint(), **settings)

    nets = [entry.module for entry in pipe.controlnets.loaded]
    other = make_pipeline(pipe, "StableDiffusionControlNetPipeline", "ddim", controlnets=nets)
    assert_same(latents, theirs(other, image=hint(), **settings))
    assert (latents - draw(pipe, PROMPT, **GUIDED)[1]).abs().max() > 0.1


def test_several_networks_are_summed_as_in_diffusers(release: Release) -> None:
    other_file = release("sd15-controlnet").with_name("second.safetensors")
    other_file.write_bytes(release("sd15-controlnet").read_bytes())
    pipe = load([release("sd15"), release("sd15-controlnet"), other_file], SDImagePipeline)
    settings = {**GUIDED, "controlnet_scales": [0.9, 0.5], "controlnet_starts": [0.0, 0.5]}
    settings["controlnet_ends"] = [0.75, 1.0]

    _, latents = draw(pipe, PROMPT, controlnet_images=[hint(), hint(5)], **settings)

    nets = [entry.module for entry in pipe.controlnets.loaded]
    other = make_pipeline(pipe, "StableDiffusionControlNetPipeline", "ddim", controlnets=nets)
    assert_same(latents, theirs(other, image=[hint(), hint(5)], **settings))


@pytest.mark.parametrize("guess", [False, True])
def test_an_image_of_sdxl_is_that_of_diffusers(release: Release, guess: bool) -> None:
    pipe = load([release("sdxl"), release("sdxl-controlnet")], SDXLImagePipeline)
    settings = {**GUIDED, "controlnet_scales": 0.8, "guess_mode": guess}

    _, latents = draw(pipe, PROMPT, controlnet_image=hint(), **settings)

    nets = [entry.module for entry in pipe.controlnets.loaded]
    other = make_pipeline(pipe, "StableDiffusionXLControlNetPipeline", "ddim", controlnets=nets)
    assert_same(latents, theirs(other, image=hint(), **settings))


UNION_CASES: dict[str, dict[str, Any]] = {
    "one": {"controlnet_types": ["canny"], "controlnet_scales": [0.8]},
    "two": {"controlnet_types": ["openpose", "depth"], "controlnet_scales": [0.8, 0.5]},
    "two, one of them late": {
        "controlnet_types": ["tile", "normal"], "controlnet_scales": [0.8, 0.5], "controlnet_starts": [0.0, 0.5],
        "controlnet_ends": [1.0, 1.0],
    },
    "guess": {"controlnet_types": ["repaint"], "controlnet_scales": [0.8], "guess_mode": True, "cfg_scale": 1.0},
}  # fmt: skip
NUMBERS = {"openpose": 0, "depth": 1, "canny": 3, "normal": 4, "tile": 6, "repaint": 7}


@pytest.mark.parametrize("name", UNION_CASES)
def test_an_image_of_a_union_network_is_that_of_diffusers(release: Release, name: str) -> None:
    pipe = load([release("sdxl"), release("sdxl-union")], SDXLImagePipeline)
    settings = {**GUIDED, **UNION_CASES[name]}
    pictures = [hint(seed) for seed in range(len(settings["controlnet_types"]))]

    _, latents = draw(pipe, PROMPT, controlnet_images=pictures, **settings)

    nets = [entry.module for entry in pipe.controlnets.loaded]
    other = make_pipeline(pipe, "StableDiffusionXLControlNetUnionPipeline", "ddim", controlnets=nets)
    types = [NUMBERS[each] for each in settings.pop("controlnet_types")]
    assert_same(latents, theirs(other, control_image=pictures, control_mode=types, **settings))


def test_an_image_painted_over_is_that_of_diffusers(release: Release) -> None:
    pipe = load([release("sd15"), release("sd15-controlnet")], SDImagePipeline)
    settings = {**GUIDED, "input_image": picture(), "denoising_strength": 0.7, "controlnet_ends": 0.6}
    settings |= {"controlnet_scales": 0.9}

    _, latents = draw(pipe, PROMPT, controlnet_image=hint(), **settings)

    nets = [entry.module for entry in pipe.controlnets.loaded]
    other = make_pipeline(pipe, "StableDiffusionControlNetImg2ImgPipeline", "ddim", controlnets=nets)
    assert_same(latents, theirs(other, control_image=hint(), **settings))


@pytest.mark.parametrize("name", ["sd15", "sd15-inpainting"])
def test_painting_in_is_that_of_diffusers(release: Release, name: str) -> None:
    pipe = load([release(name), release("sd15-controlnet")], SDImagePipeline)
    settings = {**GUIDED, "input_image": picture(), "mask_image": mask(), "denoising_strength": 0.6}
    settings |= {"controlnet_scales": 0.9}

    _, latents = draw(pipe, PROMPT, controlnet_image=hint(), **settings)

    nets = [entry.module for entry in pipe.controlnets.loaded]
    other = make_pipeline(pipe, "StableDiffusionControlNetInpaintPipeline", "ddim", controlnets=nets)
    assert_same(latents, theirs(other, control_image=hint(), **settings))

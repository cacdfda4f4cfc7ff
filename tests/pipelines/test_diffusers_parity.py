"""Whole images, from prompt to pixels, against the pipeline of the Diffusers library with the same weights."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from diffsynth.pipelines.hunyuan_dit.conventions import nearest_trained_size

from .conftest import Load
from .toy import OTHER_PROMPT, PROMPT, assert_same_latents, draw_ours, largest_difference, load_toy, write_toy

pytest.importorskip("diffusers")

from .diffusers_parts import generators, make_pipeline

# Diffusers makes numpy arrays of tensors in a way that numpy will stop supporting.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CASES: list[dict[str, Any]] = [
    {},
    {"scheduler": "ddim"},
    {"scheduler": "dpmms", "num_inference_steps": 4},
    {"height": 96, "width": 64},
    {"height": 64, "width": 176, "scheduler": "ddim"},
    {"guidance_scale": 1.0},
    {"guidance_scale": 0.5},
    {"guidance_scale": 3.0, "guidance_rescale": 0.7},
    {"negative_prompt": OTHER_PROMPT},
    {"height": 70, "width": 111},
]


def draw_theirs(
    pipe: Any, prompt: str | list[str], seeds: list[int], **settings: Any
) -> tuple[list[Image.Image], Tensor]:
    """Return the images and the clean latents of Diffusers."""
    common = {"use_resolution_binning": False, **settings}
    latents = pipe(prompt, generator=generators(*seeds), output_type="latent", **common).images
    with torch.no_grad():
        pixels = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    return pipe.image_processor.postprocess(pixels), latents


@pytest.mark.parametrize("version", ["v1.0", "v1.2"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_image_is_that_of_diffusers(pipeline: Load, version: str, case: dict[str, Any]) -> None:
    pipe = pipeline(version, "diffusers")
    settings = {"height": 64, "width": 64, "num_inference_steps": 3, **case}
    scheduler = settings.pop("scheduler", "ddpm")

    image, latents = draw_ours(pipe, PROMPT, seed=3, scheduler=scheduler, resolution_binning=False, **settings)

    (expected_image,), expected = draw_theirs(make_pipeline(pipe, scheduler), PROMPT, [3], **settings)
    assert_same_latents(latents, expected)
    assert image.size == expected_image.size
    assert largest_difference(image, expected_image) <= 1


@pytest.mark.parametrize("scheduler", ["ddpm", "ddim", "dpmms"])
def test_a_batch_of_prompts_is_that_of_diffusers(pipeline: Load, scheduler: str) -> None:
    pipe = pipeline("v1.0", "diffusers")
    prompts, negatives = [PROMPT, OTHER_PROMPT], [OTHER_PROMPT, "panda"]
    settings: dict[str, Any] = {"height": 64, "width": 96, "num_inference_steps": 3, "negative_prompt": negatives}

    images, latents = draw_ours(pipe, prompts, seed=[5, 9], scheduler=scheduler, resolution_binning=False, **settings)

    expected_images, expected = draw_theirs(make_pipeline(pipe, scheduler), prompts, [5, 9], **settings)
    assert_same_latents(latents, expected)
    assert all(largest_difference(*pair) <= 1 for pair in zip(images, expected_images, strict=True))


def test_several_images_of_a_prompt_are_those_of_diffusers(pipeline: Load) -> None:
    pipe = pipeline("v1.2", "diffusers")
    settings: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 2, "num_images_per_prompt": 3}

    _, latents = draw_ours(pipe, PROMPT, seed=5, resolution_binning=False, **settings)

    _, expected = draw_theirs(make_pipeline(pipe, "ddpm"), PROMPT, [5, 6, 7], **settings)
    assert_same_latents(latents, expected)


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_perturbed_attention_guidance_is_that_of_diffusers(pipeline: Load, guidance_scale: float) -> None:
    pipe = pipeline("v1.2", "diffusers")
    settings: dict[str, Any] = {"height": 64, "width": 96, "num_inference_steps": 3, "guidance_scale": guidance_scale}

    image, latents = draw_ours(
        pipe, PROMPT, seed=3, perturbed_attention_scale=3.0, resolution_binning=False, **settings
    )

    theirs = make_pipeline(pipe, "ddpm", perturbed=True)
    (expected_image,), expected = draw_theirs(theirs, PROMPT, [3], pag_scale=3.0, **settings)
    assert_same_latents(latents, expected)
    assert largest_difference(image, expected_image) <= 1


def test_a_deep_network_is_perturbed_in_the_blocks_that_diffusers_takes(tmp_path: Path) -> None:
    pipe = load_toy(write_toy(tmp_path, depth=22), "diffusers")
    settings: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 2, "guidance_scale": 2.0}

    _, latents = draw_ours(pipe, PROMPT, seed=3, perturbed_attention_scale=2.0, resolution_binning=False, **settings)

    theirs = make_pipeline(pipe, "ddpm", perturbed=True)
    _, expected = draw_theirs(theirs, PROMPT, [3], pag_scale=2.0, **settings)
    assert_same_latents(latents, expected)


def test_sizes_are_moved_to_the_trained_one_that_diffusers_takes() -> None:
    from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import SUPPORTED_SHAPE, map_to_standard_shapes

    sides = range(256, 2049, 112)
    for height, width in [(height, width) for height in sides for width in sides] + SUPPORTED_SHAPE:
        found = nearest_trained_size(height, width)
        if (height, width) in SUPPORTED_SHAPE:
            assert found == (height, width)
        else:
            expected_width, expected_height = map_to_standard_shapes(width, height)
            assert found == (expected_height, expected_width), (height, width)


def test_the_defaults_are_those_of_diffusers(pipeline: Load) -> None:
    from diffusers import HunyuanDiTPipeline

    theirs = inspect.signature(HunyuanDiTPipeline.__call__).parameters
    conventions = pipeline("v1.2", "diffusers").conventions

    assert conventions.num_inference_steps == theirs["num_inference_steps"].default
    assert conventions.cfg_scale == theirs["guidance_scale"].default
    assert conventions.resolution_binning == theirs["use_resolution_binning"].default

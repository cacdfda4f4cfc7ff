"""The conventions of Tencent's own program, against its loop written out with parts of Diffusers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diffsynth import HunyuanDiTImagePipeline

from .conftest import Load
from .toy import OTHER_PROMPT, PROMPT, assert_same_latents, draw_ours, values

pytest.importorskip("diffusers")

from .by_hand import Parts, pixels_of, rotary_tables
from .diffusers_parts import make_scheduler

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

NEGATIVE = "错误的眼睛，糟糕的人脸，毁容，糟糕的艺术，变形，多余的肢体，模糊的颜色，模糊，重复，病态，残缺，"


def draw_by_hand(
    pipe: HunyuanDiTImagePipeline,
    *,
    size: tuple[int, int],
    seed: int,
    steps: int = 100,
    cfg_scale: float = 6.0,
    negative: str = NEGATIVE,
    scheduler: str = "ddpm",
    beta_end: float,
) -> tuple[Parts, Tensor]:
    """Return clean latents as Tencent's program makes them."""
    parts, (height, width) = Parts(pipe), size
    sampler = make_scheduler(scheduler, beta_end)
    sampler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn((1, 4, height // 8, width // 8), generator=generator)
    rope = rotary_tables(height, width, pipe.denoiser.config.head_dim)
    meta = (1024, 1024, width, height, 0, 0)
    positive, away = parts.read(PROMPT), parts.read(negative)
    extra: dict[str, Any] = {"generator": generator} if scheduler == "ddpm" else {}
    for timestep in sampler.timesteps:
        velocity = parts.velocity(latents, float(timestep), positive, rope, meta)
        if cfg_scale > 1:
            unwanted = parts.velocity(latents, float(timestep), away, rope, meta)
            velocity = unwanted + cfg_scale * (velocity - unwanted)
        latents = sampler.step(velocity, timestep, latents, return_dict=False, **extra)[0]
    return parts, latents


@pytest.mark.parametrize(("version", "beta_end"), [("v1.0", 0.03), ("v1.2", 0.018)])
def test_an_image_with_every_default_is_that_of_the_original_program(
    pipeline: Load, version: str, beta_end: float
) -> None:
    pipe = pipeline(version, "original")

    image, latents = draw_ours(pipe, PROMPT, seed=42, height=32, width=48)

    parts, expected = draw_by_hand(pipe, size=(32, 48), seed=42, beta_end=beta_end)
    assert_same_latents(latents, expected)
    assert np.abs(values(image) - parts.pixels(expected).round()).max() <= 1


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (96, 64)])
@pytest.mark.parametrize(
    ("scheduler", "theirs"), [("ddpm", "ddpm"), ("ddim", "ddim"), ("dpmms", "dpmms of 2023"), ("dpm++2m", "dpmms")]
)
def test_sizes_and_samplers_are_those_of_the_original_program(
    pipeline: Load, size: tuple[int, int], scheduler: str, theirs: str
) -> None:
    pipe = pipeline("v1.0", "original")
    settings: dict[str, Any] = {"height": size[0], "width": size[1], "num_inference_steps": 4}

    _, latents = draw_ours(pipe, PROMPT, seed=1, scheduler=scheduler, **settings)

    _, expected = draw_by_hand(pipe, size=size, seed=1, steps=4, scheduler=theirs, beta_end=0.03)
    assert_same_latents(latents, expected)


def test_many_steps_of_its_multistep_solver_end_at_second_order(pipeline: Load) -> None:
    pipe = pipeline("v1.2", "original")

    _, latents = draw_ours(pipe, PROMPT, seed=1, scheduler="dpmms", num_inference_steps=16, height=32, width=32)

    _, expected = draw_by_hand(pipe, size=(32, 32), seed=1, steps=16, scheduler="dpmms of 2023", beta_end=0.018)
    assert_same_latents(latents, expected)


def test_the_name_dpmms_means_another_solver_than_with_the_conventions_of_diffusers(pipeline: Load) -> None:
    settings: dict[str, Any] = {"seed": 1, "scheduler": "dpmms", "num_inference_steps": 4, "height": 64, "width": 64}
    same: dict[str, Any] = {"negative_prompt": OTHER_PROMPT, "cfg_scale": 6.0, "resolution_binning": False}

    _, original = draw_ours(pipeline("v1.2", "original"), PROMPT, **settings, **same)
    _, diffusers = draw_ours(pipeline("v1.2", "diffusers"), PROMPT, **settings, **same)

    assert (original - diffusers).abs().max() > 1e-3  # a square image of v1.2: nothing else differs


@pytest.mark.parametrize(
    ("given", "used"), [(None, NEGATIVE), ("", NEGATIVE), (OTHER_PROMPT, OTHER_PROMPT)], ids=["none", "empty", "own"]
)
def test_its_list_of_flaws_takes_the_place_of_a_negative_prompt(pipeline: Load, given: str | None, used: str) -> None:
    pipe = pipeline("v1.2", "original")
    settings: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 2}

    image, latents = draw_ours(pipe, PROMPT, seed=1, negative_prompt=given, **settings)

    _, expected = draw_by_hand(pipe, size=(64, 64), seed=1, steps=2, negative=used, beta_end=0.018)
    assert_same_latents(latents, expected)
    assert image.info["recipe"].request.negative_prompt == used


def test_white_space_around_prompts_is_removed(pipeline: Load) -> None:
    pipe = pipeline("v1.2", "original")
    settings: dict[str, Any] = {"seed": 1, "height": 32, "width": 32, "num_inference_steps": 1, "scheduler": "ddim"}

    padded = pipe(f"  {PROMPT}\x85", negative_prompt="\x85panda ", **settings)  # a line end that tokenizers do not drop

    assert padded.tobytes() == pipe(PROMPT, negative_prompt="panda", **settings).tobytes()


def test_guidance_is_off_at_and_below_one(pipeline: Load) -> None:
    pipe = pipeline("v1.0", "original")

    _, latents = draw_ours(pipe, PROMPT, seed=1, cfg_scale=0.5, num_inference_steps=2, height=64, width=48)

    _, expected = draw_by_hand(pipe, size=(64, 48), seed=1, steps=2, cfg_scale=0.5, beta_end=0.03)
    assert_same_latents(latents, expected)


def test_an_input_image_is_drawn_from_the_encoders_distribution(pipeline: Load) -> None:
    pipe = pipeline("v1.2", "original")
    settings: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 4, "cfg_scale": 1.0}
    image = pipe(PROMPT, seed=3, **settings)

    _, latents = draw_ours(pipe, PROMPT, seed=5, input_image=image, strength=0.5, scheduler="ddim", **settings)

    parts, generator = Parts(pipe), torch.Generator().manual_seed(5)
    sampler = make_scheduler("ddim", 0.018)
    sampler.set_timesteps(4)
    with torch.no_grad():
        distribution = parts.vae.encode(pixels_of(image)).latent_dist
    expected = distribution.sample(generator) * 0.13025
    fresh = torch.randn(expected.shape, generator=generator)
    expected = sampler.add_noise(expected, fresh, sampler.timesteps[2:3])
    rope, text = rotary_tables(64, 64, pipe.denoiser.config.head_dim), parts.read(PROMPT)
    for timestep in sampler.timesteps[2:]:
        velocity = parts.velocity(expected, float(timestep), text, rope, (0,) * 6)
        expected = sampler.step(velocity, timestep, expected, return_dict=False)[0]
    assert_same_latents(latents, expected)

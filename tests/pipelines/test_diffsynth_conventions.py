"""The default conventions, those of DiffSynth 1.x, against its formulas written out with parts of other libraries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from diffsynth import HunyuanDiTImagePipeline

from .conftest import Load
from .toy import OTHER_PROMPT, PROMPT, assert_same_latents, draw_ours, values

pytest.importorskip("diffusers")

from .by_hand import Parts, Text, alphas_cumprod, noise, pixels_of, rotary_tables

LocalPrompt = tuple[str, Image.Image, float]


def timesteps_for(steps: int, strength: float) -> list[int]:
    """Return evenly spaced timesteps from the noisiest to 0; strength shortens the range, not the count."""
    top = max(round(1000 * strength) - 1, 0)
    steps = min(steps, top + 1)
    return [top] if steps == 1 else [round(top - index * (top / (steps - 1))) for index in range(steps)]


def soft_mask(mask: Image.Image, height: int, width: int) -> Tensor:
    """Cut a mask at half brightness and blur it with a Gaussian of 33 x 33 latent pixels, sigma 10."""
    hard = (pixels_of(mask.resize((width, height))).mean(dim=1, keepdim=True) > 0).float()
    bell = torch.exp(-0.5 * (torch.linspace(-16, 16, 33) / 10.0) ** 2)
    bell = bell / bell.sum()
    return F.conv2d(F.pad(hard, (16, 16, 16, 16), mode="reflect"), torch.outer(bell, bell)[None, None])


def draw_by_hand(
    pipe: HunyuanDiTImagePipeline,
    *,
    size: tuple[int, int],
    seed: int,
    steps: int = 20,
    cfg_scale: float = 7.5,
    negative: str = "",
    image: Image.Image | None = None,
    strength: float = 1.0,
    skips: tuple[int, int] = (1, 1),
    local: Sequence[LocalPrompt] = (),
    beta_end: float = 0.03,
) -> tuple[Parts, Tensor]:
    """Return clean latents as DiffSynth makes them."""
    parts, (height, width) = Parts(pipe), size
    alphas, timesteps = alphas_cumprod(beta_end), timesteps_for(steps, strength)
    latents = noise(seed, height, width)
    if image is not None:
        start = alphas[timesteps[0]]
        latents = math.sqrt(start) * parts.mean_latents(image) + math.sqrt(1 - start) * latents
    rope = rotary_tables(height, width, pipe.denoiser.config.head_dim)
    meta = (width, height, width, height, 0, 0)
    positive, away = parts.read(PROMPT, *skips), parts.read(negative, *skips)
    others = [parts.read(text, *skips) for text, _, _ in local]
    masks = [soft_mask(mask, height // 8, width // 8) for _, mask, _ in local]

    def ask(text: Text, timestep: int) -> Tensor:
        return parts.velocity(latents, timestep, text, rope, meta)

    for index, timestep in enumerate(timesteps):
        velocity, weight = ask(positive, timestep), torch.ones_like(latents)
        for text, mask, (_, _, scale) in zip(others, masks, local, strict=True):
            velocity = velocity + scale * mask * ask(text, timestep)
            weight = weight + scale * mask
        velocity = velocity / weight
        if cfg_scale != 1:
            unwanted = ask(away, timestep)
            velocity = unwanted + cfg_scale * (velocity - unwanted)
        now = alphas[timestep]
        then = alphas[timesteps[index + 1]] if index + 1 < len(timesteps) else 1.0
        keep = math.sqrt(now * then) + math.sqrt((1 - now) * (1 - then))
        move = math.sqrt(now * (1 - then)) - math.sqrt(then * (1 - now))
        latents = latents * keep + velocity * move
    return parts, latents


def circle(size: tuple[int, int], *, left: bool) -> Image.Image:
    """Return a white disc on black, in the left or the right half; ``size`` is width and height."""
    picture = Image.new("RGB", size)
    x, y = size[0] // 4 if left else size[0] * 3 // 4, size[1] // 2
    radius = min(size) // 3
    ImageDraw.Draw(picture).ellipse((x - radius, y - radius, x + radius, y + radius), fill="white")
    return picture


def test_an_image_with_every_default_is_that_of_diffsynth(pipeline: Load) -> None:
    pipe = pipeline("v1.0")

    image, latents = draw_ours(pipe, PROMPT, seed=11, height=48, width=64)

    parts, expected = draw_by_hand(pipe, size=(48, 64), seed=11)
    assert_same_latents(latents, expected)
    assert np.abs(values(image) - parts.pixels(expected, norm_out_eps=1e-5).astype(np.uint8)).max() <= 1


CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"cfg_scale": 1.0}, {"cfg_scale": 1.0}),
    ({"cfg_scale": 0.5}, {"cfg_scale": 0.5}),
    ({"negative_prompt": OTHER_PROMPT}, {"negative": OTHER_PROMPT}),
    ({"num_inference_steps": 1}, {"steps": 1}),
    ({"clip_skip": 2, "clip_skip_2": 3}, {"skips": (2, 3)}),
]


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (48, 112)])
@pytest.mark.parametrize(("ours", "theirs"), CASES, ids=[str(ours) for ours, _ in CASES])
def test_settings_mean_what_they_mean_to_diffsynth(
    pipeline: Load, size: tuple[int, int], ours: dict[str, Any], theirs: dict[str, Any]
) -> None:
    pipe = pipeline("v1.0")
    settings = {"height": size[0], "width": size[1], "num_inference_steps": 3, **ours}

    _, latents = draw_ours(pipe, PROMPT, seed=2, **settings)

    _, expected = draw_by_hand(pipe, size=size, seed=2, **{"steps": 3, **theirs})
    assert_same_latents(latents, expected)


@pytest.mark.parametrize(("strength", "steps"), [(1.0, 3), (0.7, 3), (0.35, 2), (0.002, 5)])
def test_an_input_image_is_treated_as_in_diffsynth(pipeline: Load, strength: float, steps: int) -> None:
    pipe = pipeline("v1.0")
    settings: dict[str, Any] = {"height": 64, "width": 80, "num_inference_steps": steps}
    image = pipe(OTHER_PROMPT, seed=1, **settings)

    drawn, latents = draw_ours(pipe, PROMPT, seed=4, input_image=image, denoising_strength=strength, **settings)

    parts, expected = draw_by_hand(pipe, size=(64, 80), seed=4, steps=steps, image=image, strength=strength)
    assert_same_latents(latents, expected)
    assert np.abs(values(drawn) - parts.pixels(expected, norm_out_eps=1e-5).astype(np.uint8)).max() <= 1


@pytest.mark.parametrize("scales", [(1.0, 1.0), (0.5, 2.0)], ids=str)
def test_local_prompts_are_mixed_as_in_diffsynth(pipeline: Load, scales: tuple[float, float]) -> None:
    pipe = pipeline("v1.0")
    prompts, masks = [OTHER_PROMPT, "a panda"], [circle((300, 200), left=True), circle((150, 90), left=False)]
    settings: dict[str, Any] = {"height": 144, "width": 176, "num_inference_steps": 2}

    _, latents = draw_ours(pipe, PROMPT, seed=4, local_prompts=prompts, masks=masks, mask_scales=scales, **settings)

    local = list(zip(prompts, masks, scales, strict=True))
    _, expected = draw_by_hand(pipe, size=(144, 176), seed=4, steps=2, local=local)
    assert_same_latents(latents, expected)


def test_the_schedule_of_version_1_2_ends_at_its_own_beta(pipeline: Load) -> None:
    pipe = pipeline("v1.2")
    settings: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 3}

    _, latents = draw_ours(pipe, PROMPT, seed=4, **settings)

    _, expected = draw_by_hand(pipe, size=(64, 64), seed=4, steps=3, beta_end=0.018)
    assert_same_latents(latents, expected)


def test_eight_bit_values_are_cut_off_and_not_rounded(pipeline: Load) -> None:
    pipe = pipeline("v1.0")

    image, latents = draw_ours(pipe, PROMPT, seed=11, height=64, width=64, num_inference_steps=2)

    exact = Parts(pipe).pixels(latents, norm_out_eps=1e-5)
    clear = np.abs(exact - exact.round()) > 0.01  # where the last digits of floats cannot decide
    assert (values(image)[clear] == np.floor(exact)[clear]).all()

"""Every setting of a request changes the image, or says why it cannot."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffsynth import HunyuanDiTImagePipeline
from diffsynth.errors import InvalidRequest
from diffsynth.pipelines.hunyuan_dit.request import HunyuanDiTRequest
from tests.naming import as_written

from .conftest import Load
from .toy import OTHER_PROMPT, PROMPT

SMALL: dict[str, Any] = {"height": 64, "width": 96, "num_inference_steps": 2, "seed": 7}
PICTURE = Image.linear_gradient("L").convert("RGB").resize((96, 64))
HALF = Image.new("RGB", (96, 64))
HALF.paste("white", (0, 0, 48, 64))
LOCAL: dict[str, Any] = {"local_prompts": ["a rose"], "masks": [HALF], "mask_scales": [1.0]}
LARGER: dict[str, Any] = {"hires_scale": 2.0, "hires_strength": 1.0}
STEERED: dict[str, Any] = {"controlnet_images": [PICTURE, HALF], "num_inference_steps": 4, "controlnet_ends": [0.75]}
TILES: dict[str, Any] = {"tiled": True, "tile_size": 4, "tile_stride": 2}

# Setting → what must be given beside it, and another value for it.
CHANGES: dict[str, tuple[dict[str, Any], Any]] = {
    "prompt": ({}, OTHER_PROMPT),
    "negative_prompt": ({}, OTHER_PROMPT),
    "cfg_scale": ({}, 3.0),
    "guidance_rescale": ({}, 0.7),
    "height": ({}, 80),
    "width": ({}, 64),
    "num_inference_steps": ({}, 3),
    "scheduler": ({}, "dpm++2m"),
    "spacing": ({}, "trailing"),
    "seed": ({}, 8),
    "input_image": ({}, PICTURE),
    "denoising_strength": ({"input_image": PICTURE}, 0.5),
    "hires_scale": ({}, 2.0),
    "hires_height": ({}, 80),
    "hires_width": ({}, 128),
    "hires_strength": (LARGER, 0.5),
    "hires_steps": (LARGER, 1),
    "hires_upscale": (LARGER, "latent"),
    "local_prompts": (LOCAL, ["a panda"]),
    "masks": (LOCAL, [Image.new("RGB", (8, 8), "white")]),
    "mask_scales": (LOCAL, [3.0]),
    "controlnet_images": (STEERED, [HALF, PICTURE]),
    "controlnet_scales": (STEERED, [0.5, 1.5]),
    "controlnet_starts": (STEERED, [0.25, 0.0]),
    "controlnet_ends": (STEERED, [0.5, 1.0]),
    "controlnet_processors": (STEERED, ["none", "canny"]),
    "clip_skip": ({}, 2),
    "clip_skip_2": ({}, 2),
    "tiled": ({"tile_size": 4, "tile_stride": 2}, True),
    "tile_size": (TILES, 3),
    "tile_stride": (TILES, 3),
    "perturbed_attention_scale": ({}, 2.0),
}


def test_the_table_of_changes_knows_every_setting() -> None:
    elsewhere = {"resolution_binning"}  # moves to large sizes only
    elsewhere |= {"ipadapter_images", "ipadapter_scale"}  # need an adapter: see test_ip_adapter
    assert set(CHANGES) == set(HunyuanDiTRequest.settings()) - elsewhere


@pytest.mark.parametrize("conventions", ["diffsynth", "original"])
@pytest.mark.parametrize("name", CHANGES)
def test_changing_a_setting_changes_the_image(pipeline: Load, steered: Load, name: str, conventions: str) -> None:
    pipe = (steered if name.startswith("controlnet") else pipeline)("v1.0", conventions)
    beside, value = CHANGES[name]
    before = {"prompt": PROMPT, **SMALL, **beside}

    first, second = pipe(**before), pipe(**{**before, name: value})

    assert (first.size, first.tobytes()) != (second.size, second.tobytes())


def test_resolution_binning_moves_to_a_trained_size(pipe: HunyuanDiTImagePipeline) -> None:
    wanted = HunyuanDiTRequest(prompt="", height=700, width=1000, resolution_binning=True)

    complete = pipe.complete(wanted)

    assert (complete.height, complete.width) == (768, 1024)
    assert pipe.complete(complete) == complete


OUT_OF_RANGE: dict[str, tuple[Any, ...]] = {
    "prompt": (None, 3, b"panda", [], ["panda", None]),
    "negative_prompt": (3, ["a", "b"], [None, 3]),
    "cfg_scale": (-1, 101, "7", True, float("nan")),
    "guidance_rescale": (-0.1, 1.1, None),
    "height": (0, 15, 16385, 64.5, "64", True),
    "width": (0, 15, 16385, 64.5),
    "num_inference_steps": (0, 1001, 2.5),
    "scheduler": ("heun", "DDIM ", 3),
    "seed": (-1, 2**63, 1.5, "7", True, [1, 2]),
    "input_image": ("panda.png", torch.zeros(3, 64, 96)),
    "denoising_strength": (0, 1.5, 0.5),  # the last lacks an input image
    "hires_scale": (0.5, 17, "2"),
    "hires_height": (15, 64.5, 32),  # the last is smaller than the first stage
    "hires_width": (15, "128"),
    "hires_strength": (0, 1.5, 0.5),  # the last has nothing to draw over
    "hires_steps": (0, 2.5, 3),
    "hires_upscale": ("lanczos", 2, "latent"),
    "local_prompts": ("a rose", ["a rose"], 3),
    "masks": ([PICTURE], PICTURE),
    "controlnet_images": (PICTURE, "canny.png", 3),  # the first lacks a control network
    "controlnet_scales": ([-1], 0.5),  # the last lacks a picture
    "controlnet_starts": ([1.5], 0.5),
    "controlnet_ends": ([1.5], 0.5),
    "controlnet_processors": (["hed"], "canny"),
    "mask_scales": ([1.0], 1.0),
    "clip_skip": (0, 4, 1.5),
    "clip_skip_2": (0, 5, -1),
    "tiled": ("no", 1),
    "tile_size": (1, 1025, 8.5, 16),  # the last is below the stride
    "tile_stride": (0, 65, 2.5),
    "perturbed_attention_scale": (-1, 101),
    "resolution_binning": ("yes",),
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in OUT_OF_RANGE.items() for value in values]
)
def test_a_value_that_makes_no_sense_is_refused_by_name(
    pipe: HunyuanDiTImagePipeline, name: str, value: object
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        pipe(**{"prompt": PROMPT, **SMALL, name: value})

    words = {"tile_size": "tile_stride", "denoising_strength": "input_image"}  # who is named instead
    assert name in str(caught.value) or words.get(name, name) in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cfg_scal": 3}, ["'cfg_scal'", "cfg_scale"]),
        ({"hieght": 3}, ["'hieght'", "height"]),
        ({"xyzzy": 3}, ["'xyzzy'", "Known are", "tile_stride"]),
        ({"cfg_scale": 3, "guidance_scale": 3}, ["cfg_scale is given twice", "guidance_scale"]),
        ({"seed": 3, "generator": torch.Generator()}, ["seed is given twice", "generator"]),
        ({"denoising_strength": 0.5}, ["denoising_strength 0.5", "input_image"]),
        ({**LOCAL, "masks": []}, ["1 local_prompts", "0 were given"]),
        ({**LOCAL, "mask_scales": [1.0, 2.0]}, ["2 numbers for 1 local_prompts"]),
        ({**LOCAL, "masks": ["mask.png"]}, ["masks must be a picture", "str"]),
        ({"scheduler": "eulr"}, ["'eulr'", "ddim", "dpm++2m"]),
        ({"num_inference_steps": 3, "input_image": PICTURE, "strength": 0.1, "scheduler": "ddpm"}, ["no step to run"]),
        ({"clip_skip": 9}, ["clip_skip is 9", "from 1", "to 3"]),
    ],
    ids=as_written,
)
def test_what_cannot_be_is_explained(pipe: HunyuanDiTImagePipeline, settings: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        pipe(PROMPT, **{**SMALL, **settings})

    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"guidance_scale": 3.0}, {"cfg_scale": 3.0}),
        ({"image": PICTURE}, {"input_image": PICTURE}),
        ({"image": PICTURE, "strength": 0.6}, {"input_image": PICTURE, "denoising_strength": 0.6}),
    ],
    ids=as_written,
)
def test_names_of_other_libraries_mean_the_same(
    pipe: HunyuanDiTImagePipeline, theirs: dict[str, Any], ours: dict[str, Any]
) -> None:
    assert pipe(PROMPT, **SMALL, **theirs).tobytes() == pipe(PROMPT, **SMALL, **ours).tobytes()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"negative_prompt": "panda", "cfg_scale": 1.0}, "negative prompt has no effect"),
        ({"guidance_rescale": 0.5, "cfg_scale": 1.0}, "guidance_rescale has no effect"),
        ({"tile_size": 32}, "tile_size and tile_stride have no effect"),
        ({"tile_stride": 16}, "tile_size and tile_stride have no effect"),
    ],
    ids=as_written,
)
def test_a_setting_that_another_one_turns_off_is_reported_once(
    pipe: HunyuanDiTImagePipeline, settings: dict[str, Any], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        pipe([PROMPT, OTHER_PROMPT], **SMALL, **settings)

    assert [words in record.getMessage() for record in caplog.records] == [True]


def test_the_usual_settings_are_reported_by_nothing(
    pipe: HunyuanDiTImagePipeline, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        pipe(PROMPT, negative_prompt="a rose", tiled=True, tile_size=8, tile_stride=4, guidance_rescale=0.5, **SMALL)

    assert not caplog.records


def test_numbers_of_numpy_are_numbers(pipe: HunyuanDiTImagePipeline) -> None:
    image = pipe(
        PROMPT, seed=np.int64(7), cfg_scale=np.float32(3), height=np.int32(64), width=96, num_inference_steps=2
    )

    assert image.tobytes() == pipe(PROMPT, **{**SMALL, "cfg_scale": 3.0}).tobytes()
    assert type(image.info["recipe"].request.height) is int

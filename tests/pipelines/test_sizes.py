"""Sizes: between multiples, moved to trained ones, taken from an input image; input images of other sizes and kinds."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from diffsynth import HunyuanDiTImagePipeline
from diffsynth.models.autoencoder_kl.model import Posterior
from diffsynth.pipelines.hunyuan_dit.conventions import conventions_named
from diffsynth.pipelines.hunyuan_dit.request import HunyuanDiTRequest

from .conftest import Load
from .toy import OTHER_PROMPT, PROMPT, largest_difference

FAST: dict[str, Any] = {"num_inference_steps": 1, "seed": 7}


def picture(width: int, height: int) -> Image.Image:
    """Return a picture without symmetry."""
    rows, columns = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([rows, columns, rows * columns % 256], -1).astype(np.uint8))


@pytest.mark.parametrize(
    ("conventions", "expected"), [("diffsynth", (80, 112)), ("original", (64, 96)), ("diffusers", (64, 96))]
)
def test_a_size_between_multiples_is_rounded_as_the_program_does(
    pipeline: Load, conventions: str, expected: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    pipe = pipeline("v1.0", conventions)

    with caplog.at_level(logging.WARNING):
        images = pipe([PROMPT, OTHER_PROMPT], height=66, width=111, resolution_binning=False, **FAST)

    assert images[0].size == expected[::-1]
    found = [record.getMessage() for record in caplog.records]
    assert found == [f"size 66 x 111 (height x width) becomes {expected[0]} x {expected[1]}"]
    request = images[0].info["recipe"].request
    assert (request.height, request.width) == expected


def test_a_size_that_fits_is_kept_in_silence(pipe: HunyuanDiTImagePipeline, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert pipe(PROMPT, height=16, width=112, **FAST).size == (112, 16)

    assert not caplog.records


@pytest.mark.parametrize("conventions", ["diffsynth", "original", "diffusers"])
def test_without_a_size_images_are_1024_pixels_wide_and_high(pipeline: Load, conventions: str) -> None:
    complete = pipeline("v1.2", conventions).complete(HunyuanDiTRequest(prompt=""))

    assert (complete.height, complete.width) == (1024, 1024)


@pytest.mark.parametrize(("binning", "expected"), [(None, (768, 1280)), (True, (768, 1280)), (False, (720, 1296))])
def test_the_conventions_of_diffusers_move_to_a_trained_size_unless_told_not_to(
    pipeline: Load, binning: bool | None, expected: tuple[int, int]
) -> None:
    wanted = HunyuanDiTRequest(prompt="", height=720, width=1300, resolution_binning=binning)

    complete = pipeline("v1.2", "diffusers").complete(wanted)

    assert (complete.height, complete.width) == expected


def test_an_input_image_fixes_the_size_unless_one_is_given(pipe: HunyuanDiTImagePipeline) -> None:
    image = picture(96, 64)

    assert pipe(PROMPT, input_image=image, strength=0.5, **FAST).size == (96, 64)
    assert pipe(PROMPT, input_image=image, strength=0.5, height=48, **FAST).size == (96, 48)


def test_an_input_image_of_another_size_is_resized_with_a_warning(
    pipe: HunyuanDiTImagePipeline, caplog: pytest.LogCaptureFixture
) -> None:
    image, settings = picture(150, 100), {"height": 64, "width": 96, "strength": 0.5, **FAST}

    with caplog.at_level(logging.WARNING):
        drawn = pipe(PROMPT, input_image=image, **settings)

    assert "the input image of 100 x 150 (height x width) is resized to 64 x 96" in caplog.text
    resized = image.resize((96, 64), Image.Resampling.LANCZOS)
    assert drawn.tobytes() == pipe(PROMPT, input_image=resized, **settings).tobytes()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white(pipe: HunyuanDiTImagePipeline, mode: str) -> None:
    layer = picture(96, 64).convert("RGBA")
    layer.putalpha(Image.new("L", layer.size, 0))
    image = layer.convert(mode)
    if mode == "P":
        image = Image.new("P", (96, 64), 3)
        image.info["transparency"] = 3

    drawn = pipe(PROMPT, input_image=image, strength=0.5, **FAST)

    white = Image.new("RGB", (96, 64), "white")
    assert drawn.tobytes() == pipe(PROMPT, input_image=white, strength=0.5, **FAST).tobytes()


@pytest.mark.parametrize("mode", ["L", "1", "CMYK"])
def test_pictures_of_other_kinds_are_read_as_colours(pipe: HunyuanDiTImagePipeline, mode: str) -> None:
    image = picture(96, 64).convert("L").convert(mode) if mode != "CMYK" else picture(96, 64).convert(mode)

    drawn = pipe(PROMPT, input_image=image, strength=0.5, **FAST)

    assert drawn.mode == "RGB"
    assert largest_difference(drawn, pipe(PROMPT, input_image=image.convert("RGB"), strength=0.5, **FAST)) == 0


def test_tiles_as_large_as_the_image_change_nothing_for_version_1_2(pipe: HunyuanDiTImagePipeline) -> None:
    settings = {"height": 64, "width": 96, **FAST}

    whole, tiled = pipe(PROMPT, **settings), pipe(PROMPT, tiled=True, **settings)

    assert whole.tobytes() == tiled.tobytes()


@pytest.mark.parametrize("size", [(64, 96), (80, 48), (16, 112)])
def test_small_tiles_draw_an_image_of_the_whole_size(pipe: HunyuanDiTImagePipeline, size: tuple[int, int]) -> None:
    height, width = size
    settings = {"height": height, "width": width, "tiled": True, "tile_size": 3, "tile_stride": 2, **FAST}

    image = pipe(PROMPT, input_image=picture(width, height), strength=0.5, **settings)

    assert image.size == (width, height)
    assert np.asarray(image).std() > 5


def test_version_1_0_is_told_the_size_of_a_tile_when_tiled(pipeline: Load) -> None:
    settings = {"height": 64, "width": 96, "cfg_scale": 1.0, **FAST}

    diffsynth = [pipeline("v1.0")(PROMPT, tiled=tiled, **settings) for tiled in (False, True)]
    original = [pipeline("v1.0", "original")(PROMPT, tiled=tiled, **settings) for tiled in (False, True)]

    assert diffsynth[0].tobytes() != diffsynth[1].tobytes()
    assert original[0].tobytes() == original[1].tobytes()


def test_the_size_condition_of_a_tiled_image_is_that_of_one_tile_in_pixels() -> None:
    assert conventions_named("diffsynth").image_meta_size(2048, 1536, 64) == (1024, 1024, 1024, 1024, 0, 0)
    assert conventions_named("diffsynth").image_meta_size(768, 1280, None) == (1280, 768, 1280, 768, 0, 0)
    assert conventions_named("original").image_meta_size(768, 1280, 64) == (1024, 1024, 1280, 768, 0, 0)
    assert conventions_named("diffusers").image_meta_size(768, 1280, 64) == (1024, 1024, 768, 1280, 0, 0)


def test_an_input_image_is_encoded_in_the_tiles_asked_for(
    pipe: HunyuanDiTImagePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []
    encode = pipe.vae.encode

    def watched(pixels: Tensor) -> Posterior:
        seen.append(tuple(pixels.shape[2:]))
        return encode(pixels)

    monkeypatch.setattr(pipe.vae, "encode", watched)
    settings = {"tiled": True, "tile_size": 4, "tile_stride": 2, "denoising_strength": 0.5, **FAST}

    pipe(PROMPT, input_image=Image.new("RGB", (64, 48)), height=48, width=64, **settings)

    assert seen == [(32, 32)] * 6

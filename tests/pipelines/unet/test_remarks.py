"""What users of UNet pipelines are told: idle settings, pictures that cannot be used, numbers that overflow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

from diffsynth import SDImagePipeline, SDXLImagePipeline
from diffsynth.errors import InvalidRequest, NonFiniteResult

from .conftest import Release
from .toy import PROMPT, draw, load

SMALL: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 1}
RED = Image.new("RGB", (64, 64), "red")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("sdxl", {"refiner_start": 0.5}, "refiner_start has no effect: the pipeline has no refiner"),
        ("sdxl", {"aesthetic_score": 9.0}, "aesthetic_score has no effect: only a refiner"),
        ("sdxl", {"negative_crop": (5, 5), "cfg_scale": 1.0}, "negative_crop has no effect: cfg_scale 1.0 turns"),
        ("sdxl-refiner", {"target_size": (64, 64)}, "target_size has no effect: a refiner that draws alone"),
        ("sdxl-refiner", {"clip_skip": 2}, "clip_skip has no effect: a refiner that draws alone"),
    ],
    ids=str,
)
def test_a_setting_without_effect_is_told_of(
    release: Release, caplog: pytest.LogCaptureFixture, name: str, settings: dict[str, Any], message: str
) -> None:
    pipe = load([release(name)], SDXLImagePipeline)

    pipe.remark(*(_request(pipe, settings) for _ in range(2)))
    told = caplog.text
    caplog.clear()
    pipe.remark(*(_request(pipe, {}) for _ in range(2)))

    assert message in told
    assert caplog.text == ""


def _request(pipe: SDXLImagePipeline, settings: dict[str, Any]) -> Any:
    return pipe.complete(pipe.request_type(prompt=PROMPT, height=64, width=64, **settings))


def test_a_mask_without_white_is_told_of(release: Release, caplog: pytest.LogCaptureFixture) -> None:
    pipe = load([release("sd15")], SDImagePipeline)

    draw(pipe, PROMPT, input_image=RED, mask_image=Image.new("L", (30, 50)), scheduler="ddim", **SMALL)

    assert "mask_image has no white part" in caplog.text


@pytest.mark.parametrize("name", ["input_image", "mask_image"])
def test_a_picture_without_pixels_is_refused(name: str) -> None:
    pictures: dict[str, Any] = {"input_image": RED, name: Image.new("RGB", (0, 3))}

    with pytest.raises(InvalidRequest, match=f"{name} has no pixels"):
        SDImagePipeline.request_type(prompt=PROMPT, **pictures)


def test_an_autoencoder_that_overflows_is_tried_in_float32_and_then_told_of(
    release: Release, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = load([release("sd15")], SDImagePipeline)
    weight = pipe.vae.decoder.conv_in.weight
    with torch.no_grad():
        weight.mul_(60000 / weight.abs().max())
    pipe.vae.half()

    image, _ = draw(pipe, PROMPT, **SMALL)
    assert "not a finite number in decoding the image; trying once more in float32" in caplog.text
    assert image.getextrema() != ((0, 0), (0, 0), (0, 0))

    weight.data.fill_(float("nan"))
    with pytest.raises(NonFiniteResult, match=r"decoding the image.*inspect --verify"):
        draw(pipe, PROMPT, **SMALL)

"""Pictures from anywhere: upright, in colours of 8 bits, and refused where nobody knows what is white."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffsynth.batch.pictures import digest_of
from diffsynth.errors import InvalidRequest
from diffsynth.pipelines.inpaint import mask_pixels
from diffsynth.pipelines.latents import region_mask, rgb_of_size
from diffsynth.pipelines.pictures import as_rgb, open_picture
from diffsynth.pipelines.recipe import request_json
from diffsynth.pipelines.sd.request import SDRequest
from tests.naming import as_written

RAMP = np.tile(np.arange(256, dtype=np.uint16), (16, 1))
DEPTH = Image.fromarray(RAMP * 257)  # as depth maps are kept


def test_sixteen_bits_are_brought_to_eight(tmp_path: Path) -> None:
    DEPTH.save(tmp_path / "depth.png")

    found = rgb_of_size(open_picture(tmp_path / "depth.png"), 16, 256)

    assert (np.asarray(found) == RAMP[..., None]).all()


def test_a_mask_of_sixteen_bits_is_that_of_eight() -> None:
    eight = as_rgb(DEPTH)

    assert (mask_pixels(DEPTH, 16, 256) == mask_pixels(eight, 16, 256)).all()
    assert (region_mask(DEPTH, 16, 256) == region_mask(eight, 16, 256)).all()


def test_pictures_of_sixteen_bits_are_told_apart() -> None:
    brighter = Image.fromarray(RAMP * 257 // 2 + 300)

    recipes = [request_json(SDRequest(prompt="", controlnet_images=(each,))) for each in (DEPTH, brighter)]

    assert digest_of(DEPTH) != digest_of(brighter)
    assert recipes[0] != recipes[1]


@pytest.mark.parametrize("mode", ["I", "F"])
@pytest.mark.parametrize("name", ["input_image", "controlnet_image"])
def test_values_without_a_known_white_are_refused(mode: str, name: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"{name}.* has values of 32 bits \(mode {mode}\)"):
        SDRequest.from_settings({"prompt": "", name: Image.new(mode, (8, 8))})


@pytest.mark.parametrize("damaged", [{}, {"exif": b"Exif\x00\x00nothing"}], ids=as_written)
def test_a_picture_of_a_turned_camera_is_turned_upright(tmp_path: Path, damaged: dict[str, Any]) -> None:
    turned = Image.new("RGB", (8, 16))
    exif = turned.getexif()
    exif[0x112] = 6
    turned.save(tmp_path / "turned.jpg", **{"exif": exif, **damaged})

    assert open_picture(tmp_path / "turned.jpg").size == ((8, 16) if damaged else (16, 8))

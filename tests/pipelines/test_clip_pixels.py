"""CLIP's view of a picture: that of the transformers library, and for HunyuanDiT that of a picture made square."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from diffsynth.pipelines.ip_adapter import MEAN, SPREAD, clip_pixels


def picture(width: int, height: int) -> Image.Image:
    noise = np.random.default_rng(width).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("size", [(224, 224), (300, 224), (301, 517), (640, 333), (31, 20)], ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_picture_is_seen_as_by_the_transformers_library(size: tuple[int, int], mode: str) -> None:
    transformers = pytest.importorskip("transformers")
    processor = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    image = picture(*size).convert(mode)

    expected = processor()(images=image, return_tensors="pt").pixel_values

    found = clip_pixels(image, 224, squashed=False)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected.float(), atol=1e-6, rtol=1e-6)


def test_a_picture_is_squashed_whole_for_hunyuan_dit() -> None:
    image = picture(120, 50)

    found = clip_pixels(image, 42, squashed=True)

    square = np.asarray(image.resize((42, 42), Image.Resampling.BICUBIC), dtype=np.float64) / 255
    expected = torch.from_numpy((square - MEAN) / SPREAD).permute(2, 0, 1)[None]
    torch.testing.assert_close(found, expected.float(), atol=1e-6, rtol=1e-6)


def test_transparency_is_laid_on_white() -> None:
    clear = Image.new("RGBA", (50, 60), (9, 9, 9, 0))

    assert torch.equal(
        clip_pixels(clear, 42, squashed=False), clip_pixels(Image.new("RGB", (50, 60), "white"), 42, squashed=False)
    )

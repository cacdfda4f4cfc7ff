"""What a user should know before an image is drawn: settings that are changed, or have no effect."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL.Image import Image

from diffsynth.pipelines.codec import Tiled
from diffsynth.pipelines.pictures import eight_bits
from diffsynth.pipelines.request import ImageRequest

logger = logging.getLogger(__name__)


def remark_size(request: ImageRequest, wanted: tuple[int, int], drawn: tuple[int | None, int | None]) -> None:
    """Tell when another size than wanted is drawn, or the input image is resized.

    Args:
        request: as it was given.
        wanted: height and width in pixels.
        drawn: height and width in pixels.
    """
    if drawn != wanted:
        logger.warning("size %d x %d (height x width) becomes %d x %d", *wanted, *drawn)
    image = request.input_image
    if image is not None and image.size != drawn[::-1]:
        sizes = (*image.size[::-1], *drawn)
        logger.warning("the input image of %d x %d (height x width) is resized to %d x %d", *sizes)


def remark_no_guidance(request: ImageRequest, cfg_scale: float | None, *, rescales: bool) -> None:
    """Tell what has no effect because a guidance weight turns guidance off.

    Args:
        request: as it was given.
        cfg_scale: the weight.
        rescales: whether ``guidance_rescale`` has an effect all the same.
    """
    off = f"cfg_scale {cfg_scale} turns guidance off"
    if request.negative_prompt:
        logger.warning("the negative prompt has no effect: %s", off)
    if request.guidance_rescale and not rescales:
        logger.warning("guidance_rescale has no effect: %s", off)


def remark_idle(request: ImageRequest, names: Sequence[str], why: str) -> None:
    """Tell which of some settings have no effect although they are not what is usual.

    Args:
        request: as it was given.
        names: of the settings.
        why: the reason, after "has no effect: ".
    """
    for name in names:
        if getattr(request, name) != request.settings()[name].default:
            logger.warning("%s has no effect: %s", name, why)


def remark_mask(mask: Image | None) -> None:
    """Tell when a mask has no white part, so that nothing is painted anew."""
    if mask is not None and np.asarray(eight_bits(mask).convert("L")).max() < 128:
        logger.warning("mask_image has no white part, so nothing of the input image is painted anew")


def remark_tiles(request: Tiled) -> None:
    """Tell when the sizes of tiles are given, but no tiles are asked for."""
    kind: Any = type(request)
    if not request.tiled and (request.tile_size, request.tile_stride) != (kind.tile_size, kind.tile_stride):
        logger.warning("tile_size and tile_stride have no effect without tiled=True")

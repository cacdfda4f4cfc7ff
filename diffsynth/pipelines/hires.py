"""The second stage of a picture that is drawn small, enlarged and drawn over, where the request asks for one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from PIL import Image
from torch import Tensor

from diffsynth.errors import InvalidRequest
from diffsynth.pipelines.latent_image import LatentImage
from diffsynth.pipelines.remarks import remark_idle
from diffsynth.pipelines.request import HIRES, HIRES_SIZES, ImageRequest, check_range
from diffsynth.schedulers.base import Scheduler

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=ImageRequest)
RoundSize = Callable[[int, int], tuple[int, int]]

OFF: dict[str, Any] = dict.fromkeys(HIRES)
STRENGTH, UPSCALE = 0.5, "pixel"


def complete(request: R, round_size: RoundSize) -> R:
    """Fill in what the second stage leaves open: its size, steps and strength; nothing if there is no such stage.

    Args:
        request: complete but for this.
        round_size: height and width in pixels → those that are drawn.

    Raises:
        InvalidRequest: the second stage is not larger than the first.
    """
    if not request.enlarges:
        return replace(request, **OFF)
    assert request.height is not None
    assert request.width is not None
    height, width = round_size(*wanted_size(request))
    if height < request.height or width < request.width or (height, width) == (request.height, request.width):
        raise InvalidRequest(
            f"the second stage, of hires_height {height} and hires_width {width}, is not larger than the first, "
            f"{request.height} x {request.width} (height x width); height and width are those of the first stage."
        )
    return replace(
        request,
        hires_scale=None,
        hires_height=height,
        hires_width=width,
        hires_strength=request.hires_strength or STRENGTH,
        hires_steps=request.hires_steps or request.num_inference_steps,
        hires_upscale=request.hires_upscale or UPSCALE,
    )


def wanted_size(request: ImageRequest) -> tuple[int, int]:
    """Return the height and width asked for; with one side alone the other keeps the shape of the first stage.

    Raises:
        InvalidRequest: they are out of range.
    """
    height, width = request.height, request.width
    assert height is not None
    assert width is not None
    if request.hires_scale is not None:
        size = round(height * request.hires_scale), round(width * request.hires_scale)
    else:
        size = (
            request.hires_height or round(height * (request.hires_width or width) / width),
            request.hires_width or round(width * (request.hires_height or height) / height),
        )
    for name, side in zip(("hires_height", "hires_width"), size, strict=True):
        check_range(name, side, 16, 16384, whole=True)
    return size


def remark(request: ImageRequest, finished: ImageRequest) -> None:
    """Tell when the second stage has another size than wanted, and when there is none for its other settings.

    Args:
        request: as it was given.
        finished: complete.
    """
    if finished.hires_height is None:
        idle = [name for name in HIRES if name not in HIRES_SIZES]
        remark_idle(request, idle, f"hires_scale {request.hires_scale} is no second stage")
        return
    wanted = wanted_size(replace(request, height=finished.height, width=finished.width))
    drawn = finished.hires_height, finished.hires_width
    if drawn != wanted:
        logger.warning("second stage: size %d x %d (height x width) becomes %d x %d", *wanted, *drawn)


def check(request: ImageRequest, scheduler: Scheduler) -> None:
    """Make sure that the second stage has steps to run, before the first is drawn.

    Raises:
        InvalidRequest: it has none.
    """
    if not request.enlarges:
        return
    steps = request.hires_steps or request.num_inference_steps
    strength = request.hires_strength or STRENGTH
    assert steps is not None
    try:
        scheduler.start(steps, denoising_strength=strength, draw_noise=no_noise)
    except InvalidRequest as error:
        raise InvalidRequest(
            f"the second stage, of hires_steps {steps} and hires_strength {strength}, cannot run: {error}"
        ) from error


def draw_over(request: R, draft: Image.Image | LatentImage) -> R:
    """Return the request of the second stage.

    Args:
        request: complete, as the first stage was drawn with it.
        draft: what the first stage gave; latents are enlarged here, a picture when it is encoded.
    """
    assert request.hires_height is not None
    assert request.hires_width is not None
    assert request.hires_strength is not None
    if isinstance(draft, LatentImage):
        draft = draft.resized(request.hires_height, request.hires_width)
    return replace(
        request,
        height=request.hires_height,
        width=request.hires_width,
        num_inference_steps=request.hires_steps,
        denoising_strength=request.hires_strength,
        input_image=draft,
        **OFF,
    )


def no_noise() -> Tensor:
    """Stand for noise in a run that takes no step."""
    raise AssertionError("noise is drawn by steps only")

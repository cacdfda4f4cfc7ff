"""Latents in a file: a safetensors file whose header holds the recipe they were drawn with."""

from __future__ import annotations

import json
import math
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from diffsynth.core.files import replacing
from diffsynth.errors import InvalidRequest, printable
from diffsynth.pipelines.latent_image import LatentImage
from diffsynth.pipelines.pictures import open_file
from diffsynth.pipelines.recipe import check_recipe, recipe_json

SUFFIX, TENSOR, HEADER = ".safetensors", "latents", "diffsynth_latents"
MOST_BYTES = 1_000_000_000


def save_latents(latents: LatentImage, path: str | PathLike[str]) -> Path:
    """Write latents with their recipe, so that another pipeline can go on with them later.

    Args:
        latents: what a pipeline drew with ``output_type="latent"``.
        path: the file, ending in .safetensors; replaced if it exists.

    Returns:
        The path.

    Raises:
        InvalidRequest: the path does not end in .safetensors.
        OSError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != SUFFIX:
        raise InvalidRequest(f"{printable(path, 300)} must end in {SUFFIX}: latents are kept in that format.")
    facts = {"downscale": latents.downscale, "latent_scale": latents.latent_scale, "recipe": recipe_json(latents)}
    content = save({TENSOR: latents.values.cpu().contiguous()}, metadata={HEADER: json.dumps(facts)})
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return path


def open_latents(path: str | PathLike[str]) -> LatentImage:
    """Read latents that ``save_latents`` wrote; their recipe is plain values then.

    Raises:
        InvalidRequest: the file holds something else, or was changed by hand.
        OSError: it cannot be read.
    """
    name = printable(path, 300)
    with open_file(path) as stream:
        content = stream.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise InvalidRequest(f"{name} is larger than latents are; at most {MOST_BYTES:,} bytes are read.")
    try:
        facts = _facts(content)
        values = load(content)[TENSOR]
        return _latents(values, facts)
    except (SafetensorError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise InvalidRequest(
            f"{name} holds no latents that diffsynth wrote: {printable(error, 200)}. "
            "Give a picture, or a file of save_latents."
        ) from error


def _facts(content: bytes) -> dict[str, Any]:
    """Return what the header says beside the tensors."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + min(size, 100_000_000)])
    facts = json.loads(header["__metadata__"][HEADER])
    check_recipe(facts["recipe"])
    return dict(facts)


def _latents(values: torch.Tensor, facts: dict[str, Any]) -> LatentImage:
    downscale, scale = facts["downscale"], float(facts["latent_scale"])
    if values.ndim != 3 or not values.numel() or values.dtype != torch.float32 or not values.isfinite().all():
        raise ValueError(f"its tensor is {values.dtype} of shape {tuple(values.shape)}, or not finite")
    if not isinstance(downscale, int) or not 0 < downscale <= 64 or not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"its downscale is {downscale} and its latent_scale {scale}")
    info = {"seed": facts["recipe"]["request"]["seed"], "recipe": facts["recipe"]}
    return LatentImage(values=values, downscale=downscale, latent_scale=scale, info=info)

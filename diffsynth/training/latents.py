"""Latents of all pictures, computed once and kept: in memory while training, in a file from one start to the next."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from diffsynth.core.checkpoint import open_checkpoint
from diffsynth.core.files import replacing
from diffsynth.errors import CheckpointError
from diffsynth.models.autoencoder_kl.model import AutoencoderKL
from diffsynth.training.buckets import Shape
from diffsynth.training.pictures import Batch, Pictures, to_pixels
from diffsynth.training.state import write_tensors

logger = logging.getLogger(__name__)

AT_ONCE = 8
FILE = "latents.safetensors"


class LatentStore:
    """Encodes the pictures of a run, unless a file has their latents.

    Args:
        vae: the autoencoder.
        vae_digest: hash of its weights.
        pictures: prepared data, which need not be kept in memory any longer.
        device: where to compute.
        folder: where the file is kept, or None.
    """

    def __init__(
        self, vae: AutoencoderKL, vae_digest: str, pictures: Pictures, device: torch.device, folder: Path | None
    ) -> None:
        self._texts = pictures.texts
        self._place: list[tuple[str, int]] = []
        members: dict[Shape, list[int]] = {}
        for number, shape in enumerate(pictures.shapes):
            inside = members.setdefault(shape, [])
            self._place.append((_key(shape), len(inside)))
            inside.append(number)
        wanted = {_key(shape): len(numbers) for shape, numbers in members.items()}
        content = hashlib.sha256(f"{pictures.prepared_digest} {vae_digest}".encode()).hexdigest()
        found = _read(folder, content, wanted)
        if found is None:
            found = {_key(shape): _encode(vae, pictures, numbers, device) for shape, numbers in members.items()}
            if folder is not None:
                with replacing(folder / FILE) as temporary:
                    write_tensors(temporary, found, {"content": content})
        self._latents = found
        pictures.forget()

    def batch(self, numbers: Sequence[int], epoch: int = 0) -> Batch:
        """Return the unscaled latents of pictures of one shape, in place of their pixels."""
        key = self._place[numbers[0]][0]
        rows = torch.tensor([self._place[number][1] for number in numbers])
        return Batch(tuple(numbers), self._latents[key][rows], tuple(self._texts[number] for number in numbers))


def _key(shape: Shape) -> str:
    return f"{shape.width}x{shape.height}"


@torch.no_grad()
def _encode(vae: AutoencoderKL, pictures: Pictures, numbers: Sequence[int], device: torch.device) -> Tensor:
    logger.info("encoding %d pictures", len(numbers))
    parts = []
    for start in range(0, len(numbers), AT_ONCE):
        pixels = pictures.batch(numbers[start : start + AT_ONCE]).pixels
        parts.append(vae.encode(to_pixels(pixels.to(device))).mean.float().cpu())
    return torch.cat(parts)


def _read(folder: Path | None, content: str, wanted: dict[str, int]) -> dict[str, Tensor] | None:
    """Return what a file holds, if it is of these pictures and this autoencoder."""
    if folder is None or not (folder / FILE).is_file():
        return None
    try:
        saved = open_checkpoint(folder / FILE, mmap=False)
    except CheckpointError as error:
        logger.warning("%s is made anew: it %s", folder / FILE, error.problem)
        return None
    if saved.metadata.get("content") != content or wanted != {key: saved.header[key].shape[0] for key in saved.header}:
        logger.info("%s belongs to other data or another autoencoder, and is made anew", folder / FILE)
        return None
    return {key: saved[key] for key in wanted}

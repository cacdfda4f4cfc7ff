"""Latents of all pictures, computed once and kept: in memory while training, in a file from one start to the next."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from diffsynth.core.checkpoint import open_checkpoint
from diffsynth.core.files import replacing
from diffsynth.errors import CheckpointError
from diffsynth.models.autoencoder_kl.model import AutoencoderKL
from diffsynth.training.buckets import Shape
from diffsynth.training.ensemble import Hint
from diffsynth.training.pictures import Batch, Pictures, to_pixels
from diffsynth.training.precision import computing_in
from diffsynth.training.state import write_tensors

logger = logging.getLogger(__name__)

AT_ONCE = 8
FILE = "latents.safetensors"
SECONDS_BETWEEN_LINES = 30


class LatentStore:
    """Encodes the pictures of a run, unless a file has their latents.

    Args:
        vae: the autoencoder.
        vae_digest: hash of its weights.
        pictures: prepared data, which need not be kept in memory any longer.
        precision: of the run, see `encode`.
        device: where to compute.
        folder: where the file is kept, or None.
        hint: what is shown of each picture besides, whose latents are kept too; None for nothing.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        vae_digest: str,
        pictures: Pictures,
        precision: str,
        device: torch.device,
        folder: Path | None,
        hint: Hint | None = None,
    ) -> None:
        self._texts, self._frames = pictures.texts, pictures.frames
        self._place: list[tuple[str, int]] = []
        members: dict[Shape, list[int]] = {}
        for number, shape in enumerate(pictures.shapes):
            inside = members.setdefault(shape, [])
            self._place.append((_key(shape), len(inside)))
            inside.append(number)
        ways = {"": None} | ({} if hint is None else {f"{hint.name} ": hint.of})
        wanted = {way + _key(shape): len(numbers) for way in ways for shape, numbers in members.items()}
        made = " ".join((pictures.prepared_digest, vae_digest, precision, *([] if hint is None else [hint.name])))
        content = hashlib.sha256(made.encode()).hexdigest()
        found = _read(folder, content, wanted)
        if found is None:
            found = {
                way + _key(shape): _encode_all(vae, pictures, numbers, precision, device, of)
                for way, of in ways.items()
                for shape, numbers in members.items()
            }
            if folder is not None:
                with replacing(folder / FILE) as temporary:
                    write_tensors(temporary, found, {"content": content})
        self._latents = found
        self._hint = "" if hint is None else f"{hint.name} "
        pictures.forget()

    def batch(self, numbers: Sequence[int], epoch: int = 0) -> Batch:
        """Return the unscaled latents of pictures of one shape, in place of their pixels."""
        key = self._place[numbers[0]][0]
        rows = torch.tensor([self._place[number][1] for number in numbers])
        texts = tuple(self._texts[number] for number in numbers)
        frames = tuple(self._frames[number] for number in numbers)
        hints = self._latents[self._hint + key][rows] if self._hint else None
        return Batch(tuple(numbers), self._latents[key][rows], texts, frames, hints)


def _key(shape: Shape) -> str:
    return f"{shape.width}x{shape.height}"


@torch.no_grad()
def encode(vae: AutoencoderKL, pixels: Tensor, precision: str) -> Tensor:
    """Return unscaled latents, the posterior's mean in float32, of (B, 3, H, W) uint8.

    They are computed in bfloat16 if that is the precision of the run, else in float32: float16 can overflow.
    """
    # An autocast of the step around this is switched off first; bfloat16 is then switched on again.
    inner = computing_in("bfloat16" if precision == "bfloat16" else "float32", pixels.device)
    with torch.autocast(pixels.device.type, enabled=False), inner:
        return vae.encode(to_pixels(pixels)).mean.float()


def _encode_all(
    vae: AutoencoderKL,
    pictures: Pictures,
    numbers: Sequence[int],
    precision: str,
    device: torch.device,
    of: Callable[[Tensor], Tensor] | None,
) -> Tensor:
    logger.info("encoding %s%d pictures", "hints of " if of else "", len(numbers))
    parts, told = [], time.monotonic()
    for start in range(0, len(numbers), AT_ONCE):
        pixels = pictures.batch(numbers[start : start + AT_ONCE]).pixels
        pixels = pixels if of is None else of(pixels)
        parts.append(encode(vae, pixels.to(device), precision).cpu())
        if time.monotonic() - told > SECONDS_BETWEEN_LINES:
            told = time.monotonic()
            logger.info("encoded %d of %d pictures", start + len(pixels), len(numbers))
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

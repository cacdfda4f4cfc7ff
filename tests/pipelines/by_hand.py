"""The other programs' loops written out plainly around the networks of other libraries, to compare whole images with.

Nothing here comes from the package but its weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sentencepiece import SentencePieceProcessor
from torch import Tensor

from diffsynth import HunyuanDiTImagePipeline

from .diffusers_parts import make_text_encoders, make_tokenizers, make_transformer, make_vae

LATENT_SCALE = 0.13025


@dataclass(frozen=True)
class Text:
    """One prompt's features and masks, a row each."""

    clip: Tensor
    clip_mask: Tensor
    t5: Tensor
    t5_mask: Tensor


class Parts:
    """Networks and tokenizers of Diffusers and transformers with the weights of a pipeline of ours."""

    def __init__(self, ours: HunyuanDiTImagePipeline) -> None:
        folder = ours.models[1].path.parent.parent
        self.words, _ = make_tokenizers(folder)
        self.pieces = SentencePieceProcessor(model_file=str(folder / "mt5" / "spiece.model"))
        self.bert, self.t5 = make_text_encoders(ours)
        self.transformer, self.vae = make_transformer(ours), make_vae(ours)
        self.config = ours.denoiser.config

    @torch.no_grad()
    def read(self, prompt: str, clip_skip: int = 1, clip_skip_2: int = 1) -> Text:
        """Return the features of a prompt."""
        words = self.words([prompt], max_length=self.config.text_len, truncation=True).input_ids[0]
        pieces = [*self.pieces.encode(prompt)[: self.config.t5_len - 1], self.pieces.eos_id()]
        clip, clip_mask = _states(self.bert, words, self.config.text_len, clip_skip)
        t5, t5_mask = _states(self.t5, pieces, self.config.t5_len, clip_skip_2)
        return Text(clip, clip_mask, t5, t5_mask)

    @torch.no_grad()
    def velocity(
        self, latents: Tensor, timestep: float, text: Text, rope: tuple[Tensor, Tensor], meta: Sequence[int]
    ) -> Tensor:
        """Ask the denoiser about one image."""
        (prediction,) = self.transformer(
            latents,
            torch.tensor([float(timestep)]),
            encoder_hidden_states=text.clip,
            text_embedding_mask=text.clip_mask,
            encoder_hidden_states_t5=text.t5,
            text_embedding_mask_t5=text.t5_mask,
            image_meta_size=torch.tensor([meta], dtype=torch.float32),
            style=torch.zeros(1, dtype=torch.int64),
            image_rotary_emb=rope,
            return_dict=False,
        )
        kept: Tensor = prediction[:, : self.config.in_channels]
        return kept

    @torch.no_grad()
    def pixels(self, latents: Tensor, norm_out_eps: float = 1e-6) -> NDArray[np.float32]:
        """Decode one image to (H, W, 3) values from 0 to 255, not yet whole numbers."""
        norm = self.vae.decoder.conv_norm_out
        norm.eps, eps = norm_out_eps, norm.eps
        decoded = self.vae.decode(latents / LATENT_SCALE).sample[0]
        norm.eps = eps
        numbers: NDArray[np.float32] = ((decoded / 2 + 0.5).clamp(0, 1) * 255).permute(1, 2, 0).numpy()
        return numbers

    @torch.no_grad()
    def mean_latents(self, image: Image.Image) -> Tensor:
        """Encode an image, without drawing from the distribution."""
        mean: Tensor = self.vae.encode(pixels_of(image)).latent_dist.mean
        return mean * LATENT_SCALE


def _states(encoder: Any, tokens: list[int], length: int, skip: int) -> tuple[Tensor, Tensor]:
    ids, mask = torch.zeros(1, length, dtype=torch.int64), torch.zeros(1, length, dtype=torch.int64)
    ids[0, : len(tokens)], mask[0, : len(tokens)] = torch.tensor(tokens), 1
    states = encoder(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    last, taken = states[-1], states[-skip]
    if skip > 1:
        taken = (taken - taken.mean()) / taken.std() * last.std() + last.mean()
    return taken, mask


def pixels_of(image: Image.Image) -> Tensor:
    """Return an RGB image as (1, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(image, dtype=np.float32) * (2 / 255) - 1).permute(2, 0, 1)[None]


def rotary_tables(height: int, width: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of an image in pixels, as the network was trained with."""
    rows, columns, base = height // 16, width // 16, 32
    upright = rows / columns > 1
    fitted = (base, round(base / rows * columns)) if upright else (round(base / columns * rows), base)
    starts = tuple(round((base - side) / 2) for side in fitted)
    y = np.linspace(starts[0], starts[0] + fitted[0], rows, endpoint=False, dtype=np.float32)
    x = np.linspace(starts[1], starts[1] + fitted[1], columns, endpoint=False, dtype=np.float32)
    planes = np.meshgrid(x, y)
    frequencies = 10000.0 ** (-np.arange(0, head_dim // 2, 2, dtype=np.float32) / (head_dim // 2))
    angles = np.concatenate(
        [np.repeat(plane.reshape(-1, 1) * frequencies, 2, axis=1) for plane in planes], axis=1
    ).astype(np.float32)
    return torch.from_numpy(np.cos(angles)), torch.from_numpy(np.sin(angles))


def alphas_cumprod(beta_end: float) -> list[float]:
    """Return the share of the clean image's variance at every training timestep."""
    betas = torch.linspace(math.sqrt(0.00085), math.sqrt(beta_end), 1000, dtype=torch.float32).square()
    return list(torch.cumprod(1 - betas, dim=0).tolist())


def noise(seed: int, height: int, width: int) -> Tensor:
    """Return the first noise of a seed for an image in pixels."""
    return torch.randn((1, 4, height // 8, width // 8), generator=torch.Generator().manual_seed(seed))

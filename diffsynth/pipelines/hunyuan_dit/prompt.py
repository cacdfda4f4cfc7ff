"""Prompts → features: both text encoders with their tokenizers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffsynth.core.loaded import LoadedModel
from diffsynth.errors import CheckpointError, InvalidRequest, printable
from diffsynth.models.bert_clip.model import BertClip
from diffsynth.models.hunyuan_dit.condition import TextFeatures
from diffsynth.models.mt5.model import MT5Encoder
from diffsynth.tokenizers.base import Tokenizer, check_fits
from diffsynth.tokenizers.locate import locate_vocabulary
from diffsynth.tokenizers.sentencepiece import SentencePieceTokenizer
from diffsynth.tokenizers.wordpiece import WordPieceTokenizer

logger = logging.getLogger(__name__)

ROWS_AT_ONCE = 8


@dataclass(frozen=True, kw_only=True)
class HunyuanDiTPromptEncoder:
    """Turns prompts into what the denoiser is conditioned on."""

    clip: BertClip
    clip_tokenizer: Tokenizer
    t5: MT5Encoder
    t5_tokenizer: Tokenizer

    def __call__(self, prompts: Sequence[str], *, clip_skip: int = 1, clip_skip_2: int = 1) -> TextFeatures:
        """Encode prompts; what does not fit into the encoders' lengths is reported as a warning.

        Args:
            prompts: B texts.
            clip_skip: layer of the CLIP encoder, from the end.
            clip_skip_2: layer of the mT5 encoder, from the end.

        Returns:
            Features of B rows, on the encoders' device.

        Raises:
            InvalidRequest: an encoder has no such layer.
        """
        for name, skip, encoder in (("clip_skip", clip_skip, self.clip), ("clip_skip_2", clip_skip_2, self.t5)):
            layers = encoder.config.num_layers
            if not 1 <= skip <= layers:
                raise InvalidRequest(f"{name} is {skip}; it must be from 1, the last layer, to {layers}, the first.")
        clip, clip_mask = _encode(self.clip, self.clip_tokenizer, prompts, clip_skip)
        t5, t5_mask = _encode(self.t5, self.t5_tokenizer, prompts, clip_skip_2)
        return TextFeatures(clip, clip_mask, t5, t5_mask)


def _encode(
    encoder: BertClip | MT5Encoder, tokenizer: Tokenizer, prompts: Sequence[str], skip: int
) -> tuple[Tensor, Tensor]:
    tokens = tokenizer(prompts)
    for prompt, lost in zip(prompts, tokens.lost, strict=True):
        if lost:
            name = type(encoder).__name__
            told = name, tokenizer.max_length, printable(prompt, 200), printable(lost, 200)
            logger.warning("%s reads %d tokens; of '%s' it does not see '%s'", *told)
    device = next(encoder.parameters()).device
    ids, mask = tokens.ids.to(device), tokens.mask.to(device)
    parts = [slice(start, start + ROWS_AT_ONCE) for start in range(0, len(ids), ROWS_AT_ONCE)]
    return torch.cat([encoder(ids[part], mask[part], clip_skip=skip) for part in parts]), mask


def clip_tokenizer_for(entry: LoadedModel[Any], path: str | PathLike[str] | None, length: int) -> Tokenizer:
    """Find the vocabulary of the CLIP text encoder.

    Args:
        entry: the loaded encoder.
        path: the vocabulary or its folder, or None to look near the encoder's file.
        length: tokens per prompt.

    Raises:
        TokenizerNotFound: it is nowhere.
        CheckpointError: it is not the encoder's.
    """
    found = locate_vocabulary("wordpiece", entry.path, None if path is None else Path(path))
    tokenizer = WordPieceTokenizer(found, length)
    check_fits(tokenizer, entry.config.vocab_size)
    return tokenizer


def t5_tokenizer_for(entry: LoadedModel[Any], path: str | PathLike[str] | None, length: int) -> Tokenizer:
    """Find the vocabulary of the mT5 encoder: given, inside its checkpoint, or near it.

    Args:
        entry: the loaded encoder.
        path: the sentencepiece model or its folder, or None to look for it.
        length: tokens per prompt.

    Raises:
        TokenizerNotFound: it is nowhere.
        CheckpointError: it is not the encoder's.
    """
    inside = [key for key in entry.found.keys if key.endswith("spiece_model")]
    if path is None and inside:
        source = f"{entry.path}/{inside[0]}"
        tokenizer = SentencePieceTokenizer(_bytes_in(entry, inside[0]), length, source=source)
    else:
        found = locate_vocabulary("sentencepiece", entry.path, None if path is None else Path(path))
        tokenizer = SentencePieceTokenizer(found, length)
    check_fits(tokenizer, entry.config.vocab_size)
    return tokenizer


def _bytes_in(entry: LoadedModel[Any], key: str) -> bytes:
    tensor = entry.checkpoint[key]
    if tensor.dtype != torch.uint8 or tensor.dim() != 1:
        raise CheckpointError(
            entry.path,
            f"{printable(key, 120)} should be a sentencepiece model, one uint8 per byte, but is {tensor.dtype} of "
            f"shape {tuple(tensor.shape)}",
            "Give the file spiece.model of the release as t5_tokenizer= (--t5-tokenizer).",
        )
    return tensor.numpy().tobytes()

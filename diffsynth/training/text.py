"""Captions → features, for training: both text encoders, learning or frozen, and their tokenizers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from diffsynth.models.bert_clip.model import BertClip
from diffsynth.models.hunyuan_dit.condition import TextFeatures
from diffsynth.models.mt5.model import MT5Encoder
from diffsynth.tokenizers.base import Tokenizer

logger = logging.getLogger(__name__)

ROWS_AT_ONCE = 32
MOST_TEXTS = 200_000  # whose token ids are remembered

Row = tuple[Tensor, Tensor]  # ids and mask, or features and mask, of one text


class TextSide:
    """One text encoder with its tokenizer.

    Args:
        encoder: the network.
        tokenizer: makes all rows of one length.
    """

    def __init__(self, encoder: BertClip | MT5Encoder, tokenizer: Tokenizer) -> None:
        self.encoder, self.tokenizer = encoder, tokenizer
        self._tokens: dict[str, Row] = {}
        self._features: dict[str, Row] = {}
        self._warned = False

    @property
    def size(self) -> int:
        """Features of a token."""
        encoder = self.encoder
        return encoder.config.hidden_size if isinstance(encoder, BertClip) else encoder.config.d_model

    def __call__(self, texts: Sequence[str], device: torch.device) -> Row:
        """Return features (B, L, size) and mask (B, L) of texts; equal texts are encoded once."""
        distinct = sorted(set(texts))
        rows = torch.tensor([distinct.index(text) for text in texts], device=device)
        if self._features.keys() >= set(distinct):
            features = torch.stack([self._features[text][0] for text in distinct]).to(device)
            mask = torch.stack([self._features[text][1] for text in distinct]).to(device)
        else:
            ids, mask = (each.to(device) for each in self._tokenize(distinct))
            features = self.encoder(ids, mask)
        return features[rows], mask[rows]

    @torch.no_grad()
    def keep(self, texts: Sequence[str], device: torch.device) -> None:
        """Encode texts once and keep their features on the CPU, for an encoder that does not learn."""
        ordered = sorted(set(texts))
        for start in range(0, len(ordered), ROWS_AT_ONCE):
            part = ordered[start : start + ROWS_AT_ONCE]
            ids, mask = self._tokenize(part)
            features = self.encoder(ids.to(device), mask.to(device)).cpu()
            self._features.update(zip(part, zip(features.clone(), mask.clone(), strict=True), strict=True))

    def _tokenize(self, texts: Sequence[str]) -> Row:
        if missing := [text for text in texts if text not in self._tokens]:
            if len(self._tokens) > MOST_TEXTS:
                self._tokens.clear()
                missing = list(texts)
            tokens = self.tokenizer(missing)
            for text, lost in zip(missing, tokens.lost, strict=True):
                if lost:
                    level = logging.DEBUG if self._warned else logging.WARNING
                    logger.log(level, "captions are cut: of %r, %r does not fit", text, lost)
                    self._warned = True
            self._tokens.update(zip(missing, zip(tokens.ids, tokens.mask, strict=True), strict=True))
        ids, masks = zip(*(self._tokens[text] for text in texts), strict=True)
        return torch.stack(ids), torch.stack(masks)


@dataclass(frozen=True)
class TextEncoders:
    """Both sides together.

    Args:
        clip: the bilingual CLIP.
        t5: mT5.
        learning: whether they learn.
        vocabularies: files to copy beside saved encoders, by folder.
    """

    clip: TextSide
    t5: TextSide
    learning: bool
    vocabularies: dict[str, Path] = field(default_factory=dict)

    def __call__(self, texts: Sequence[str], device: torch.device) -> TextFeatures:
        """Return the features of B texts."""
        with torch.set_grad_enabled(self.learning and torch.is_grad_enabled()):
            return TextFeatures(*self.clip(texts, device), *self.t5(texts, device))

    def keep(self, texts: Sequence[str], device: torch.device, megabytes: int) -> bool:
        """Keep the features of texts, if the encoders are frozen and there is room; return whether they are kept."""
        if self.learning:
            return False
        each = sum(side.tokenizer.max_length * side.size * 4 for side in (self.clip, self.t5))
        if len(set(texts)) * each > megabytes * 10**6:
            logger.info("text features of %d captions need too much memory; encoded as they are used", len(set(texts)))
            return False
        for side in (self.clip, self.t5):
            side.keep(texts, device)
        return True

    def modules(self) -> dict[str, nn.Module]:
        """Return the networks by name."""
        return {"clip": self.clip.encoder, "t5": self.t5.encoder}

"""Prompts → features of CLIP's text encoders: long prompts, weights of words, textual inversion."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffsynth.core.loaded import LoadedModel
from diffsynth.errors import CheckpointError, InvalidRequest, printable
from diffsynth.models.clip.model import ClipFeatures, ClipText
from diffsynth.pipelines.prompt_weights import weighted_spans
from diffsynth.tokenizers.base import check_fits, whole
from diffsynth.tokenizers.clip import END, ClipTokenizer
from diffsynth.tokenizers.locate import locate_vocabulary

logger = logging.getLogger(__name__)

BANG = "!"  # the padding of SDXL's second encoder, and of the refiner's only one


@dataclass(frozen=True)
class Tokens:
    """The tokens of a prompt, without marks, each with its weight."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]

    @property
    def weighted(self) -> bool:
        """Whether any weight is not 1."""
        return any(weight != 1 for weight in self.weights)


@dataclass(kw_only=True, eq=False)
class ClipReader:
    """A text encoder with its tokenizer, and how its features are taken.

    Args:
        name: of the encoder, for messages.
        encoder: the network.
        tokenizer: its tokenizer.
        final_norm: whether features go through the norm at the end of the network.
        first_layer: the layer, counted from the end, that ``clip_skip`` 1 means.
        words: words of textual inversions → the ids of their tokens.
        learned: (n, hidden_size), embeddings of these tokens; None if there are none.
    """

    name: str
    encoder: ClipText
    tokenizer: ClipTokenizer
    final_norm: bool = True
    first_layer: int = 1
    words: dict[str, tuple[int, ...]] = field(default_factory=dict)
    learned: Tensor | None = None

    def __call__(self, prompt: str, *, clip_skip: int, long_prompts: str) -> ClipFeatures:
        """Encode a prompt.

        Args:
            prompt: the text; ``(words:1.2)`` gives words a weight.
            clip_skip: which layer's features, from the end.
            long_prompts: what becomes of a prompt that is longer than the encoder reads. "cut" leaves the rest out,
                with a warning. "chunks" encodes 75 tokens at a time, each chunk between a start and an end mark.
                "blocks" cuts the whole row, marks included, into blocks of 77, as DiffSynth 1.x does.

        Returns:
            (1, L, hidden_size) with L a multiple of the encoder's length, and the pooled features of the first part.

        Raises:
            InvalidRequest: there is no such layer.
        """
        last = self.encoder.config.num_layers - self.first_layer + 1
        if not 1 <= clip_skip <= last:
            raise InvalidRequest(f"the clip skip of {self.name} is {clip_skip}; it must be from 1 to {last}.")
        tokens = self.tokens(prompt)
        ids, weights = self._rows(tokens, prompt, long_prompts)
        found = self.encoder(
            ids.to(next(self.encoder.parameters()).device),
            clip_skip=clip_skip + self.first_layer - 1,
            final_norm=self.final_norm,
            extra_tokens=self.learned,
        )
        hidden = found.hidden.flatten(0, 1)[None]  # (1, chunks * 77, hidden)
        if tokens.weighted:
            hidden = _weigh(hidden, weights)
        return ClipFeatures(hidden, None if found.pooled is None else found.pooled[:1])

    def tokens(self, prompt: str) -> Tokens:
        """Return all tokens of a prompt; words of textual inversions become theirs."""
        ids: list[int] = []
        weights: list[float] = []
        for span in weighted_spans(whole(prompt)):
            for part in self._split(span.text):
                found = self.words[part] if part in self.words else self.tokenizer.encode(part)
                ids += found
                weights += [span.weight] * len(found)
        return Tokens(tuple(ids), tuple(weights))

    def learn(self, word: str, embeddings: Tensor) -> None:
        """Give a word embeddings of its own.

        Args:
            word: how it is written in prompts.
            embeddings: (n, hidden_size).
        """
        first = self.encoder.config.vocab_size + (0 if self.learned is None else len(self.learned))
        added = embeddings.to(next(self.encoder.parameters()))
        self.learned = added if self.learned is None else torch.cat([self.learned, added])
        self.words[word] = tuple(range(first, first + len(added)))

    def _split(self, text: str) -> list[str]:
        if not self.words:
            return [text]
        longest_first = sorted(self.words, key=len, reverse=True)
        pattern = "|".join(rf"(?<!\w){re.escape(word)}(?!\w)" for word in longest_first)
        return [part for part in re.split(f"({pattern})", text) if part]

    def _rows(self, tokens: Tokens, prompt: str, long_prompts: str) -> tuple[Tensor, Tensor]:
        """Return ids and weights, each (rows, 77)."""
        length, marks = self.tokenizer.max_length, self.tokenizer.marks
        (start,), (end,) = marks.before, marks.after
        room = length - 2
        ids, weights = list(tokens.ids), list(tokens.weights)
        if long_prompts == "blocks":
            ids, weights = [start, *ids, end], [1.0, *weights, 1.0]
            parts = [(ids[at : at + length], weights[at : at + length]) for at in range(0, len(ids), length)]
        else:
            if long_prompts == "cut" and len(ids) > room:
                lost = self.tokenizer.tail(prompt, room) if not (self.words or tokens.weighted) else "its end"
                told = self.name, length, printable(prompt, 200), printable(lost.strip(), 200)
                logger.warning("%s reads %d tokens; of '%s' it does not see '%s'", *told)
                ids, weights = ids[:room], weights[:room]
            parts = [
                ([start, *ids[at : at + room], end], [1.0, *weights[at : at + room], 1.0])
                for at in range(0, max(len(ids), 1), room)
            ]
        padded = [each + [marks.padding] * (length - len(each)) for each, _ in parts]
        return torch.tensor(padded), torch.tensor([each + [1.0] * (length - len(each)) for _, each in parts])


def _weigh(hidden: Tensor, weights: Tensor) -> Tensor:
    """Multiply the features of each token by its weight, and all so that their mean stays what it was."""
    values = hidden.float()
    weighed = values * weights.flatten().to(values)[None, :, None]
    return (weighed * (values.mean() / weighed.mean())).to(hidden.dtype)


def tokenizer_for(entry: LoadedModel[Any], path: str | PathLike[str] | None, *, padding: str = END) -> ClipTokenizer:
    """Find the vocabulary of a text encoder.

    Args:
        entry: the loaded encoder.
        path: the vocabulary or its folder, or None to look near the encoder's file.
        padding: the token that fills a row up.

    Raises:
        TokenizerNotFound: it is nowhere.
        CheckpointError: it is not the encoder's.
    """
    found = locate_vocabulary("bpe", entry.path, None if path is None else Path(path))
    tokenizer = ClipTokenizer(found, entry.config.max_positions, padding=padding)
    check_fits(tokenizer, entry.config.vocab_size)
    return tokenizer


def learn_from(readers: Sequence[ClipReader], tensors: dict[str, Tensor], path: Path, word: str | None) -> str:
    """Take the embeddings of a textual inversion, for every encoder of their width.

    Args:
        readers: the encoders of a pipeline.
        tensors: of the file.
        path: of the file, for messages and the usual word.
        word: how it is written in prompts; None takes the file's own name for it, else the file's name.

    Returns:
        The word.

    Raises:
        CheckpointError: an encoder finds no embeddings of its width, or several.
    """
    named = [key for key in tensors if key.startswith("<") and key.endswith(">")]
    word = word or (named[0] if len(tensors) == 1 and named else path.stem)
    chosen: list[tuple[ClipReader, Tensor]] = []
    for reader in readers:
        width = reader.encoder.config.hidden_size
        tables = [
            each.reshape(-1, width) for each in tensors.values() if each.ndim in (1, 2) and each.shape[-1] == width
        ]
        if len(tables) != 1:
            raise CheckpointError(
                path,
                f"should hold one table of embeddings of width {width} for {reader.name}, but holds {len(tables)}",
                "It was made for another kind of model.",
            )
        chosen.append((reader, tables[0]))
    for reader, table in chosen:
        reader.learn(word, table)
    return word

"""What every tokenizer gives, and the steps all share: cut to length, report what was cut, pad."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from diffsynth.errors import CheckpointError, InvalidRequest

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tokenized:
    """Texts as token ids, ready for a text encoder.

    Args:
        ids: (B, L) int64, padded on the right.
        mask: (B, L) bool, True for a real token, the marks around a text included.
        lost: for each text the part that did not fit into L tokens, as readable words, or "".
    """

    ids: Tensor
    mask: Tensor
    lost: tuple[str, ...]


@dataclass(frozen=True)
class Marks:
    """Ids that frame a text.

    Args:
        before: put before every text.
        after: put after every text, however long it is.
        padding: fills a row up.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    padding: int


class Tokenizer(ABC):
    """Text to token ids of one length.

    A text is only text: the spelling of a mark, such as ``[SEP]`` or ``</s>``, typed into a prompt
    is taken letter by letter and never becomes the mark, so no prompt can end itself early.

    The vocabulary is read on first use, once per process for each file.

    Args:
        source: the vocabulary's file, or a name for it, for messages.
        max_length: tokens per text, marks included.
    """

    def __init__(self, source: str | PathLike[str], max_length: int) -> None:
        if max_length < 2:
            raise ValueError(f"max_length is {max_length}, but the marks around a text need up to 2 tokens")
        self.source = Path(source)
        self.max_length = max_length

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of tokens in the vocabulary; every id is smaller."""

    @property
    @abstractmethod
    def marks(self) -> Marks:
        """The ids that frame a text."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return all tokens of a text, without marks."""

    @abstractmethod
    def tail(self, text: str, start: int) -> str:
        """Return the readable part of a text that its tokens from index ``start`` on stand for."""

    def __call__(self, texts: Sequence[str]) -> Tokenized:
        """Tokenize texts, each to ``max_length`` tokens; one that is too long is cut before its closing marks.

        Raises:
            TypeError: if ``texts`` is a single text, or holds something else than texts.
            InvalidRequest: if a text holds half of a character (a lone surrogate).
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise TypeError("texts must be a list of str, neither a single str nor other objects")
        marks = self.marks
        room = self.max_length - len(marks.before) - len(marks.after)
        ids = torch.full((len(texts), self.max_length), marks.padding, dtype=torch.int64)
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        lost = []
        for row, text in enumerate(texts):
            tokens = self.encode(whole(text))
            lost.append(self.tail(text, room).strip() if len(tokens) > room else "")
            framed = (*marks.before, *tokens[:room], *marks.after)
            ids[row, : len(framed)] = torch.tensor(framed)
            mask[row, : len(framed)] = True
        return Tokenized(ids, mask, tuple(lost))


def whole(text: str, name: str = "the prompt") -> str:
    """Return the text; raise InvalidRequest if it cannot be written as UTF-8, which no tokenizer survives.

    Args:
        text: to be encoded.
        name: of it, for the message.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"{name} holds half of a character (U+{ord(text[error.start]):04X}) at position {error.start}. "
            "It was probably read with the wrong encoding; read it as UTF-8."
        ) from error
    return text


def check_fits(tokenizer: Tokenizer, rows: int) -> None:
    """Make sure, before the first prompt, that a vocabulary is one and a text encoder knows all its tokens.

    A vocabulary that is much smaller than the encoder's table works, but is probably that of
    another network, so it is logged as a warning.

    Args:
        tokenizer: the tokenizer.
        rows: number of rows of the text encoder's embedding.

    Raises:
        CorruptCheckpoint: if the file is no vocabulary.
        CheckpointError: if the vocabulary has more tokens than there are rows.
    """
    tokenizer.marks  # noqa: B018 - looks for them, and raises if they are missing
    if tokenizer.size > rows:
        raise CheckpointError(
            tokenizer.source,
            f"the vocabulary has {tokenizer.size} tokens, but the text encoder's embedding has {rows} rows",
            "Use the vocabulary that came with the text encoder.",
        )
    if tokenizer.size < 0.9 * rows:
        logger.warning(
            "%s has %d tokens, far fewer than the %d rows of the text encoder's embedding; is it another's vocabulary?",
            tokenizer.source,
            tokenizer.size,
            rows,
        )

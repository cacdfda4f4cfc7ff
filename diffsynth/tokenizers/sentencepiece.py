"""SentencePiece, the tokenizer of T5 (arXiv 1808.06226), on the library of that name.

Transformers converts such a model at every start, which is slower, and its result gives "unknown"
for rare characters that the library itself spells in bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, lru_cache
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from diffsynth.errors import CorruptCheckpoint, printable
from diffsynth.tokenizers.base import Marks, Tokenizer
from diffsynth.tokenizers.locate import locate_vocabulary

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor


class SentencePieceTokenizer(Tokenizer):
    """T5's tokenizer: pieces of the text, then ``</s>``.

    Args:
        model: the model's file, a folder with such a file, or the bytes of one, as checkpoints that hold
            everything carry them.
        max_length: tokens per text, the closing mark included.
        source: what messages call a model that is given as bytes.

    Raises:
        TokenizerNotFound: if there is no such file.
    """

    def __init__(
        self,
        model: str | PathLike[str] | bytes,
        max_length: int = 256,
        *,
        source: str = "(sentencepiece model in memory)",
    ) -> None:
        self._content = model if isinstance(model, bytes) else None
        if isinstance(model, bytes):
            super().__init__(source, max_length)
        else:
            super().__init__(locate_vocabulary("sentencepiece", Path(model), explicit=Path(model)), max_length)

    @property
    def size(self) -> int:
        """Number of tokens in the vocabulary; every id is smaller."""
        return int(self._backend.get_piece_size())

    @cached_property
    def marks(self) -> Marks:
        """``</s>`` after a text and ``<pad>`` to fill up, wherever the model has them; nothing before."""
        end, padding = self._backend.eos_id(), self._backend.pad_id()
        if end < 0 or padding < 0:
            raise CorruptCheckpoint(
                self.source,
                f"is no T5 vocabulary, since it has no {'end' if end < 0 else 'padding'} token among its {self.size}",
            )
        return Marks(before=(), after=(end,), padding=padding)

    def encode(self, text: str) -> list[int]:
        """Return all tokens of a text, without marks."""
        with self._whole():
            return list(self._backend.encode(text))

    def tail(self, text: str, start: int) -> str:
        """Return what the tokens from ``start`` on spell: the text after the model's own clean-up."""
        with self._whole():
            return str(self._backend.decode(self.encode(text)[start:]))

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Raise CorruptCheckpoint where a damaged model, which may still load, breaks off."""
        try:
            yield
        except (UnicodeDecodeError, RuntimeError) as error:
            raise CorruptCheckpoint(
                self.source, f"is a damaged sentencepiece model: {printable(error, 200)}", "Fetch the file again."
            ) from error

    @cached_property
    def _backend(self) -> SentencePieceProcessor:
        return load(self.source, self.source.read_bytes() if self._content is None else self._content)


@lru_cache(maxsize=4)
def load(source: Path, content: bytes) -> SentencePieceProcessor:
    """Build the processor from a model's bytes; once for the same bytes. ``source`` is for the message."""
    from sentencepiece import SentencePieceProcessor

    problem = f"is no sentencepiece model ({len(content)} bytes)"
    if not content:
        raise CorruptCheckpoint(source, problem)
    try:
        return SentencePieceProcessor(model_proto=content)
    except (RuntimeError, UnicodeDecodeError) as error:  # the latter: a message that quotes the damage
        raise CorruptCheckpoint(source, problem, "Fetch the file again.") from error

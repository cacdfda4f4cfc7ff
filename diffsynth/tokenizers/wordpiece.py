"""WordPiece, the tokenizer of BERT (arXiv 1810.04805), on the tokenizers library."""

from __future__ import annotations

from functools import cached_property, lru_cache
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from diffsynth.errors import CorruptCheckpoint, listed
from diffsynth.tokenizers.base import Marks, Tokenizer
from diffsynth.tokenizers.locate import locate_vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

PADDING, UNKNOWN, START, END = "[PAD]", "[UNK]", "[CLS]", "[SEP]"


class WordPieceTokenizer(Tokenizer):
    """BERT's tokenizer as Chinese and English encoders use it.

    Text is lower-cased and loses its accents, each Chinese character is a word, and words are
    split into the longest pieces of the vocabulary. A text becomes ``[CLS] pieces [SEP]``.

    Args:
        path: a file with one token per line, or a folder with such a file under the name vocab.txt.
        max_length: tokens per text, both marks included.

    Raises:
        TokenizerNotFound: if there is no such file.
    """

    def __init__(self, path: str | PathLike[str], max_length: int = 77) -> None:
        super().__init__(locate_vocabulary("wordpiece", Path(path), explicit=Path(path)), max_length)

    @cached_property
    def size(self) -> int:
        """Number of tokens in the vocabulary; every id is smaller."""
        return max(self._backend.get_vocab().values()) + 1  # a repeated line has a number, too

    @cached_property
    def marks(self) -> Marks:
        """``[CLS]`` before and ``[SEP]`` after a text, ``[PAD]`` to fill up, wherever the vocabulary has them."""
        vocabulary = self._backend.get_vocab()
        if missing := [name for name in (PADDING, UNKNOWN, START, END) if name not in vocabulary]:
            raise CorruptCheckpoint(
                self.source,
                f"is no BERT vocabulary, since it lacks {listed(missing)}",
                "It should be a text file with one token per line, usually called vocab.txt.",
            )
        return Marks((vocabulary[START],), (vocabulary[END],), padding=vocabulary[PADDING])

    def encode(self, text: str) -> list[int]:
        """Return all tokens of a text, without marks."""
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def tail(self, text: str, start: int) -> str:
        """Return the text from the first letter of token ``start`` on, as it was written."""
        first, _ = self._backend.encode(text, add_special_tokens=False).offsets[start]
        return text[first:]

    @cached_property
    def _backend(self) -> Backend:
        status = self.source.stat()
        return load(self.source.absolute(), (status.st_size, status.st_mtime_ns))


@lru_cache(maxsize=8)
def load(path: Path, stamp: tuple[int, int]) -> Backend:
    """Read a vocabulary; once, as long as the file's ``stamp`` (bytes, time of change) stays the same."""
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    try:
        lines = path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise CorruptCheckpoint(path, f"is no vocabulary, since byte {error.start} is not UTF-8 text") from error
    vocabulary = {line.rstrip("\r"): number for number, line in enumerate(lines)}
    backend = Backend(WordPiece(vocabulary, unk_token=UNKNOWN))
    backend.normalizer = BertNormalizer(lowercase=True, handle_chinese_chars=True)
    backend.pre_tokenizer = BertPreTokenizer()
    return backend

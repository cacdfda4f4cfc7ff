"""The byte-pair tokenizer of CLIP (arXiv 2103.00020), on the tokenizers library."""

from __future__ import annotations

import json
from functools import cached_property, lru_cache
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffsynth.errors import CorruptCheckpoint, listed
from diffsynth.tokenizers.base import Marks, Tokenizer
from diffsynth.tokenizers.locate import locate_vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class ClipTokenizer(Tokenizer):
    """CLIP's tokenizer: lower-cased words, digits and signs, each in pieces. A text becomes start, pieces, end.

    Args:
        path: ``vocab.json`` with ``merges.txt`` beside it, or ``tokenizer.json``, or a folder with these.
        max_length: tokens per text, both marks included.
        padding: the token that fills a row up. CLIP-L takes the end mark; the second encoder of SDXL was trained
            with ``!``, and then every ``!`` of a text becomes that token.

    Raises:
        TokenizerNotFound: if there is no such file.
    """

    def __init__(self, path: str | PathLike[str], max_length: int = 77, *, padding: str = END) -> None:
        super().__init__(locate_vocabulary("bpe", Path(path), explicit=Path(path)), max_length)
        self.padding = padding

    @cached_property
    def size(self) -> int:
        """Number of tokens in the vocabulary; every id is smaller."""
        return max(self._backend.get_vocab().values()) + 1

    @cached_property
    def marks(self) -> Marks:
        """Start before and end after a text, and the padding, wherever the vocabulary has them."""
        vocabulary = self._backend.get_vocab()
        if missing := [name for name in (START, END, self.padding) if name not in vocabulary]:
            raise CorruptCheckpoint(
                self.source,
                f"is no CLIP vocabulary, since it lacks {listed(missing)}",
                "It should be the vocab.json of a CLIP text encoder.",
            )
        return Marks((vocabulary[START],), (vocabulary[END],), padding=vocabulary[self.padding])

    def encode(self, text: str) -> list[int]:
        """Return all tokens of a text, without marks."""
        return [token for token, _ in self._pieces(text)]

    def tail(self, text: str, start: int) -> str:
        """Return the text from the first letter of token ``start`` on, as it was written."""
        _, first = self._pieces(text)[start]
        return text[first:]

    def _pieces(self, text: str) -> list[tuple[int, int]]:
        """Return each token and where its first letter stands in the text."""
        parts = [text] if self.padding == END else text.split(self.padding)
        pieces: list[tuple[int, int]] = []
        position = 0
        for number, part in enumerate(parts):
            if number:
                pieces.append((self.marks.padding, position - len(self.padding)))
            encoded = self._backend.encode(part, add_special_tokens=False)
            pieces += [
                (token, position + first) for token, (first, _) in zip(encoded.ids, encoded.offsets, strict=True)
            ]
            position += len(part) + len(self.padding)
        return pieces

    @cached_property
    def _backend(self) -> Backend:
        files = (self.source, *([] if self.source.name == "tokenizer.json" else [self.source.with_name("merges.txt")]))
        stamps = tuple((each.stat().st_size, each.stat().st_mtime_ns) for each in files if each.is_file())
        return load(self.source.absolute(), stamps)


@lru_cache(maxsize=4)
def load(path: Path, stamps: tuple[tuple[int, int], ...]) -> Backend:
    """Build the tokenizer from its file; once, as long as the ``stamps`` (bytes, time of change) stay the same."""
    from tokenizers import Regex, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import BPE

    vocabulary, merges = read_json(path) if path.name == "tokenizer.json" else read_pair(path)
    check_whole(path, vocabulary, merges)
    try:
        model = BPE(vocabulary, merges, continuing_subword_prefix="", end_of_word_suffix=WORD_END, unk_token=END)
    except Exception as error:  # the library raises nothing narrower
        raise CorruptCheckpoint(path, f"is no CLIP vocabulary: {error}", "Fetch both files again.") from error
    backend = Backend(model)
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return backend


def read_pair(path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Read ``vocab.json`` and the ``merges.txt`` beside it.

    Raises:
        CorruptCheckpoint: one of them is not there, or is something else.
    """
    vocabulary = _json(path)
    merges = path.with_name("merges.txt")
    if not merges.is_file():
        raise CorruptCheckpoint(path, "has no merges.txt beside it", "Both belong to one tokenizer; put it there.")
    try:
        lines = merges.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise CorruptCheckpoint(merges, f"is no list of merges, since byte {error.start} is not UTF-8 text") from error
    return _numbers(path, vocabulary), [
        _pair(merges, line) for line in lines if line.strip() and not line.startswith("#version")
    ]


def read_json(path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Read the vocabulary and the merges of a ``tokenizer.json``.

    Raises:
        CorruptCheckpoint: it holds no such tokenizer.
    """
    content = _json(path)
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("merges"), list):
        raise CorruptCheckpoint(path, "holds no byte-pair tokenizer")
    added = {each["content"]: each["id"] for each in content.get("added_tokens", ()) if "content" in each}
    return _numbers(path, {**model.get("vocab", {}), **added}), [_pair(path, each) for each in model["merges"]]


def check_whole(path: Path, vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> None:
    """Raise CorruptCheckpoint if merges are missing: rare words would fall into other pieces, without a message."""
    letters = sum(len(token.removesuffix(WORD_END)) == 1 for token in vocabulary)
    needed = len(vocabulary) - letters - sum(token in vocabulary for token in (START, END))
    if len(merges) < needed:
        raise CorruptCheckpoint(
            path,
            f"needs {needed} merges for its {len(vocabulary)} tokens, but only {len(merges)} are there",
            "The list of merges is cut; fetch it again, or take that of the same release's other tokenizer.",
        )


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpoint(path, "is no JSON file", "Fetch the file again.") from error


def _numbers(path: Path, vocabulary: Any) -> dict[str, int]:
    if not isinstance(vocabulary, dict) or not all(isinstance(each, int) for each in vocabulary.values()):
        raise CorruptCheckpoint(path, "is no vocabulary, which gives each token a number")
    return vocabulary


def _pair(path: Path, merge: Any) -> tuple[str, str]:
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or len(parts) != 2:
        raise CorruptCheckpoint(path, f"holds {merge!r}, which is no merge of two pieces")
    return (str(parts[0]), str(parts[1]))

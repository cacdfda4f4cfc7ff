"""The vocabularies of both text encoders, made from the captions.

python -m examples.emoji_painter.vocabulary FOLDER      writes FOLDER/vocab.txt and FOLDER/spiece.model
"""

from __future__ import annotations

import io
import re
import string
import sys
from pathlib import Path
from random import Random

from sentencepiece import SentencePieceTrainer

from examples.emoji_painter.scenes import LANGUAGES, caption, random_scene

MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
BORDER = "‖"  # between pre-tokens; no piece spans it
PUNCTUATION = "，。、！？：；“”（）"


def corpus(scenes: int = 6000, seed: int = 0) -> list[str]:
    """Return captions of random scenes for training, in both languages."""
    rng = Random(seed)
    return [caption(random_scene(rng), language, rng) for _ in range(scenes) for language in LANGUAGES]


def write_wordpiece(path: Path, texts: list[str]) -> int:
    """Write a BERT vocabulary and return its number of tokens.

    It has every Chinese character and every English word of the texts, and spells other words in letters.
    """
    joined = " ".join(texts).lower()
    characters = sorted({char for char in joined if not char.isascii()} | set(PUNCTUATION))
    words = sorted({word for word in re.findall("[a-z]+", joined) if len(word) > 1})
    spelled = (*string.ascii_lowercase, *string.digits)
    tokens = (*MARKS, *string.punctuation, *spelled, *(f"##{char}" for char in spelled), *characters, *words)
    path.write_text("\n".join(tokens) + "\n", "utf-8")
    return len(tokens)


def write_sentencepiece(path: Path, texts: list[str], size: int = 800) -> int:
    """Write a sentencepiece model of at most ``size`` pieces and return their number.

    Chinese characters are pieces of their own, so that every name is told in the same pieces wherever it stands.
    """
    from sentencepiece import SentencePieceProcessor

    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=(re.sub(r"([^\x00-\x7f])", rf"{BORDER}\1{BORDER}", text) for text in texts),
        pretokenization_delimiter=BORDER,
        model_writer=model,
        vocab_size=size,
        hard_vocab_limit=False,
        character_coverage=1.0,
        byte_fallback=True,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
    return int(SentencePieceProcessor(model_proto=model.getvalue()).get_piece_size())


def write_vocabularies(folder: Path, texts: list[str] | None = None) -> tuple[int, int]:
    """Write ``vocab.txt`` and ``spiece.model`` and return their numbers of tokens.

    Args:
        folder: made if need be.
        texts: captions; by default those of `corpus`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = texts or corpus()
    return write_wordpiece(folder / "vocab.txt", texts), write_sentencepiece(folder / "spiece.model", texts)


if __name__ == "__main__":
    words, pieces = write_vocabularies(Path(sys.argv[1]))
    print(f"{words} words, {pieces} pieces")

"""Vocabularies for the tokenizer tests: tiny ones made on the spot, and released ones where they are at hand."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

RELEASED = Path(__file__).parents[3] / "shared" / "data" / "hunyuan_dit" / "t2i"
WORDS = [
    "a",
    "cat",
    "dog",
    "house",
    "light",
    "##house",
    "##s",
    "on",
    "the",
    "hill",
    ",",
    "[",
    "]",
    "sep",
    "一",
    "只",
    "猫",
]


@pytest.fixture
def vocab_file(tmp_path: Path) -> Path:
    """A WordPiece vocabulary whose marks are not where BERT has them."""
    folder = tmp_path / "wordpiece"
    folder.mkdir()
    path = folder / "vocab.txt"
    path.write_text("\n".join(["the", "[CLS]", "[SEP]", "[UNK]", "[PAD]", *WORDS]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def spiece_bytes() -> bytes:
    """A sentencepiece model of some sixty pieces, with T5's marks."""
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a small cat on the hill", "the lighthouse in the fog, and a dog", "一只小猫"] * 5),
        model_writer=model,
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return model.getvalue()


@pytest.fixture
def spiece_file(tmp_path: Path, spiece_bytes: bytes) -> Path:
    folder = tmp_path / "sentencepiece"
    folder.mkdir()
    path = folder / "spiece.model"
    path.write_bytes(spiece_bytes)
    return path


def released(name: str) -> Path:
    """A file of the HunyuanDiT release; skips the test where it is absent."""
    path = RELEASED / name
    if not path.is_file():
        pytest.skip(f"the released {name} is not on this machine")
    return path


@pytest.fixture
def released_vocab() -> Path:
    return released("tokenizer/vocab.txt")


@pytest.fixture
def released_spiece() -> Path:
    return released("mt5/spiece.model")

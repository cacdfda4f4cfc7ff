"""CLIP's byte-pair tokenizer: the released ids, padding with a sign, three forms of file, and damage."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from diffsynth.errors import CorruptCheckpoint, TokenizerNotFound
from diffsynth.tokenizers.base import check_fits
from diffsynth.tokenizers.clip import ClipTokenizer
from diffsynth.tokenizers.locate import locate_vocabulary
from examples.random_stable_diffusion import TOKENS, more_merges, write_tokenizer

RELEASED = Path(__file__).parents[3] / "shared" / "data" / "clip" / "tokenizer"
START, END = 49406, 49407


@pytest.fixture
def released() -> Path:
    if not (RELEASED / "vocab.json").is_file():
        pytest.skip("the released vocabulary of CLIP is not on this machine")
    return RELEASED


@pytest.fixture
def small(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("a photo of a cat", [320, 1125, 539, 320, 2368]),
        ("café naïve 123 don't", [15304, 1097, 35689, 563, 272, 273, 274, 847, 713]),
        ("impressionist octane", [44904, 43040]),
        ("hello!!! wow", [3306, 995, 2781]),
        ("", []),
    ],
)
def test_released_vocabulary_gives_the_released_ids(released: Path, text: str, ids: list[int]) -> None:
    tokens = ClipTokenizer(released)([text])

    framed = [START, *ids, END]
    assert tokens.ids[0].tolist() == framed + [END] * (77 - len(framed))
    assert int(tokens.mask.sum()) == len(framed)


def test_the_second_encoder_fills_with_a_sign_which_then_is_no_text(released: Path) -> None:
    tokens = ClipTokenizer(released, padding="!")(["hello!!! wow", "!"])

    assert tokens.ids[0].tolist() == [START, 3306, 0, 0, 0, 2781, END] + [0] * 70
    assert tokens.ids[1, :3].tolist() == [START, 0, END]
    assert tokens.mask.sum(dim=1).tolist() == [7, 3]


@pytest.mark.parametrize("padding", ["<|endoftext|>", "!"])
def test_it_equals_transformers(released: Path, padding: str) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.CLIPTokenizer.from_pretrained(released, pad_token=padding)
    choice = random.Random(0)
    letters = "abcXYZéß  ,.!?0123一只小猫画の한😀－（）\n\t\u200b\u0301'sm<|>"
    texts = ["", " ", "a" * 300, "I'll we've"] + ["".join(choice.choices(letters, k=40)) for _ in range(200)]
    expected = theirs(texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt", verbose=False)

    tokens = ClipTokenizer(released, padding=padding)(texts)

    assert torch.equal(tokens.ids, expected.input_ids)


def test_a_mark_typed_into_a_prompt_is_only_text(small: Path) -> None:
    tokenizer = ClipTokenizer(small)

    assert set(tokenizer.encode("a <|endoftext|> b")).isdisjoint((TOKENS - 1, TOKENS - 2))


def test_what_was_cut_is_reported_in_the_users_words(small: Path) -> None:
    texts = ["a PHOTO of a Cat", "a! photo of a cat", "a cat"]

    plain = ClipTokenizer(small, max_length=6)(texts)
    signed = ClipTokenizer(small, max_length=6, padding="!")(texts)

    assert plain.lost == ("Cat", "a cat", "")
    assert signed.lost == ("Cat", "a cat", "")
    assert signed.ids[1, 2] == 0


def test_three_forms_of_file_give_the_same_ids(small: Path, tmp_path: Path) -> None:
    merges = [line.split(" ") for line in (small / "merges.txt").read_text("utf-8").splitlines()[1:]]
    vocabulary = json.loads((small / "vocab.json").read_text("utf-8"))
    marks = [{"content": mark, "id": vocabulary.pop(mark)} for mark in ("<|startoftext|>", "<|endoftext|>")]
    (tmp_path / "new").mkdir()
    content = {"added_tokens": marks, "model": {"vocab": vocabulary, "merges": merges}}
    (tmp_path / "new" / "tokenizer.json").write_text(json.dumps(content), "utf-8")

    for path in (small, small / "vocab.json", tmp_path / "new", tmp_path / "new" / "tokenizer.json"):
        tokenizer = ClipTokenizer(path)
        assert tokenizer.size == TOKENS
        assert tokenizer.encode("a photo, of cats") == ClipTokenizer(small).encode("a photo, of cats")
    check_fits(ClipTokenizer(small), TOKENS)


def test_the_vocabulary_is_found_beside_a_checkpoint(small: Path, tmp_path: Path) -> None:
    for weights in ("model.safetensors", "text_encoder/model.safetensors", "text_encoder_2/model.safetensors"):
        assert locate_vocabulary("bpe", tmp_path / weights) == small / "vocab.json"


def test_a_missing_vocabulary_says_what_to_look_for(tmp_path: Path) -> None:
    with pytest.raises(TokenizerNotFound) as raised:
        locate_vocabulary("bpe", tmp_path / "model.safetensors")

    assert "openai/clip-vit-large-patch14" in str(raised.value)
    assert "HunyuanDiT" not in str(raised.value)


def test_a_cut_list_of_merges_is_refused(small: Path) -> None:
    lines = (small / "merges.txt").read_text("utf-8").splitlines()
    (small / "merges.txt").write_text("\n".join(lines[:-2]), "utf-8")

    with pytest.raises(CorruptCheckpoint, match="needs 8 merges for its 522 tokens, but only 6 are there"):
        ClipTokenizer(small).encode("a cat")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("vocab.json", b"<html>", "is no JSON file"),
        ("vocab.json", b'["a"]', "is no vocabulary"),
        ("vocab.json", b'{"a": 0}', "is no CLIP vocabulary"),
        ("merges.txt", b"p\xff h\n" * 9, "byte 1 is not UTF-8 text"),
        ("merges.txt", b"ph\n" * 9, "'ph', which is no merge of two pieces"),
        ("merges.txt", b"q x\n" * 9, "is no CLIP vocabulary"),
        ("merges.txt", None, "has no merges.txt beside it"),
        ("tokenizer.json", b'{"model": {"type": "Unigram"}}', "holds no byte-pair tokenizer"),
    ],
)
def test_files_that_are_no_such_vocabulary_are_refused(
    small: Path, name: str, content: bytes | None, sentence: str
) -> None:
    if content is None:
        (small / name).unlink()
    else:
        (small / name).write_bytes(content)

    with pytest.raises(CorruptCheckpoint, match=sentence):
        ClipTokenizer(small / name if name == "tokenizer.json" else small)([""])


def test_a_vocabulary_of_any_size_can_be_made_for_networks_of_random_weights(tmp_path: Path) -> None:
    count = write_tokenizer(tmp_path, more_merges(49408))

    tokenizer = ClipTokenizer(tmp_path, max_length=7)

    assert count == 49408
    assert tokenizer.marks.after == (END,)

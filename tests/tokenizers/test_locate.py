"""Where the vocabulary of a text encoder is looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffsynth.errors import TokenizerNotFound
from diffsynth.tokenizers.locate import Kind, locate_vocabulary


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


@pytest.mark.parametrize(
    ("kind", "checkpoint", "vocabulary"),
    [
        ("wordpiece", "t2i/clip_text_encoder/pytorch_model.bin", "t2i/tokenizer/vocab.txt"),
        ("wordpiece", "t2i/clip_text_encoder/pytorch_model.bin", "t2i/clip_text_encoder/vocab.txt"),
        ("sentencepiece", "t2i/mt5/pytorch_model.bin", "t2i/mt5/spiece.model"),
        ("wordpiece", "repo/text_encoder/model.safetensors", "repo/tokenizer/vocab.txt"),
        ("sentencepiece", "repo/text_encoder_2/model.safetensors", "repo/tokenizer_2/spiece.model"),
        ("sentencepiece", "repo/text_encoder_2/model.safetensors", "repo/tokenizer/sentencepiece.bpe.model"),
        ("sentencepiece", "all_in_one.safetensors", "mt5/spiece.model"),
        ("sentencepiece", "clip_text_encoder/pytorch_model.bin", "mt5/tokenizer.model"),
        ("wordpiece", "all_in_one.safetensors", "tokenizer/vocab.txt"),
    ],
)
def test_vocabularies_are_found_where_releases_put_them(
    tmp_path: Path, kind: Kind, checkpoint: str, vocabulary: str
) -> None:
    weights, expected = touch(tmp_path / checkpoint), touch(tmp_path / vocabulary)

    assert locate_vocabulary(kind, weights, None).samefile(expected)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("wordpiece", "clip_tokenizer= (--clip-tokenizer)"),
        ("sentencepiece", "t5_tokenizer= (--t5-tokenizer)"),
    ],
)
def test_a_missing_vocabulary_says_where_its_path_is_given(tmp_path: Path, kind: Kind, options: str) -> None:
    with pytest.raises(TokenizerNotFound) as caught:
        locate_vocabulary(kind, tmp_path / "model.bin")

    assert options in str(caught.value)


def test_a_folder_is_searched_like_a_file_inside_it(tmp_path: Path) -> None:
    touch(tmp_path / "text_encoder" / "model.safetensors")
    expected = touch(tmp_path / "tokenizer" / "vocab.txt")

    assert locate_vocabulary("wordpiece", tmp_path / "text_encoder", None) == expected


def test_the_nearest_place_wins(tmp_path: Path) -> None:
    weights = touch(tmp_path / "mt5" / "model.bin")
    touch(tmp_path / "tokenizer_2" / "spiece.model")
    expected = touch(tmp_path / "mt5" / "spiece.model")

    assert locate_vocabulary("sentencepiece", weights, None) == expected


def test_a_relative_path_is_searched_around_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = touch(tmp_path / "tokenizer" / "vocab.txt")
    touch(tmp_path / "clip" / "model.bin")
    monkeypatch.chdir(tmp_path / "clip")

    assert locate_vocabulary("wordpiece", Path("model.bin"), None) == expected


def test_both_ends_of_a_link_are_searched_its_own_place_first(tmp_path: Path) -> None:
    target = touch(tmp_path / "blobs" / "text" / "0123abcd")
    link = tmp_path / "snapshot" / "text_encoder" / "model.safetensors"
    link.parent.mkdir(parents=True)
    link.symlink_to(target)
    behind = touch(tmp_path / "blobs" / "tokenizer" / "vocab.txt")

    assert locate_vocabulary("wordpiece", link, None).samefile(behind)
    beside = touch(tmp_path / "snapshot" / "tokenizer" / "vocab.txt")
    assert locate_vocabulary("wordpiece", link, None).samefile(beside)


@pytest.mark.parametrize("explicit", ["mine/words.txt", "mine", "folder"])
def test_a_place_the_user_names_is_the_only_one(tmp_path: Path, explicit: str) -> None:
    weights = touch(tmp_path / "clip" / "model.bin")
    touch(tmp_path / "clip" / "vocab.txt")
    touch(tmp_path / "mine" / "words.txt")
    touch(tmp_path / "mine" / "vocab.txt")
    touch(tmp_path / "folder" / "tokenizer" / "vocab.txt")
    expected = {"mine/words.txt": "mine/words.txt", "mine": "mine/vocab.txt", "folder": "folder/tokenizer/vocab.txt"}

    found = locate_vocabulary("wordpiece", weights, tmp_path / explicit)

    assert found == tmp_path / expected[explicit]
    with pytest.raises(TokenizerNotFound, match="elsewhere"):
        locate_vocabulary("wordpiece", weights, tmp_path / "elsewhere")


def test_the_message_lists_every_place_and_what_to_do(tmp_path: Path) -> None:
    weights = touch(tmp_path / "t2i" / "mt5" / "model.bin")
    touch(tmp_path / "t2i" / "mt5" / "vocab.txt")  # of another kind

    with pytest.raises(TokenizerNotFound) as caught:
        locate_vocabulary("sentencepiece", weights, None)

    message = str(caught.value)
    for place in ("t2i/mt5/spiece.model", "t2i/tokenizer_2/spiece.model", "t2i/tokenizer/tokenizer.model"):
        assert str(tmp_path / place) in message
    assert 'download_models(["HunyuanDiT"])' in message
    assert len(message.splitlines()) == len(set(message.splitlines()))


def test_the_old_vocabulary_is_never_taken(tmp_path: Path) -> None:
    weights = touch(tmp_path / "clip" / "model.bin")
    old = touch(tmp_path / "clip" / "vocab_org.txt")

    for explicit in (None, old, old.parent):
        with pytest.raises(TokenizerNotFound):
            locate_vocabulary("wordpiece", weights, explicit)

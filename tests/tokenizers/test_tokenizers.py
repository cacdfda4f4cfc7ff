"""Token ids, masks, what is cut off, and messages about vocabularies that are none."""

from __future__ import annotations

import contextlib
import io
import logging
import pickle
import random
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from diffsynth.errors import CheckpointError, CorruptCheckpoint, InvalidRequest, TokenizerNotFound
from diffsynth.tokenizers.base import Tokenizer, check_fits
from diffsynth.tokenizers.sentencepiece import SentencePieceTokenizer
from diffsynth.tokenizers.wordpiece import WordPieceTokenizer

MIXED = "一只小猫 a cat"
LONG = "一只 Café-racer, " * 80 + "the END of the road"


def texts() -> list[str]:
    """Two hundred texts: hand-picked edges, and random mixtures of scripts, signs and spaces."""
    edges = [
        "",
        " ",
        MIXED,
        "  two   spaces\tand\nlines ",
        "ＦＵＬＬ　width，。！",
        "Ünïcödé ﬁ ①",
        "😀👩‍👩‍👧 emoji",
        "x\x00y",
        "a" * 300,
    ]
    choice = random.Random(0)
    letters = "abcXYZéß  ,.!?0123一只小猫画在山上灯塔の한😀－（）\n\t\u200b\u0301"
    return edges + ["".join(choice.choices(letters, k=choice.randint(1, 60))) for _ in range(200)]


def test_released_wordpiece_gives_the_released_ids(released_vocab: Path) -> None:
    tokenizer = WordPieceTokenizer(released_vocab)

    tokens = tokenizer([MIXED, ""])

    assert tokenizer.size == 47020
    assert tokens.ids.shape == tokens.mask.shape == (2, 77)
    assert tokens.ids.dtype == torch.int64
    assert tokens.mask.dtype == torch.bool
    assert tokens.ids[0].tolist() == [101, 671, 1372, 2207, 4344, 143, 10165, 102] + [0] * 69
    assert tokens.ids[1].tolist() == [101, 102] + [0] * 75
    assert tokens.mask.sum(dim=1).tolist() == [8, 2]
    assert tokens.lost == ("", "")


def test_released_sentencepiece_gives_the_released_ids(released_spiece: Path) -> None:
    tokenizer = SentencePieceTokenizer(released_spiece)

    tokens = tokenizer([MIXED, ""])

    assert tokenizer.size == 250100
    assert tokens.ids.shape == (2, 256)
    assert tokens.ids[0].tolist() == [259, 179906, 2144, 21018, 259, 262, 10292, 1] + [0] * 248
    assert tokens.ids[1].tolist() == [1] + [0] * 255
    assert tokens.mask.sum(dim=1).tolist() == [8, 1]


def test_wordpiece_equals_transformers(released_vocab: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertTokenizer.from_pretrained(released_vocab.parent)
    expected = theirs(
        [*texts(), LONG], padding="max_length", truncation=True, max_length=77, return_tensors="pt", verbose=False
    )

    tokens = WordPieceTokenizer(released_vocab)([*texts(), LONG])

    assert torch.equal(tokens.ids, expected.input_ids)
    assert torch.equal(tokens.mask, expected.attention_mask.bool())


def test_a_full_row_keeps_its_first_and_last_mark(released_vocab: Path, released_spiece: Path) -> None:
    clip, t5 = WordPieceTokenizer(released_vocab)([LONG]), SentencePieceTokenizer(released_spiece)([LONG])

    assert clip.ids[0, [0, -1]].tolist() == [101, 102]
    assert t5.ids[0, -1] == 1
    assert clip.mask.all()
    assert t5.mask.all()


def test_what_was_cut_is_reported_in_the_users_words(vocab_file: Path) -> None:
    tokenizer = WordPieceTokenizer(vocab_file, max_length=6)

    tokens = tokenizer(["A cat on the hill", "A cat on the HILL, 一只猫 ", "a cat"])

    assert tokens.lost == ("hill", "HILL, 一只猫", "")
    assert tokens.mask.sum(dim=1).tolist() == [6, 6, 4]


def test_what_sentencepiece_cut_is_reported(spiece_file: Path) -> None:
    tokenizer = SentencePieceTokenizer(spiece_file, max_length=64)
    text = "a small cat on the hill and the dog in the fog"
    room = len(tokenizer.encode("a small cat on the hill")) + 1

    tokens = SentencePieceTokenizer(spiece_file, max_length=room)([text, "a cat"])

    assert tokens.lost == ("and the dog in the fog", "")
    assert tokens.ids[0, -1] == 1


def test_a_text_that_just_fits_loses_nothing(vocab_file: Path, spiece_file: Path) -> None:
    for tokenizer in (WordPieceTokenizer(vocab_file, max_length=5), SentencePieceTokenizer(spiece_file)):
        text = "a cat on"
        exact = type(tokenizer)(tokenizer.source, max_length=int(tokenizer([text]).mask.sum()))

        tokens = exact([text])

        assert tokens.lost == ("",)
        assert tokens.mask.all()


def test_marks_are_found_by_name(vocab_file: Path) -> None:
    """This vocabulary has [CLS] at 1, [SEP] at 2 and [PAD] at 4."""
    tokens = WordPieceTokenizer(vocab_file, max_length=6)(["a cat", "zebra"])

    assert tokens.ids.tolist() == [[1, 5, 6, 2, 4, 4], [1, 3, 2, 4, 4, 4]]


def test_marks_typed_into_a_prompt_are_plain_text(vocab_file: Path, spiece_file: Path) -> None:
    clip, t5 = WordPieceTokenizer(vocab_file), SentencePieceTokenizer(spiece_file)

    clip_ids, t5_ids = clip(["a [SEP] cat"]).ids[0].tolist(), t5(["a </s> cat <pad>"])

    assert clip_ids.count(clip.marks.after[0]) == 1
    assert clip_ids[:8] == [1, 5, 16, 18, 17, 6, 2, 4]
    assert t5_ids.ids[t5_ids.mask].tolist().count(t5.marks.after[0]) == 1
    assert t5.marks.padding not in t5_ids.ids[t5_ids.mask].tolist()


def test_bytes_and_file_give_the_same(spiece_file: Path) -> None:
    from_file, from_bytes = SentencePieceTokenizer(spiece_file), SentencePieceTokenizer(spiece_file.read_bytes())

    assert torch.equal(from_file([MIXED]).ids, from_bytes([MIXED]).ids)


def test_a_folder_stands_for_its_vocabulary(vocab_file: Path, spiece_file: Path) -> None:
    assert WordPieceTokenizer(vocab_file.parent).source == vocab_file
    assert SentencePieceTokenizer(str(spiece_file.parent)).source == spiece_file


def test_line_ends_and_byte_order_marks_of_windows_do_not_matter(vocab_file: Path) -> None:
    expected = WordPieceTokenizer(vocab_file)(["a cat"]).ids
    text = vocab_file.read_text(encoding="utf-8")
    vocab_file.write_bytes(("\ufeff" + text.replace("\n", "\r\n")).encode())

    assert torch.equal(WordPieceTokenizer(vocab_file)(["a cat"]).ids, expected)


def test_a_vocabulary_is_read_once_until_it_changes(vocab_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = WordPieceTokenizer(vocab_file)
    size = first.size
    monkeypatch.chdir(vocab_file.parent)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", lambda *args, **kwargs: pytest.fail("read again"))
        assert WordPieceTokenizer("vocab.txt", max_length=9).size == size

    with vocab_file.open("a", encoding="utf-8") as file:
        file.write("more\n")

    assert WordPieceTokenizer(vocab_file).size == size + 1


def test_making_a_tokenizer_reads_and_imports_nothing(vocab_file: Path, spiece_file: Path) -> None:
    program = (
        "import sys\n"
        "from diffsynth.tokenizers.sentencepiece import SentencePieceTokenizer\n"
        "from diffsynth.tokenizers.wordpiece import WordPieceTokenizer\n"
        f"WordPieceTokenizer({str(vocab_file)!r}), SentencePieceTokenizer({str(spiece_file)!r})\n"
        "assert not {'transformers', 'tokenizers', 'sentencepiece'} & set(sys.modules)\n"
    )

    subprocess.run([sys.executable, "-c", program], check=True)


def test_threads_may_share_a_tokenizer(vocab_file: Path) -> None:
    tokenizer = WordPieceTokenizer(vocab_file)
    many = ["a cat on the hill" + " dog" * (n % 7) for n in range(64)]

    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(lambda text: tokenizer([text]).ids, many))

    assert torch.equal(torch.cat(rows), tokenizer(many).ids)


def test_tokenizers_travel_between_processes(vocab_file: Path, spiece_file: Path) -> None:
    for tokenizer in (WordPieceTokenizer(vocab_file), SentencePieceTokenizer(spiece_file)):
        expected = tokenizer([MIXED]).ids

        assert torch.equal(pickle.loads(pickle.dumps(tokenizer))([MIXED]).ids, expected)


def test_no_texts_give_no_rows(vocab_file: Path) -> None:
    tokens = WordPieceTokenizer(vocab_file, max_length=9)([])

    assert tokens.ids.shape == tokens.mask.shape == (0, 9)
    assert tokens.lost == ()


def test_a_single_text_is_not_taken_for_a_list_of_letters(vocab_file: Path) -> None:
    with pytest.raises(TypeError, match="list of str"):
        WordPieceTokenizer(vocab_file)("a cat")


def test_half_a_character_is_named(vocab_file: Path, spiece_file: Path) -> None:
    for tokenizer in (WordPieceTokenizer(vocab_file), SentencePieceTokenizer(spiece_file)):
        with pytest.raises(InvalidRequest, match=r"U\+D800\) at position 2"):
            tokenizer(["a \ud800"])


def test_a_row_too_short_for_its_marks_is_refused(vocab_file: Path) -> None:
    with pytest.raises(ValueError, match="max_length is 1"):
        WordPieceTokenizer(vocab_file, max_length=1)


def test_a_vocabulary_larger_than_the_embedding_is_refused_with_both_numbers(vocab_file: Path) -> None:
    tokenizer: Tokenizer = WordPieceTokenizer(vocab_file)

    check_fits(tokenizer, tokenizer.size)
    with pytest.raises(CheckpointError, match=rf"{tokenizer.size} tokens, .* has {tokenizer.size - 1} rows"):
        check_fits(tokenizer, tokenizer.size - 1)


def test_a_file_that_is_no_vocabulary_does_not_wait_for_a_prompt(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("<html>not found</html>")

    with pytest.raises(CorruptCheckpoint, match="is no BERT vocabulary"):
        check_fits(WordPieceTokenizer(path), 47020)


def test_a_repeated_line_still_counts(vocab_file: Path) -> None:
    """Ids are line numbers, so the largest one decides whether an embedding has enough rows."""
    lines = vocab_file.read_text(encoding="utf-8").splitlines()
    vocab_file.write_text("\n".join([lines[0], *lines]), encoding="utf-8")

    tokenizer = WordPieceTokenizer(vocab_file)

    assert tokenizer.size == len(lines) + 1 > int(tokenizer(["a cat [ 猫"]).ids.max())


def test_a_vocabulary_far_smaller_than_the_embedding_is_warned_of(
    vocab_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = WordPieceTokenizer(vocab_file)

    with caplog.at_level(logging.WARNING):
        check_fits(tokenizer, tokenizer.size + 1)
        check_fits(tokenizer, 47020)

    assert [record.getMessage().count("47020") for record in caplog.records] == [1]


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"version https://git-lfs.github.com/spec/v1\n"])
def test_a_file_that_is_no_vocabulary_is_named(tmp_path: Path, content: bytes) -> None:
    vocabulary, model = tmp_path / "vocab.txt", tmp_path / "spiece.model"
    vocabulary.write_bytes(content)
    model.write_bytes(content)

    with pytest.raises(CorruptCheckpoint, match=r"vocab\.txt: is no BERT vocabulary, since it lacks \[PAD\]"):
        WordPieceTokenizer(vocabulary)(["a"])
    with pytest.raises(CorruptCheckpoint, match=rf"spiece\.model: is no sentencepiece model \({len(content)} bytes\)"):
        SentencePieceTokenizer(model)(["a"])


def test_a_vocabulary_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes(b"[PAD]\n\xff\xfe")

    with pytest.raises(CorruptCheckpoint, match="byte 6 is not UTF-8"):
        WordPieceTokenizer(path)(["a"])


def test_a_model_without_t5s_marks_is_refused(spiece_bytes: bytes, tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("a small cat on the hill\n" * 5, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(tmp_path / "other"), vocab_size=25, hard_vocab_limit=False, minloglevel=2
    )

    with pytest.raises(CorruptCheckpoint, match="has no padding token"):
        SentencePieceTokenizer(tmp_path / "other.model")(["a"])


def test_a_path_that_leads_nowhere_is_an_error_at_once(tmp_path: Path, vocab_file: Path) -> None:
    with pytest.raises(TokenizerNotFound, match="nowhere"):
        WordPieceTokenizer(tmp_path / "nowhere")
    shutil.copy(vocab_file, tmp_path / "vocab_org.txt")
    with pytest.raises(TokenizerNotFound, match=r"vocab_org\.txt \(an older vocabulary, never used\)"):
        WordPieceTokenizer(tmp_path / "vocab_org.txt")


def test_a_model_that_spells_no_text_is_named() -> None:
    """A damaged model may still load, and fail at the first prompt that needs the damaged piece."""
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a small cat on the hill"] * 5),
        model_writer=model,
        vocab_size=25,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        unk_surface="WHAT",
        minloglevel=2,
    )
    damaged = model.getvalue().replace(b"WHAT", b"\xff\xfe\xfd\xfc")
    tokenizer = SentencePieceTokenizer(damaged, 2, source="all_in_one.safetensors/spiece_model")

    with pytest.raises(CorruptCheckpoint, match=r"all_in_one\.safetensors/spiece_model: is a damaged sentencepiece"):
        tokenizer(["a small 猫"])


def test_no_damage_of_a_model_gives_another_error(spiece_bytes: bytes) -> None:
    choice = random.Random(0)
    for _ in range(300):
        damaged = bytearray(spiece_bytes)
        damaged[choice.randrange(len(damaged))] = choice.randrange(256)
        cut = bytes(damaged[: choice.choice([len(damaged), choice.randrange(len(damaged))])])
        with contextlib.suppress(CorruptCheckpoint):
            SentencePieceTokenizer(cut, 4)([LONG, "a small cat on the hill 一只小猫"])

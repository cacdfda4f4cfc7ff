"""Prompts: weights, long ones, words learnt from textual inversions."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffsynth import SDImagePipeline, SDXLImagePipeline
from diffsynth.errors import CheckpointError, InvalidRequest
from diffsynth.pipelines.clip_prompt import ClipReader
from diffsynth.pipelines.prompt_weights import Span, weighted_spans

from .conftest import Release
from .toy import PROMPT, draw, load

LONG = "a hot cat, " * 20


@pytest.fixture(scope="module")
def reader(release: Release) -> ClipReader:
    """Return the text encoder of Stable Diffusion."""
    pipe: SDImagePipeline = load([release("sd15")], SDImagePipeline)
    return pipe.readers[0]


@pytest.mark.parametrize(
    ("prompt", "spans"),
    [
        ("a cat", [Span("a cat")]),
        ("a (cat) : 1.2)", [Span("a (cat) : 1.2)")]),
        ("a (red cat:1.2), hot", [Span("a "), Span("red cat", 1.2), Span(", hot")]),
        ("(a (cat:2):0.5)", [Span("a ", 0.5), Span("cat", 1.0)]),
        (r"a \(cat:1.2\) (dog:1.5)", [Span("a (cat:1.2) "), Span("dog", 1.5)]),
        ("((a):.5)", [Span("(a)", 0.5)]),
        ("", [Span("")]),
    ],
)
def test_only_brackets_with_a_number_are_weights(prompt: str, spans: list[Span]) -> None:
    assert weighted_spans(prompt) == spans


def test_a_weight_beyond_reason_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"\(cat:12\) gives a weight above 10"):
        weighted_spans("a (cat:12)")


def test_weights_that_multiply_beyond_reason_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="brackets around cat multiply to a weight of 16, above 10"):
        weighted_spans("((cat:4):4)")


@pytest.mark.parametrize("prompt", ["(a:nan)", "(a:-1)", "(a:1e5)", "(a: inf)"])
def test_what_looks_like_a_weight_and_is_none_is_told_of(prompt: str, caplog: pytest.LogCaptureFixture) -> None:
    assert weighted_spans(f"b {prompt}") == [Span(f"b {prompt}")]
    assert f"{prompt} gives no weight" in caplog.text


@pytest.mark.parametrize("prompt", ["((a))", "(a", "a)", ")(", "((a)", "(16:nine)", r"\(a:nan)", "(:)"])
def test_brackets_without_a_number_are_text(prompt: str, caplog: pytest.LogCaptureFixture) -> None:
    assert "".join(span.text for span in weighted_spans(prompt)) == prompt
    assert caplog.text == ""


def test_a_weight_changes_its_words_and_those_of_one_change_nothing(reader: ClipReader) -> None:
    plain = reader(PROMPT, clip_skip=1, long_prompts="cut").hidden
    one = reader("a photo of a (cat:1.0)", clip_skip=1, long_prompts="cut").hidden
    heavy = reader("a photo of a (cat:1.4)", clip_skip=1, long_prompts="cut").hidden

    assert torch.equal(plain, one)
    ratio = heavy / plain
    torch.testing.assert_close(ratio[0, 5], ratio[0, 1] * 1.4)
    torch.testing.assert_close(heavy.mean(), plain.mean())


def test_long_prompts_are_cut_with_a_warning_or_read_in_chunks(
    reader: ClipReader, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        cut = reader(LONG, clip_skip=1, long_prompts="cut").hidden
    chunks = reader(LONG, clip_skip=1, long_prompts="chunks").hidden

    assert "does not see" in caplog.text
    count = len(reader.tokenizer.encode(LONG))
    assert cut.shape[1] == 77
    assert chunks.shape[1] == 77 * -(-count // 75)
    assert torch.equal(cut[:, :77], chunks[:, :77])


def test_each_chunk_stands_between_its_own_marks(reader: ClipReader) -> None:
    tokens = reader.tokens(LONG)
    ids, _ = reader._rows(tokens, LONG, "chunks")
    marks = reader.tokenizer.marks

    assert all(row[0] == marks.before[0] for row in ids)
    assert [token for row in ids for token in row[1:76].tolist()][: len(tokens.ids)] == list(tokens.ids)


def test_blocks_cut_the_row_with_its_marks(reader: ClipReader) -> None:
    tokens = reader.tokens(LONG)
    ids, _ = reader._rows(tokens, LONG, "blocks")
    marks = reader.tokenizer.marks

    whole = [*marks.before, *tokens.ids, *marks.after]
    assert ids.flatten().tolist()[: len(whole)] == whole


def test_prompts_of_any_length_are_drawn_beside_short_negative_ones(release: Release) -> None:
    pipe = load([release("sdxl")], SDXLImagePipeline, "diffsynth")
    settings = {"long_prompts": "chunks", "num_inference_steps": 2}

    _, together = draw(pipe, [LONG, PROMPT], negative_prompt="dog", seed=[1, 2], **settings)
    _, alone = draw(pipe, PROMPT, negative_prompt="dog", seed=2, **settings)

    assert together.shape[0] == 2
    torch.testing.assert_close(together[1:], alone, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("form", ["diffusers", "web", "pickled"])
def test_a_word_is_learnt_from_every_form_of_file(release: Release, tmp_path: Path, form: str) -> None:
    pipe = load([release("sd15")], SDImagePipeline)
    table = torch.randn(2, 64, generator=torch.Generator().manual_seed(5))
    path = tmp_path / ("easynegative.pt" if form == "pickled" else "easynegative.safetensors")
    if form == "pickled":
        torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": table}, "name": "x", "step": 9}, path)
    else:
        save_file({"<cat-toy>" if form == "diffusers" else "emb_params": table}, path)

    word = pipe.load_textual_inversion(path)

    assert word == ("<cat-toy>" if form == "diffusers" else "easynegative")
    reader, size = pipe.readers[0], pipe.readers[0].encoder.config.vocab_size
    tokens = reader.tokens(f"a {word}, cat").ids
    assert tokens == (*reader.tokenizer.encode("a"), size, size + 1, *reader.tokenizer.encode(", cat"))
    assert reader.tokens(f"a{word.strip('<>')}x").ids == tuple(reader.tokenizer.encode(f"a{word.strip('<>')}x"))
    assert pipe.vocabularies[-1].path == path


def test_a_learnt_word_means_its_embeddings(release: Release, tmp_path: Path) -> None:
    """A word with the embedding of another word is read as that word."""
    pipe = load([release("sd15")], SDImagePipeline)
    reader = pipe.readers[0]
    (cat,) = reader.tokenizer.encode("cat")
    table = reader.encoder.text.get_input_embeddings().weight[cat : cat + 1].detach().clone()
    save_file({"emb_params": table}, tmp_path / "kitty.safetensors")

    pipe.load_textual_inversion(tmp_path / "kitty.safetensors")

    found = reader("a kitty", clip_skip=1, long_prompts="cut").hidden
    torch.testing.assert_close(found, reader("a cat", clip_skip=1, long_prompts="cut").hidden)


def test_sdxl_learns_a_word_for_both_encoders(release: Release, tmp_path: Path) -> None:
    pipe = load([release("sdxl")], SDXLImagePipeline)
    save_file({"clip_l": torch.zeros(1, 64), "clip_g": torch.zeros(1, 128)}, tmp_path / "neg.safetensors")

    pipe.load_textual_inversion(tmp_path / "neg.safetensors", "bad_art")

    assert all("bad_art" in reader.words for reader in pipe.readers)


def test_a_word_of_another_kind_of_model_is_refused(release: Release, tmp_path: Path) -> None:
    pipe = load([release("sdxl")], SDXLImagePipeline)
    save_file({"emb_params": torch.zeros(1, 64)}, tmp_path / "neg.safetensors")

    with pytest.raises(CheckpointError, match=r"width 128 for the second text encoder, but holds 0"):
        pipe.load_textual_inversion(tmp_path / "neg.safetensors")
    assert not any(reader.words for reader in pipe.readers)

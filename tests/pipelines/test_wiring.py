"""From loaded networks to a pipeline: what is missing or does not fit is found before the first image."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from diffsynth import HunyuanDiTImagePipeline, ModelManager
from diffsynth.errors import (
    AmbiguousModel,
    CheckpointError,
    CorruptCheckpoint,
    InvalidRequest,
    ModelNotLoaded,
    TokenizerNotFound,
)
from examples.random_models import write_models

from .toy import PROMPT, load_toy, write_toy

FILES = ("bert_clip", "mt5", "hunyuan_dit", "autoencoder_kl")


def manager_of(*paths: Path) -> ModelManager:
    manager = ModelManager(torch_dtype=torch.float32, device="cpu")
    manager.load_models(paths)
    return manager


@pytest.mark.parametrize("absent", range(4))
def test_a_missing_network_is_an_error_when_the_pipeline_is_made(v1_2: list[Path], absent: int) -> None:
    manager = manager_of(*(path for index, path in enumerate(v1_2) if index != absent))

    with pytest.raises(ModelNotLoaded) as caught:
        HunyuanDiTImagePipeline.from_model_manager(manager)

    assert f"not loaded: {FILES[absent]}; loaded are" in str(caught.value)
    assert all(str(path) in str(caught.value) for index, path in enumerate(v1_2) if index != absent)


def test_all_missing_networks_are_named_at_once() -> None:
    with pytest.raises(ModelNotLoaded) as caught:
        HunyuanDiTImagePipeline.from_model_manager(manager_of())

    assert all(name in str(caught.value).partition(";")[0] for name in FILES)


def test_networks_of_different_sizes_are_refused(v1_2: list[Path], tmp_path: Path) -> None:
    other = write_toy(tmp_path, text_dim=100)

    with pytest.raises(InvalidRequest) as caught:
        HunyuanDiTImagePipeline.from_model_manager(manager_of(*v1_2[:2], other[2], v1_2[3]))

    message = str(caught.value)
    assert str(v1_2[0]) in message
    assert str(other[2]) in message
    assert "hidden_size is 128, the denoiser expects 100" in message


def test_one_of_several_denoisers_must_be_named(v1_2: list[Path], v1_0: list[Path], tmp_path: Path) -> None:
    other = Path(shutil.copy(v1_0[2], tmp_path / "older.pt"))
    manager = manager_of(*v1_2, other)

    with pytest.raises(AmbiguousModel, match=r"older\.pt"):
        HunyuanDiTImagePipeline.from_model_manager(manager)
    pipe = HunyuanDiTImagePipeline.from_model_manager(manager, denoiser="older")

    assert pipe.denoiser.config.size_conditioning
    assert HunyuanDiTImagePipeline.from_model_manager(manager, denoiser=0).denoiser is not pipe.denoiser


def test_unknown_conventions_are_refused_with_those_there_are(v1_2: list[Path]) -> None:
    with pytest.raises(InvalidRequest, match="'comfy'; known are: diffsynth, original, diffusers"):
        load_toy(v1_2, "comfy")


def test_the_noise_schedule_is_that_of_the_version_and_is_told(
    v1_2: list[Path], v1_0: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        newer, older = load_toy(v1_2), load_toy(v1_0)

    assert (newer.beta_end, older.beta_end) == (0.018, 0.03)
    assert "noise schedule ends at beta 0.018" in caplog.text
    own = HunyuanDiTImagePipeline.from_model_manager(manager_of(*v1_2), beta_end=0.02)
    assert own.describe() == {"conventions": "diffsynth", "beta_end": 0.02, "latent_scale": 0.13025}


@pytest.mark.parametrize(
    ("vocabulary", "words"),
    [("tokenizer/vocab.txt", "wordpiece vocabulary"), ("mt5/spiece.model", "sentencepiece vocabulary")],
)
def test_a_missing_vocabulary_is_an_error_that_lists_the_places(tmp_path: Path, vocabulary: str, words: str) -> None:
    paths = write_models(tmp_path)
    (tmp_path / "t2i" / vocabulary).unlink()

    with pytest.raises(TokenizerNotFound) as caught:
        HunyuanDiTImagePipeline.from_model_manager(manager_of(*paths))

    assert words in str(caught.value)
    assert str(tmp_path / "t2i" / vocabulary) in str(caught.value)


def test_vocabularies_may_lie_anywhere_when_named(v1_2: list[Path], tmp_path: Path) -> None:
    root = v1_2[0].parent.parent
    paths = [Path(shutil.copy(path, tmp_path / f"{index}.bin")) for index, path in enumerate(v1_2)]

    pipe = HunyuanDiTImagePipeline.from_model_manager(
        manager_of(*paths), clip_tokenizer=root / "tokenizer", t5_tokenizer=str(root / "mt5" / "spiece.model")
    )

    small: dict[str, Any] = {"height": 32, "width": 32, "num_inference_steps": 1, "seed": 1}
    assert pipe(PROMPT, **small).tobytes() == load_toy(v1_2)(PROMPT, **small).tobytes()


def with_vocabulary_inside(mt5: Path, vocabulary: torch.Tensor, path: Path) -> Path:
    """Write an mT5 encoder as a file that carries its vocabulary."""
    state = torch.load(mt5, weights_only=True)
    parts = {key: state[key] for key in state if key.startswith("encoder.block") or "final" in key or "shared" in key}
    inside = {f"mt5xl.transformer.{key}": value for key, value in parts.items()}
    save_file({"mt5xl.spiece_model": vocabulary, **inside}, path)
    return path


def spelled(mt5: Path) -> torch.Tensor:
    return torch.frombuffer(bytearray((mt5.parent / "spiece.model").read_bytes()), dtype=torch.uint8)


def test_a_vocabulary_inside_the_weight_file_is_used(v1_2: list[Path], tmp_path: Path) -> None:
    encoder = with_vocabulary_inside(v1_2[1], spelled(v1_2[1]), tmp_path / "encoder.safetensors")

    pipe = HunyuanDiTImagePipeline.from_model_manager(manager_of(v1_2[0], encoder, *v1_2[2:]))

    small: dict[str, Any] = {"height": 32, "width": 32, "num_inference_steps": 1, "seed": 1}
    assert pipe(PROMPT, **small).tobytes() == load_toy(v1_2)(PROMPT, **small).tobytes()
    assert [each.role for each in pipe.vocabularies] == ["clip_tokenizer"]


@pytest.mark.parametrize("kind", ["bfloat16", "int64", "folded", "empty", "cut"])
def test_a_vocabulary_inside_the_weight_file_that_is_none_is_named(v1_2: list[Path], tmp_path: Path, kind: str) -> None:
    whole = spelled(v1_2[1])
    damaged = {
        "bfloat16": whole.to(torch.bfloat16),
        "int64": whole.long(),
        "folded": whole[:100].reshape(10, 10),
        "empty": whole[:0],
        "cut": whole[: len(whole) // 2],
    }[kind]
    encoder = with_vocabulary_inside(v1_2[1], damaged, tmp_path / "encoder.safetensors")
    manager = manager_of(v1_2[0], encoder, *v1_2[2:])

    with pytest.raises(CheckpointError, match=r"spiece_model") as caught:
        HunyuanDiTImagePipeline.from_model_manager(manager)

    assert str(encoder) in str(caught.value)
    assert "t5_tokenizer=" in str(caught.value) or kind in ("empty", "cut")
    HunyuanDiTImagePipeline.from_model_manager(manager, t5_tokenizer=v1_2[1].parent)


def test_a_vocabulary_of_another_encoder_is_refused(v1_2: list[Path], tmp_path: Path) -> None:
    vocabulary = tmp_path / "vocab.txt"
    lines = (v1_2[0].parent.parent / "tokenizer" / "vocab.txt").read_text("utf-8").splitlines()
    vocabulary.write_text("\n".join([*lines, *(f"word{number}" for number in range(9))]), "utf-8")

    with pytest.raises(CheckpointError, match="embedding has"):
        HunyuanDiTImagePipeline.from_model_manager(manager_of(*v1_2), clip_tokenizer=vocabulary)


def test_prompts_that_are_too_long_are_reported_with_what_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = load_toy(write_toy(tmp_path, text_len=9, t5_len=12))
    small: dict[str, Any] = {"height": 32, "width": 32, "num_inference_steps": 1, "seed": 1}
    prompt = "一只獾轻轻嗅着一朵黄色玫瑰"

    with caplog.at_level(logging.WARNING):
        whole, cut = pipe(prompt, **small), pipe("一只獾轻轻嗅着", **small)

    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert messages[0].startswith("BertClip reads 9 tokens")
    assert messages[0].endswith("does not see '一朵黄色玫瑰'")
    assert messages[1].startswith("MT5Encoder reads 12 tokens")
    assert "玫瑰" in messages[1]
    assert whole.tobytes() != cut.tobytes()  # the longer encoder still saw more


def test_a_weight_file_that_changed_since_it_was_loaded_is_not_drawn_with(tmp_path: Path) -> None:
    paths = write_toy(tmp_path)
    pipe = load_toy(paths, dtype=None)
    content = paths[2].read_bytes()
    paths[2].write_bytes(content[:-1] + b"x")

    with pytest.raises(CorruptCheckpoint, match=r"pytorch_model_ema\.pt"):
        pipe(PROMPT, height=32, width=32, num_inference_steps=1)

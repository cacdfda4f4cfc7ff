"""Folders as the Diffusers and transformers libraries write them: we load them and compute what they compute."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffsynth.errors import UnknownCheckpoint
from diffsynth.manager import ModelManager
from diffsynth.models.hunyuan_dit.condition import TextFeatures
from diffsynth.models.hunyuan_dit.rope import build_rope
from tests.spellings import liven

pytest.importorskip("diffusers")

LAYOUTS = {
    "hunyuan_dit": "diffusers",
    "bert_clip": "transformers",
    "mt5": "transformers",
    "autoencoder_kl": "diffusers",
}
FOLDERS = ("text_encoder", "text_encoder_2", "transformer", "vae")


@dataclass(frozen=True, eq=False)
class Theirs:
    """The networks of one release, made by the libraries, and the folder they were saved to."""

    folder: Path
    sizes: bool
    transformer: Any
    text_encoder: Any
    text_encoder_2: Any
    vae: Any


def make_release(folder: Path, *, sizes: bool, shard_size: str) -> Theirs:
    """Build the four networks and save them; ``sizes`` makes it version 1.0, which is told the image's size."""
    from diffusers import AutoencoderKL, HunyuanDiT2DModel
    from transformers import BertConfig, BertModel, T5Config, T5EncoderModel

    transformer = HunyuanDiT2DModel(
        num_attention_heads=3,
        attention_head_dim=16,
        in_channels=4,
        patch_size=2,
        sample_size=16,
        hidden_size=48,
        num_layers=4,
        mlp_ratio=80 / 48,
        learn_sigma=True,
        cross_attention_dim=64,
        cross_attention_dim_t5=40,
        pooled_projection_dim=64,
        text_len=5,
        text_len_t5=9,
        use_style_cond_and_image_meta_size=sizes,
    )
    bert = BertConfig(
        vocab_size=61, hidden_size=64, num_hidden_layers=3, num_attention_heads=1, intermediate_size=72,
        max_position_embeddings=80,
    )  # fmt: skip
    t5 = T5Config(
        vocab_size=67, d_model=40, d_kv=12, d_ff=56, num_layers=4, num_heads=3, feed_forward_proj="gated-gelu",
    )  # fmt: skip
    vae = AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(32, 64, 96, 128), layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    made = Theirs(folder, sizes, *map(liven, (transformer, BertModel(bert), T5EncoderModel(t5), vae)))
    for name in FOLDERS:
        getattr(made, name).save_pretrained(folder / name, max_shard_size=shard_size)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "HunyuanDiTPipeline"}), "utf-8")
    (folder / "scheduler").mkdir()
    (folder / "tokenizer").mkdir()
    return made


@pytest.fixture(scope="module", params=["v1.0 in shards", "v1.2 in single files"])
def release(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Theirs:
    sharded = "shards" in request.param
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make_release(
            tmp_path_factory.mktemp("release"), sizes="v1.0" in request.param, shard_size="200KB" if sharded else "1GB"
        )


def load(folder: Path) -> ModelManager:
    return ModelManager(torch_dtype=torch.float32, device="cpu", file_path_list=[folder])


def test_a_folder_with_an_index_gives_its_four_networks(release: Theirs) -> None:
    manager = load(release.folder)

    assert {entry.family.name: entry.found.layout.name for entry in manager} == LAYOUTS
    assert manager.find("hunyuan_dit").config.size_conditioning is release.sizes


def test_the_folders_may_be_given_one_by_one(release: Theirs) -> None:
    manager = ModelManager(torch_dtype=torch.float32, device="cpu")

    for name, family in zip(FOLDERS, ("bert_clip", "mt5", "hunyuan_dit", "autoencoder_kl"), strict=True):
        (entry,) = manager.load_model(release.folder / name)
        assert (entry.family.name, entry.path) == (family, release.folder / name)
        assert manager.find(family, variant=name) is entry


def test_a_part_that_is_no_known_network_is_passed_over(
    release: Theirs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(release.folder, tmp_path / "release")
    (tmp_path / "release" / "safety_checker").mkdir()
    torch.save({"concept_embeds": torch.ones(3)}, tmp_path / "release" / "safety_checker" / "pytorch_model.bin")

    with caplog.at_level(logging.INFO, "diffsynth"):
        manager = load(tmp_path / "release")

    assert len(manager) == 4
    assert "safety_checker" in caplog.text


def test_a_folder_of_nothing_but_unknown_networks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    torch.save({"concept_embeds": torch.ones(3)}, tmp_path / "part" / "pytorch_model.bin")

    with pytest.raises(UnknownCheckpoint, match="concept_embeds"):
        load(tmp_path)


@torch.inference_mode()
def test_the_denoiser_predicts_what_diffusers_predicts(release: Theirs) -> None:
    network: Any = load(release.folder / "transformer").fetch_model("hunyuan_dit")
    text = TextFeatures(
        torch.randn(1, 5, 64), torch.arange(5)[None] < 3, torch.randn(1, 9, 40), torch.arange(9)[None] < 4
    )
    latents, rope = torch.randn(1, 4, 8, 12), build_rope(4, 6, 16)
    sizes = torch.tensor([[1024.0, 768.0, 1280.0, 768.0, 0.0, 0.0]]) if release.sizes else None

    velocity = network(latents, torch.tensor([700.0]), text, rope, sizes)

    (expected,) = release.transformer(
        latents,
        torch.tensor([700.0]),
        encoder_hidden_states=text.clip,
        text_embedding_mask=text.clip_mask,
        encoder_hidden_states_t5=text.t5,
        text_embedding_mask_t5=text.t5_mask,
        image_meta_size=sizes,
        style=torch.zeros(1, dtype=torch.int64),
        image_rotary_emb=(rope.cos, rope.sin),
        return_dict=False,
    )
    torch.testing.assert_close(velocity, expected.chunk(2, dim=1)[0], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_the_text_encoders_give_the_features_of_transformers(release: Theirs) -> None:
    manager = load(release.folder)
    tokens, mask = torch.tensor([[5, 3, 60, 0, 0]]), torch.tensor([[True, True, True, False, False]])

    for family, theirs in (("bert_clip", release.text_encoder), ("mt5", release.text_encoder_2)):
        found: Tensor = manager.fetch_model(family)(tokens, mask)
        expected = theirs(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_the_autoencoder_decodes_and_encodes_as_diffusers_does(release: Theirs) -> None:
    network: Any = load(release.folder / "vae").fetch_model("vae")
    latents, image = torch.randn(1, 4, 3, 5), torch.rand(1, 3, 24, 40) * 2 - 1

    decoded, posterior = network.decode(latents), network.encode(image)

    theirs = release.vae.encode(image).latent_dist
    torch.testing.assert_close(decoded, release.vae.decode(latents).sample, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(posterior.mean, theirs.mean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(posterior.std, theirs.std, atol=1e-4, rtol=1e-4)

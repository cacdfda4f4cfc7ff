"""Whole releases of Stable Diffusion, made small: single files of every age, folders, and fine-tunes of them."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffsynth.core.saving import save_network, to_layout
from diffsynth.errors import StateDictMismatch
from diffsynth.manager import ModelManager
from diffsynth.models import autoencoder_kl, clip, unet
from diffsynth.models.clip.config import ClipTextConfig
from diffsynth.models.unet.weights import SCHEDULE
from diffsynth.types import StateDict
from examples.random_stable_diffusion import RELEASES, build, single_file, write_diffusers_folder, write_single_file
from tests import spellings
from tests.spellings import assert_same_weights

each_release = pytest.mark.parametrize("name", RELEASES)
FOLDERS = {"unet": "model.diffusion_model.", "vae": "first_stage_model."}


@cache
def state_of(name: str) -> StateDict:
    return single_file(build(name))


def load(path: Path) -> ModelManager:
    return ModelManager(torch_dtype=torch.float32, device="cpu", file_path_list=[path])


def assert_holds(manager: ModelManager, name: str, *, without: tuple[str, ...] = ()) -> None:
    """The manager has every network of a release, bit for bit."""
    expected = {part.prefix: (part, module) for part, module in build(name) if part.folder not in without}
    assert {entry.found.prefix for entry in manager} == expected.keys()
    for entry in manager:
        part, module = expected[entry.found.prefix]
        assert (entry.family, entry.config, entry.found.layout.name) == (part.family, part.config, part.layout)
        assert_same_weights(entry.module, module)


def ema_of(state: StateDict) -> StateDict:
    """The moving average as training programs keep it: names without dots, two counters."""
    marks = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(5, dtype=torch.int32)}
    own = {key.removeprefix("model."): t for key, t in state.items() if key.startswith("model.")}
    return {f"model_ema.{key.replace('.', '')}": tensor + 1 for key, tensor in own.items()} | marks


def schedule() -> StateDict:
    return {name: torch.zeros(1000) for name in SCHEDULE if "." not in name}


@each_release
def test_a_single_file_gives_every_network(name: str, tmp_path: Path) -> None:
    path = write_single_file(tmp_path, name)

    manager = load(path)

    assert_holds(manager, name)
    assert manager.registry.identify(next(iter(manager)).checkpoint).unclaimed == ()


@each_release
def test_a_folder_of_diffusers_gives_the_same_networks(name: str, tmp_path: Path) -> None:
    manager = load(write_diffusers_folder(tmp_path / name, name))

    modules = {part.folder: module for part, module in build(name)}
    assert len(manager) == len(modules)
    for entry in manager:
        assert_same_weights(entry.module, modules[entry.path.name])


@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_an_older_file_with_schedule_and_moving_average_gives_its_weights(
    container: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = state_of("sd15")
    average = ema_of(state)
    content = {"state_dict": state | schedule() | average, "global_step": 840000, "epoch": 3}
    torch.save(content, tmp_path / "v1-5.ckpt", _use_new_zipfile_serialization=container == "zip")

    with caplog.at_level(logging.INFO, "diffsynth"):
        manager = load(tmp_path / "v1-5.ckpt")

    assert_holds(manager, "sd15")
    unread = [record.getMessage() for record in caplog.records if "stay unread" in record.getMessage()]
    assert len(unread) == 1
    assert f"{len(average) - 2} tensors stay unread: model_ema.diffusion_model" in unread[0]


@pytest.mark.parametrize("name", ["sdxl", "sdxl-refiner"])
def test_a_file_may_lack_what_is_no_weight(name: str, tmp_path: Path) -> None:
    state = {key: tensor for key, tensor in state_of(name).items() if not key.endswith(("position_ids", "logit_scale"))}
    save_file(state, tmp_path / "fine-tune.safetensors")

    assert_holds(load(tmp_path / "fine-tune.safetensors"), name)


def test_marks_of_a_fine_tune_belong_to_its_denoiser(tmp_path: Path) -> None:
    marks = {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([]), "denoiser.sigmas": torch.zeros(1000)}
    save_file(state_of("sdxl") | marks, tmp_path / "v.safetensors")

    manager = load(tmp_path / "v.safetensors")

    assert_holds(manager, "sdxl")
    assert manager.find("unet").found.beside == marks.keys()


def test_foreign_keys_are_told_once_and_hurt_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    foreign = {"embedding_manager.x": torch.ones(3), "first_stage_model.loss.logvar": torch.zeros(())}
    save_file(state_of("sdxl") | foreign, tmp_path / "merge.safetensors")

    with caplog.at_level(logging.INFO, "diffsynth"):
        manager = load(tmp_path / "merge.safetensors")

    assert_holds(manager, "sdxl")
    message = "2 tensors stay unread: embedding_manager.x, first_stage_model.loss.logvar"
    assert [record.getMessage().endswith(message) for record in caplog.records].count(True) == 1


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_file_without_one_of_its_networks_gives_the_others(folder: str, tmp_path: Path) -> None:
    state = {key: tensor for key, tensor in state_of("sd15").items() if not key.startswith(FOLDERS[folder])}
    save_file(state, tmp_path / "pruned.safetensors")

    assert_holds(load(tmp_path / "pruned.safetensors"), "sd15", without=(folder,))


def test_a_text_encoder_without_its_projection_is_one_that_pools_nothing(tmp_path: Path) -> None:
    state = {key: tensor for key, tensor in state_of("sdxl").items() if not key.endswith("text_projection")}
    save_file(state, tmp_path / "pruned.safetensors")

    encoder: Any = load(tmp_path / "pruned.safetensors").fetch_model("clip", "conditioner.embedders.1.model")

    assert encoder.config.projection_size == 0
    assert encoder(torch.zeros(1, 77, dtype=torch.int64)).pooled is None


def test_a_text_encoder_with_added_tokens_keeps_its_end_token(tmp_path: Path) -> None:
    key = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
    grown = state_of("sd15") | {key: torch.randn(49408 + 3, 64)}
    save_file(grown, tmp_path / "grown.safetensors")

    config = load(tmp_path / "grown.safetensors").find("clip").config

    assert (config.vocab_size, config.end_token) == (49411, 49407)


def test_old_names_without_the_outer_level_are_known(tmp_path: Path) -> None:
    state = {key.replace("transformer.text_model.", "transformer."): t for key, t in state_of("sd15").items()}
    save_file(state, tmp_path / "old.safetensors")

    entry = load(tmp_path / "old.safetensors").find("clip")

    assert (entry.found.layout.name, entry.found.prefix) == ("transformers-bare", "cond_stage_model.transformer.")
    assert_same_weights(entry.module, next(module for part, module in build("sd15") if part.folder == "text_encoder"))


def test_a_file_in_half_precision_gives_a_vae_in_full(tmp_path: Path) -> None:
    half = {key: t.half() if t.is_floating_point() else t for key, t in state_of("sdxl").items()}
    save_file(half, tmp_path / "fp16.safetensors")

    manager = ModelManager(torch_dtype=torch.float16, device="cpu", file_path_list=[tmp_path / "fp16.safetensors"])

    assert {entry.family.name: entry.dtype for entry in manager} == {
        "autoencoder_kl": torch.float32,
        "clip": torch.float16,
        "unet": torch.float16,
    }


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
@pytest.mark.parametrize("spelling", ["diffusers", "diffusers-old", "ldm"])
def test_a_separate_vae_loads_in_every_spelling(prefix: str, spelling: str, tmp_path: Path) -> None:
    network = spellings.lively(autoencoder_kl.FAMILY)
    names = spellings.diffusers_vae(network)
    respelt = {"diffusers": names, "diffusers-old": spellings.old_vae(names), "ldm": spellings.ldm_vae(names)}[spelling]
    state: dict[str, Tensor] = spellings.saved_as(spellings.under(prefix, respelt), torch.float32)
    save_file(state, tmp_path / "vae.safetensors")

    (entry,) = load(tmp_path / "vae.safetensors")

    assert (entry.found.layout.name, entry.found.prefix) == (spelling, prefix)
    assert_same_weights(entry.module, network)


def test_two_releases_live_side_by_side_and_are_told_apart(tmp_path: Path) -> None:
    manager = load(write_single_file(tmp_path, "sdxl"))
    manager.load_models([write_single_file(tmp_path, "sdxl-refiner")])

    base, refiner = (manager.find("unet", variant) for variant in ("sdxl", "sdxl-refiner"))

    assert base.config.label_size - refiner.config.label_size == 256
    assert manager.find("unet", 0) is base
    assert len(manager) == 7


def test_a_network_is_found_by_the_version_its_family_tells(tmp_path: Path) -> None:
    wide = ClipTextConfig(vocab_size=5, end_token=4, mlp_size=8, max_positions=3, hidden_size=1024, num_layers=1)
    for name, config in (("a", ClipTextConfig.tiny()), ("b", wide)):
        save_network(clip.FAMILY.build(config), clip.FAMILY, config, tmp_path / name, "transformers")

    manager = ModelManager(torch_dtype=torch.float32, device="cpu", file_path_list=[tmp_path / "a", tmp_path / "b"])

    assert manager.find("clip", "OpenCLIP H").path.name == "b"


@each_release
def test_a_single_file_saved_part_by_part_gives_its_keys_back(name: str, tmp_path: Path) -> None:
    path = write_single_file(tmp_path, name)
    manager = load(path)

    written: StateDict = {}
    for number, entry in enumerate(manager):
        part = manager.save(
            entry.family.name, tmp_path / f"{number}.safetensors", variant=entry.found.prefix.rstrip(".")
        )
        written |= {entry.found.prefix + key: tensor for key, tensor in load_file(part).items()}

    original = load_file(path)
    assert {key for key in original if key not in written} == {
        key for key in original if key.endswith(("position_ids", "logit_scale"))
    }
    assert all(torch.equal(tensor, original[key]) for key, tensor in written.items())


TEXT = "cond_stage_model.transformer.text_model.embeddings"
HARMLESS = {
    "position_ids in half precision": {f"{TEXT}.position_ids": torch.arange(77, dtype=torch.float16)[None]},
    "schedule": schedule(),
    "one buffer of the schedule": {"alphas_cumprod": torch.zeros(1000)},
    "counters of a moving average": {"model_ema.decay": torch.tensor(0.9), "model_ema.num_updates": torch.tensor(5)},
    "marks": {"v_pred": torch.tensor([])},
    "a logit scale where none belongs": {"cond_stage_model.logit_scale": torch.tensor(4.6)},
}
UNREAD = {
    "a LoRA that was left in": {
        "lora_unet_mid_block_attentions_0_proj_in.alpha": torch.tensor(4.0),
        "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.zeros(4, 96, 1, 1),
        "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": torch.zeros(96, 4, 1, 1),
    },
    "a loss": {"first_stage_model.loss.logvar": torch.zeros(())},
    "of another program": {"state.iteration": torch.tensor(3)},
}


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("what", [*HARMLESS, *UNREAD])
def test_what_fine_tunes_carry_hurts_nothing_and_is_told(
    what: str, suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state, path = state_of("sd15") | (HARMLESS | UNREAD)[what], tmp_path / f"tune{suffix}"
    if suffix == ".ckpt":
        torch.save({"state_dict": state}, path)
    else:
        save_file(state, path)

    with caplog.at_level(logging.INFO, "diffsynth"):
        manager = load(path)

    assert_holds(manager, "sd15")
    unread = [record.getMessage() for record in caplog.records if "stay unread" in record.getMessage()]
    assert len(unread) == (what in UNREAD)
    assert all(f"{len(UNREAD[what])} tensors stay unread: {min(UNREAD[what])}" in message for message in unread)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "unet."])
@pytest.mark.parametrize("layout", ["ldm", "diffusers"])
@pytest.mark.parametrize("name", ["sd15", "sd15-inpainting", "sdxl", "sdxl-refiner"])
def test_a_separate_unet_loads_in_both_layouts(name: str, layout: str, prefix: str, tmp_path: Path) -> None:
    part, module = next((part, module) for part, module in build(name) if part.family is unet.FAMILY)
    state = {prefix + key: tensor for key, tensor in to_layout(module, unet.FAMILY.layout(layout), part.config).items()}
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, tmp_path / "unet.safetensors")

    (entry,) = load(tmp_path / "unet.safetensors")

    assert (entry.found.layout.name, entry.found.prefix, entry.config) == (layout, prefix, part.config)
    assert_same_weights(entry.module, module)


@pytest.mark.parametrize(
    "key",
    [
        "model.diffusion_model.input_blocks.1.1.proj_in.bias",
        "first_stage_model.decoder.mid.block_1.conv1.weight",
        "cond_stage_model.transformer.text_model.encoder.layers.1.mlp.fc2.weight",
    ],
)
def test_a_weight_that_is_missing_is_named_with_its_file(key: str, tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in state_of("sd15").items() if name != key}
    save_file(state, tmp_path / "broken.safetensors")

    with pytest.raises(StateDictMismatch) as caught:
        load(tmp_path / "broken.safetensors")

    assert str(tmp_path / "broken.safetensors") in str(caught.value)
    assert key in str(caught.value)


def test_a_network_that_nearly_is_one_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    key = "first_stage_model.decoder.conv_in.weight"
    save_file({name: tensor for name, tensor in state_of("sd15").items() if name != key}, tmp_path / "a.safetensors")

    manager = load(tmp_path / "a.safetensors")

    assert_holds(manager, "sd15", without=("vae",))
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        f"{tmp_path / 'a.safetensors'}: not loaded, because the file is damaged or incomplete: "
        f"autoencoder_kl (layout 'ldm'): missing {key}"
    ]

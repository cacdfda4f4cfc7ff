"""The model manager: what it holds, how it is asked, how it lets go, and what it says when it cannot help."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from diffsynth.core.checkpoint import Checkpoint
from diffsynth.errors import (
    AmbiguousModel,
    CorruptCheckpoint,
    InvalidRequest,
    ModelNotLoaded,
    StateDictMismatch,
    UnknownCheckpoint,
)
from diffsynth.manager import ModelManager
from diffsynth.models import autoencoder_kl, bert_clip, hunyuan_dit, mt5
from diffsynth.models.autoencoder_kl.model import AutoencoderKL
from diffsynth.models.bert_clip.model import BertClip
from diffsynth.models.hunyuan_dit.model import HunyuanDiT
from diffsynth.models.mt5.model import MT5Encoder
from examples.random_models import write_models
from tests import spellings
from tests.spellings import assert_same_weights, lively, saved_as

FAMILIES = {family.name: family for family in (hunyuan_dit.FAMILY, bert_clip.FAMILY, mt5.FAMILY, autoencoder_kl.FAMILY)}


def manager_of(*paths: Path, dtype: torch.dtype | None = torch.float32) -> ModelManager:
    return ModelManager(torch_dtype=dtype, device="cpu", file_path_list=paths)


def write_dit(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(exist_ok=True)
    save_file(saved_as(spellings.original_dit(lively(hunyuan_dit.FAMILY, seed=seed)), torch.float32), path)
    return path


# Loading


def test_the_published_files_are_loaded(toy_files: list[Path]) -> None:
    manager = manager_of(*toy_files)

    kinds = [type(entry.module) for entry in manager]
    assert kinds == [BertClip, MT5Encoder, HunyuanDiT, AutoencoderKL]
    assert len(manager) == len(manager.names()) == 4


def test_weights_are_ready_for_use(toy_files: list[Path]) -> None:
    for entry in manager_of(*toy_files):
        assert not entry.module.training
        assert all(not weight.requires_grad and weight.device.type == "cpu" for weight in entry.module.parameters())
        assert all(not buffer.is_meta for buffer in entry.module.buffers())


def test_the_dtype_is_the_managers_but_the_autoencoder_stays_in_float32(toy_files: list[Path]) -> None:
    manager = manager_of(*toy_files, dtype=torch.bfloat16)

    dtypes = {entry.family.name: entry.dtype for entry in manager}
    assert dtypes.pop("autoencoder_kl") is torch.float32
    assert set(dtypes.values()) == {torch.bfloat16}


def test_each_file_may_have_a_dtype_of_its_own(toy_files: list[Path]) -> None:
    manager = manager_of(toy_files[0], dtype=torch.float16)

    (t5,) = manager.load_model(toy_files[1], torch_dtype=torch.bfloat16)
    (vae,) = manager.load_models(toy_files[3:], torch_dtype=torch.float16)

    assert (manager.find("bert_clip").dtype, t5.dtype, vae.dtype) == (torch.float16, torch.bfloat16, torch.float16)
    assert {weight.dtype for weight in vae.module.parameters()} == {torch.float16}


def test_without_a_dtype_each_file_keeps_its_own(tmp_path: Path) -> None:
    state = saved_as(spellings.original_dit(lively(hunyuan_dit.FAMILY)), torch.bfloat16)
    state["x_embedder.proj.weight"] = state["x_embedder.proj.weight"].float()
    save_file(state, tmp_path / "mixed.safetensors")

    module = manager_of(tmp_path / "mixed.safetensors", dtype=None).fetch_model(HunyuanDiT)

    assert module.patch_embed.proj.weight.dtype is torch.float32
    assert module.final.linear.weight.dtype is torch.bfloat16


def test_a_file_given_twice_is_loaded_once(toy_files: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    manager = manager_of(toy_files[2])
    (first,) = manager

    with caplog.at_level(logging.INFO, "diffsynth.manager"):
        (again,) = manager.load_model(str(toy_files[2]))
        (by_another_way,) = manager.load_model(toy_files[2].parent / ".." / "model" / toy_files[2].name)

    assert again is by_another_way is first
    assert len(manager) == 1
    assert caplog.text.count("is loaded already") == 2


def test_a_link_to_a_loaded_file_is_that_file(toy_files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "link.pt").symlink_to(toy_files[2])

    manager = manager_of(toy_files[2], tmp_path / "link.pt")

    assert len(manager) == 1


def test_a_file_that_was_changed_is_loaded_again(tmp_path: Path) -> None:
    path = write_dit(tmp_path / "dit.safetensors", seed=1)
    manager = manager_of(path)
    replaced = write_dit(tmp_path / "new.safetensors", seed=2)
    os.replace(replaced, path)
    os.utime(path, (1, 1))

    manager.load_model(path)

    assert_same_weights(manager.fetch_model(HunyuanDiT), lively(hunyuan_dit.FAMILY, seed=2))


def test_a_file_that_was_spoilt_does_not_take_the_place_of_what_was_loaded(tmp_path: Path) -> None:
    path = write_dit(tmp_path / "dit.safetensors")
    manager = manager_of(path, dtype=torch.bfloat16)
    state = load_file(path)
    save_file(state | {"blocks.1.norm1.bias": torch.zeros(7)}, path)

    with pytest.raises(StateDictMismatch):
        manager.load_model(path)

    assert_same_weights(manager.fetch_model(HunyuanDiT), lively(hunyuan_dit.FAMILY), torch.bfloat16)


def test_a_file_that_changes_under_mapped_weights_is_noticed(tmp_path: Path) -> None:
    (mapped,) = manager_of(write_dit(tmp_path / "dit.safetensors"))
    (copied,) = manager_of(write_dit(tmp_path / "copy.safetensors"), dtype=torch.float16)
    (read,) = ModelManager(torch.float32, "cpu", mmap=False).load_model(write_dit(tmp_path / "read.safetensors"))
    for entry in (mapped, copied, read):
        entry.check_unchanged()
        os.utime(entry.path, (1, 1))

    with pytest.raises(CorruptCheckpoint, match="changed while it was in use"):
        mapped.check_unchanged()
    copied.check_unchanged()
    read.check_unchanged()


@pytest.mark.parametrize("mmap", [True, False], ids=["mapped", "read"])
def test_writing_to_weights_does_not_reach_the_file(mmap: bool, tmp_path: Path) -> None:
    path = write_dit(tmp_path / "dit.safetensors")
    before = path.read_bytes()

    (entry,) = ModelManager(torch.float32, "cpu", mmap=mmap).load_model(path)
    for weight in entry.module.parameters():
        weight.fill_(1.0)

    assert path.read_bytes() == before
    assert entry.mapped is mmap


def test_loading_draws_no_random_numbers(toy_files: list[Path]) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)

    torch.manual_seed(5)
    manager_of(*toy_files)

    assert torch.equal(torch.rand(3), expected)


def test_a_failed_file_leaves_what_was_loaded(toy_files: list[Path], tmp_path: Path) -> None:
    manager = manager_of(toy_files[2])
    torch.save({"weight": torch.ones(3)}, tmp_path / "other.bin")

    with pytest.raises(UnknownCheckpoint):
        manager.load_models([tmp_path / "other.bin"])

    assert len(manager) == 1


# Asking


def test_networks_are_fetched_by_class_by_name_and_by_the_names_other_scripts_use(toy_files: list[Path]) -> None:
    manager = manager_of(*toy_files)

    assert manager.fetch_model(HunyuanDiT) is manager.fetch_model("hunyuan_dit")
    assert manager.fetch_model(BertClip) is manager.fetch_model("hunyuan_dit_clip_text_encoder")
    assert manager.fetch_model(MT5Encoder) is manager.fetch_model("hunyuan_dit_t5_text_encoder")
    assert manager.fetch_model(AutoencoderKL) is manager.fetch_model("sdxl_vae_decoder")


def test_what_is_not_loaded_is_named_with_what_is(toy_files: list[Path]) -> None:
    manager = manager_of(toy_files[0])

    with pytest.raises(ModelNotLoaded, match=r"HunyuanDiT; loaded are: bert_clip from .*model\.bin"):
        manager.fetch_model(HunyuanDiT)
    with pytest.raises(ModelNotLoaded, match=r"mt5; nothing is loaded\. Load its file with load_model"):
        ModelManager(device="cpu").fetch_model("mt5")


def test_an_unknown_kind_is_answered_with_the_nearest() -> None:
    with pytest.raises(InvalidRequest, match=r"no kind of network called 'hunyan_dit'\. Known are: hunyuan_dit"):
        ModelManager(device="cpu").fetch_model("hunyan_dit")


def test_of_two_denoisers_none_is_taken_silently(tmp_path: Path) -> None:
    one, two = write_dit(tmp_path / "one" / "dit.safetensors", 1), write_dit(tmp_path / "two" / "dit_b.safetensors", 2)
    manager = manager_of(one, two)

    with pytest.raises(AmbiguousModel) as raised:
        manager.fetch_model(HunyuanDiT)

    message = str(raised.value)
    assert message.startswith("HunyuanDiT fits 2 loaded networks: ")
    assert str(one) in message
    assert str(two) in message
    assert "variant=" in message


def test_a_variant_is_a_file_a_folder_or_an_index(tmp_path: Path) -> None:
    one, two = write_dit(tmp_path / "one" / "dit.safetensors", 1), write_dit(tmp_path / "two" / "dit_b.safetensors", 2)
    manager = manager_of(one, two)
    first, second = (entry.module for entry in manager)

    for variant in (0, -2, str(one), "dit.safetensors", "dit", "one"):
        assert manager.fetch_model(HunyuanDiT, variant) is first
    for variant in (1, -1, str(two), "dit_b.safetensors", "dit_b", "two"):
        assert manager.fetch_model("hunyuan_dit", variant) is second
    for variant in (2, -3, "three"):
        with pytest.raises(ModelNotLoaded, match=rf"HunyuanDiT \({variant}\); loaded are"):
            manager.fetch_model(HunyuanDiT, variant)


def test_networks_of_one_file_are_told_apart_by_their_prefix(tmp_path: Path) -> None:
    networks = {name: lively(hunyuan_dit.FAMILY, seed=seed) for seed, name in enumerate(("base", "other"))}
    states = [spellings.under(f"{name}.", spellings.original_dit(each)) for name, each in networks.items()]
    save_file(saved_as(states[0] | states[1], torch.float32), tmp_path / "pair.safetensors")

    manager = manager_of(tmp_path / "pair.safetensors")

    for name, network in networks.items():
        assert_same_weights(manager.fetch_model(HunyuanDiT, name), network)


def test_kind_takes_one_network_from_a_file_of_many(tmp_path: Path) -> None:
    parts = [lively(FAMILIES[name]) for name in ("hunyuan_dit", "bert_clip", "mt5", "autoencoder_kl")]
    save_file(saved_as(spellings.comfyui(*parts), torch.float32), tmp_path / "all.safetensors")

    (entry,) = ModelManager(device="cpu").load_model(tmp_path / "all.safetensors", kind="vae")

    assert entry.family.name == "autoencoder_kl"


def test_kind_that_does_not_fit_says_what_is_missing(toy_files: list[Path]) -> None:
    with pytest.raises(UnknownCheckpoint, match=r"not recognised as mt5.*nearest|not recognised as mt5"):
        ModelManager(device="cpu").load_model(toy_files[2], kind="mt5")
    with pytest.raises(InvalidRequest, match="no kind of network called 'dit5'"):
        ModelManager(device="cpu").load_model(toy_files[2], kind="dit5")


# Letting go


def test_released_networks_are_freed(toy_files: list[Path]) -> None:
    manager = manager_of(*toy_files, dtype=torch.bfloat16)
    modules = [weakref.ref(entry.module) for entry in manager]
    files: list[weakref.ref[Checkpoint]] = [weakref.ref(entry.checkpoint) for entry in manager]

    manager.release("hunyuan_dit")
    assert [module() is None for module in modules] == [False, False, True, False]
    assert files[2]() is None

    manager.release()
    assert all(reference() is None for reference in (*modules, *files))
    assert len(manager) == 0


def test_releasing_unmaps_the_file(tmp_path: Path) -> None:
    if not Path("/proc/self/maps").exists():
        pytest.skip("no /proc")
    path = write_dit(tmp_path / "mapped.safetensors")
    manager = manager_of(path)
    assert str(path) in Path("/proc/self/maps").read_text()

    manager.release()

    assert str(path) not in Path("/proc/self/maps").read_text()


def test_what_is_still_held_elsewhere_lives_on(toy_files: list[Path]) -> None:
    manager = manager_of(toy_files[3])
    held = manager.fetch_model(AutoencoderKL)

    manager.release(AutoencoderKL)
    gc.collect()

    assert torch.isfinite(held.decode(torch.zeros(1, 4, 2, 2))).all()
    with pytest.raises(ModelNotLoaded):
        manager.release(AutoencoderKL)


def test_a_failed_load_leaves_no_memory_behind(tmp_path: Path) -> None:
    state = saved_as(spellings.original_dit(lively(hunyuan_dit.FAMILY)), torch.float32)
    state["blocks.1.norm1.bias"] = torch.zeros(7)
    save_file(state, tmp_path / "wrong.safetensors")
    before = sum(type(thing) is HunyuanDiT for thing in gc.get_objects())

    with pytest.raises(StateDictMismatch):
        manager_of(tmp_path / "wrong.safetensors")
    gc.collect()

    assert sum(type(thing) is HunyuanDiT for thing in gc.get_objects()) == before


# Places


@pytest.mark.parametrize("device", ["cuda:99", "nonsense", "mps:7", "xpu"])
def test_a_device_that_does_not_exist_is_refused_with_what_there_is(device: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"device '{device}' cannot be used here .* This machine has '"):
        ModelManager(device=device)


def test_moving_moves_all_and_the_files_that_follow(toy_files: list[Path]) -> None:
    manager = manager_of(*toy_files[:2])

    assert manager.to("cpu") is manager
    assert {entry.device.type for entry in manager} == {"cpu"}
    with pytest.raises(InvalidRequest, match="nonsense"):
        manager.to("nonsense")
    assert manager.device.type == "cpu"


# Saving, checking, showing


@pytest.mark.parametrize(
    ("family", "layout"), [(family.name, layout.name) for family in FAMILIES.values() for layout in family.layouts]
)
def test_a_saved_network_comes_back(family: str, layout: str, toy_files: list[Path], tmp_path: Path) -> None:
    manager = manager_of(*toy_files)

    path = manager.save(family, tmp_path / "new folder" / "saved.safetensors", layout=layout)

    (entry,) = manager_of(path)
    assert entry.found.layout.name == layout
    assert_same_weights(entry.module, manager.fetch_model(family))
    assert entry.checkpoint.metadata["format"] == "pt"
    assert [file.name for file in path.parent.iterdir()] == ["saved.safetensors"]


def test_an_unknown_layout_is_answered_with_those_there_are(toy_files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no layout 'comfy', only original, diffusers, diffsynth"):
        manager_of(toy_files[2]).save("hunyuan_dit", tmp_path / "saved.safetensors", layout="comfy")

    assert list(tmp_path.iterdir()) == []


def test_saving_over_the_file_that_the_weights_are_mapped_from_keeps_them(tmp_path: Path) -> None:
    path = write_dit(tmp_path / "dit.safetensors")
    manager = manager_of(path)

    manager.save("hunyuan_dit", path)

    assert_same_weights(manager_of(path).fetch_model(HunyuanDiT), lively(hunyuan_dit.FAMILY))
    assert_same_weights(manager.fetch_model(HunyuanDiT), lively(hunyuan_dit.FAMILY))


def test_a_network_that_gave_parts_away_is_not_saved(toy_files: list[Path], tmp_path: Path) -> None:
    manager = manager_of(toy_files[2])
    manager.fetch_model(HunyuanDiT).drop_condition_path()

    with pytest.raises(InvalidRequest, match="load it again"):
        manager.save("hunyuan_dit", tmp_path / "saved.safetensors")

    assert list(tmp_path.iterdir()) == []


def test_verify_finds_what_is_not_a_number_and_names_its_network(tmp_path: Path) -> None:
    parts = [lively(FAMILIES[name]) for name in ("hunyuan_dit", "bert_clip", "mt5", "autoencoder_kl")]
    state = saved_as(spellings.comfyui(*parts), torch.float32)
    save_file(state, tmp_path / "good.safetensors")
    key = "model.diffusion_model.blocks.2.mlp.fc1.weight"
    state[key][3, 4:6] = torch.nan
    state[key][5, 0] = torch.inf
    save_file(state, tmp_path / "bad.safetensors")

    assert manager_of(tmp_path / "good.safetensors").verify() == {}
    found = manager_of(tmp_path / "bad.safetensors").verify()

    (label,) = found
    assert label.startswith("hunyuan_dit from ")
    assert found[label] == {key: 3}


def test_the_manager_shows_what_it_holds(toy_files: list[Path]) -> None:
    assert repr(ModelManager(device="cpu")) == "ModelManager(device='cpu', 0 networks)"

    lines = repr(manager_of(*toy_files, dtype=torch.bfloat16)).splitlines()

    assert lines[0] == "ModelManager(device='cpu', 4 networks:"
    assert lines[3].split()[:2] == ["hunyuan_dit", "bfloat16"]
    assert lines[4].split()[:2] == ["autoencoder_kl", "float32"]
    assert all(str(path) in line for path, line in zip(toy_files, lines[1:], strict=True))


def test_shared_weights_are_counted_once(toy_files: list[Path]) -> None:
    entry = manager_of(toy_files[1]).find("mt5")

    state: dict[str, Any] = entry.module.state_dict()
    assert entry.nbytes == sum(t.nbytes for t in state.values()) - state["t5.shared.weight"].nbytes


def test_a_copy_of_the_file_elsewhere_is_another_network(toy_files: list[Path], tmp_path: Path) -> None:
    shutil.copy(toy_files[2], tmp_path / "copy.pt")

    manager = manager_of(toy_files[2], tmp_path / "copy.pt")

    assert len(manager) == 2
    assert isinstance(manager.fetch_model(HunyuanDiT, "copy"), nn.Module)


def test_moving_moves_every_network_and_later_files_follow(
    toy_files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[tuple[type, object]] = []
    original = nn.Module.to

    def watched(self: nn.Module, *to: Any, **options: Any) -> nn.Module:
        moved.append((type(self), to[0]))
        return original(self, *to, **options)

    monkeypatch.setattr(nn.Module, "to", watched)
    manager = ModelManager(torch_dtype=torch.float32, device="cpu", file_path_list=toy_files[2:])
    moved.clear()

    manager.to("cpu:0")

    assert {(type(entry.module), torch.device("cpu:0")) for entry in manager} <= set(moved)
    assert manager.device == torch.device("cpu:0")


def test_weights_that_were_converted_no_longer_depend_on_the_file(tmp_path: Path) -> None:
    files = write_models(tmp_path)
    manager = ModelManager(torch_dtype=None, device="cpu")
    (entry,) = manager.load_model(files[2])
    assert entry.mapped

    entry.module.to(torch.float64)
    os.utime(files[2])

    assert not entry.mapped
    entry.check_unchanged()


def test_of_a_training_checkpoint_only_the_moving_average_is_loaded(tmp_path: Path) -> None:
    raw, average = (spellings.original_dit(lively(hunyuan_dit.FAMILY, seed=seed)) for seed in (0, 1))
    both = {f"module.{key}": value for key, value in raw.items()} | {
        f"ema.{key}": value for key, value in average.items()
    }
    save_file(saved_as(both, torch.float32), tmp_path / "training.safetensors")

    manager = manager_of(tmp_path / "training.safetensors")

    (entry,) = manager
    assert entry.found.prefix == "ema."
    assert "under 'ema.'" in repr(manager)


@pytest.mark.parametrize("dtype", ["float16", torch.int8, torch.complex64])
def test_a_dtype_that_weights_cannot_have_is_refused(dtype: Any) -> None:
    with pytest.raises(InvalidRequest, match="torch_dtype must be a floating-point"):
        ModelManager(torch_dtype=dtype, device="cpu")


def test_one_path_is_understood_as_a_list_of_one(toy_files: list[Path]) -> None:
    manager = ModelManager(device="cpu")

    manager.load_models(str(toy_files[2]))

    assert len(manager) == 1


def test_an_autoencoder_that_lacks_a_level_is_refused_with_the_level(tmp_path: Path) -> None:
    state = saved_as(lively(autoencoder_kl.FAMILY).state_dict(), torch.float32)
    cut = {key: tensor for key, tensor in state.items() if not key.startswith("encoder.down_blocks.1.")}
    save_file(cut, tmp_path / "vae.safetensors")

    for kind in (None, "autoencoder_kl"):
        with pytest.raises(UnknownCheckpoint, match="has 4 levels, but no weights of level 1"):
            ModelManager(device="cpu").load_model(tmp_path / "vae.safetensors", kind=kind)


def test_verifying_keeps_what_was_written_into_weights_that_are_views_of_the_file(tmp_path: Path) -> None:
    manager = manager_of(write_dit(tmp_path / "dit" / "model.safetensors"))
    (entry,) = manager
    assert entry.mapped
    with torch.no_grad():
        for weight in entry.module.parameters():
            weight.fill_(3)

    assert manager.verify() == {}

    assert all(weight.eq(3).all() for weight in entry.module.parameters())

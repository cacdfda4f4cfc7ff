"""Every kind of file that carries our networks, made small: each loads, and gives the same weights and images."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from diffsynth.core.family import ModelFamily
from diffsynth.core.loaded import LoadedModel
from diffsynth.manager import ModelManager
from diffsynth.models import autoencoder_kl, bert_clip, hunyuan_dit, mt5
from diffsynth.models.hunyuan_dit.condition import TextFeatures
from diffsynth.models.hunyuan_dit.rope import build_rope
from diffsynth.types import StateDict
from tests import spellings
from tests.spellings import assert_same_weights, lively, saved_as

V1_2 = hunyuan_dit.FAMILY.tiny()
V1_1 = replace(V1_2, size_conditioning=True)


@dataclass(frozen=True, eq=False)
class Kind:
    """A kind of file: the network in it, how the file spells it, and what it is recognised as."""

    family: ModelFamily
    config: Any
    spell: Callable[[Any], StateDict]
    layout: str
    prefix: str = ""


def dit_kind(spell: Callable[[StateDict], StateDict], layout: str, config: Any = V1_2) -> Kind:
    return Kind(hunyuan_dit.FAMILY, config, lambda network: spell(spellings.original_dit(network)), layout)


def vae_kind(spell: Callable[[StateDict], StateDict], layout: str, prefix: str = "") -> Kind:
    family = autoencoder_kl.FAMILY
    return Kind(
        family,
        family.tiny(),
        lambda network: spellings.under(prefix, spell(spellings.diffusers_vae(network))),
        layout,
        prefix,
    )


KINDS = {
    "original dit v1.1": dit_kind(dict, "original", V1_1),
    "original dit v1.2": dit_kind(dict, "original"),
    "diffusers dit v1.1": dit_kind(spellings.diffusers_dit, "diffusers", V1_1),
    "diffusers dit v1.2": dit_kind(spellings.diffusers_dit, "diffusers"),
    "diffsynth dit v1.1": dit_kind(spellings.diffsynth_dit, "diffsynth", V1_1),
    "diffsynth dit v1.2": dit_kind(spellings.diffsynth_dit, "diffsynth"),
    "original clip": Kind(bert_clip.FAMILY, bert_clip.FAMILY.tiny(), spellings.original_clip, "original", "bert."),
    "original mt5": Kind(mt5.FAMILY, mt5.FAMILY.tiny(), spellings.original_mt5, "transformers"),
    "diffusers vae": vae_kind(dict, "diffusers"),
    "old diffusers vae": vae_kind(spellings.old_vae, "diffusers-old"),
    "ldm vae": vae_kind(spellings.ldm_vae, "ldm"),
    "ldm vae of a single file": vae_kind(spellings.ldm_vae, "ldm", "first_stage_model."),
}

each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@cache
def network_of(kind: Kind) -> Any:
    return lively(kind.family, kind.config)


@cache
def dit_of(config: Any) -> Any:
    return lively(hunyuan_dit.FAMILY, config)


@cache
def parts() -> tuple[Any, Any, Any, Any]:
    """Denoiser, CLIP, mT5 and autoencoder."""
    return (dit_of(V1_2), lively(bert_clip.FAMILY), lively(mt5.FAMILY), lively(autoencoder_kl.FAMILY))


def load(path: Path | list[Path], dtype: torch.dtype | None = torch.float32) -> LoadedModel[Any]:
    (entry,) = ModelManager(torch_dtype=dtype, device="cpu").load_model(path)
    return entry


def velocity(network: Any) -> Tensor:
    """Run a denoiser on a small latent and prompt; ask for something that every weight has a part in."""
    config = network.config
    draw = torch.Generator().manual_seed(3)
    text = TextFeatures(
        clip=torch.randn(1, config.text_len, config.text_dim, generator=draw),
        clip_mask=torch.arange(config.text_len)[None] < 3,
        t5=torch.randn(1, config.t5_len, config.t5_dim, generator=draw),
        t5_mask=torch.arange(config.t5_len)[None] < 4,
    )
    latents = torch.randn(1, config.in_channels, 8, 12, generator=draw)
    meta = torch.tensor([[1024.0, 768.0, 1280.0, 768.0, 0.0, 0.0]]) if config.size_conditioning else None
    found: Tensor = network(latents, torch.tensor([700.0]), text, build_rope(4, 6, config.head_dim), meta)
    return found


def pixels(network: Any) -> Tensor:
    latents = torch.randn(1, 4, 4, 6, generator=torch.Generator().manual_seed(3))
    decoded: Tensor = network.decode(latents)
    return decoded


# Each kind of file


@each_kind
def test_each_kind_of_file_gives_the_same_weights(kind: Kind, tmp_path: Path) -> None:
    state = saved_as(kind.spell(network_of(kind)), torch.float32)
    save_file(state, tmp_path / "model.safetensors")

    entry = load(tmp_path / "model.safetensors")

    assert (entry.found.layout.name, entry.found.prefix, entry.config) == (kind.layout, kind.prefix, kind.config)
    assert_same_weights(entry.module, network_of(kind))


@each_kind
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_each_kind_of_file_may_be_in_half_precision(kind: Kind, dtype: torch.dtype, tmp_path: Path) -> None:
    torch.save(saved_as(kind.spell(network_of(kind)), dtype), tmp_path / "model.bin")

    entry = load(tmp_path / "model.bin", dtype)

    expected = torch.float32 if kind.family is autoencoder_kl.FAMILY else dtype
    assert {weight.dtype for weight in entry.module.parameters()} == {expected}
    rounded = {key: weight.to(dtype).to(expected) for key, weight in network_of(kind).state_dict().items()}
    assert all(torch.equal(weight, rounded[key]) for key, weight in entry.module.state_dict().items())


@each_kind
def test_saving_each_kind_of_file_gives_its_keys_and_bytes(kind: Kind, tmp_path: Path) -> None:
    state = saved_as(kind.spell(network_of(kind)), torch.float32)
    save_file(state, tmp_path / "model.safetensors")
    manager = ModelManager(torch_dtype=None, device="cpu", file_path_list=[tmp_path / "model.safetensors"])

    saved = (
        ModelManager(torch_dtype=None, device="cpu")
        .load_model(manager.save(kind.family.name, tmp_path / "saved.safetensors"))[0]
        .checkpoint
    )

    strip = len(kind.prefix) - len(kind.family.layout(kind.layout).prefix)
    ours = {key[strip:]: tensor for key, tensor in state.items()}
    assert all(torch.equal(saved[key], ours[key]) for key in saved)
    assert all(key.startswith(UNREAD) for key in ours.keys() - saved.keys())


UNREAD = ("visual.", "logit_scale", "text_projection", "decoder.", "lm_head", "encoder.embed_tokens")


# Containers


@pytest.mark.parametrize("name", ["model.bin", "model.pt", "model.ckpt", "model.safetensors", "model", "模型.txt"])
@pytest.mark.parametrize("container", ["safetensors", "torch zip", "torch legacy"])
def test_the_content_tells_the_container_whatever_the_name(container: str, name: str, tmp_path: Path) -> None:
    state = saved_as(spellings.original_dit(dit_of(V1_2)), torch.float32)
    if container == "safetensors":
        save_file(state, tmp_path / name)
    else:
        torch.save(state, tmp_path / name, _use_new_zipfile_serialization=container == "torch zip")

    entry = load(tmp_path / name)

    assert entry.checkpoint.format == container
    assert_same_weights(entry.module, dit_of(V1_2))


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_tensors_that_share_memory_in_the_file_are_read_right(new: bool, tmp_path: Path) -> None:
    _, _, encoder, _ = parts()
    state = spellings.original_mt5(encoder)
    assert state["lm_head.weight"].data_ptr() == state["shared.weight"].data_ptr()
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=new)

    entry = load(tmp_path / "pytorch_model.bin")

    assert_same_weights(entry.module, encoder)
    assert entry.module.t5.shared.weight is entry.module.t5.encoder.embed_tokens.weight


@pytest.mark.parametrize("mmap", [True, False], ids=["mapped", "read"])
def test_views_into_one_large_tensor_are_read_right(mmap: bool, tmp_path: Path) -> None:
    clip = parts()[1]
    state = spellings.original_clip(clip)
    flat = torch.cat([tensor.flatten() for tensor in state.values()])
    places = torch.tensor([0, *(tensor.numel() for tensor in state.values())]).cumsum(0).tolist()
    views = {key: flat[start:].as_strided(t.shape, t.stride()) for (key, t), start in zip(state.items(), places)}  # noqa: B905
    torch.save(views, tmp_path / "flat.bin")

    (entry,) = ModelManager(torch.float32, "cpu", mmap=mmap).load_model(tmp_path / "flat.bin")

    assert_same_weights(entry.module, clip)
    assert entry.mapped is mmap


@pytest.mark.parametrize("wrapper", ["", "state_dict", "module", "ema", "model", "ema.model"])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "model.diffusion_model.", "model.model."])
def test_wrappers_and_prefixes_are_seen_through(wrapper: str, prefix: str, tmp_path: Path) -> None:
    content: Any = spellings.under(prefix, spellings.original_dit(dit_of(V1_1)))
    for name in reversed(wrapper.split(".") if wrapper else ()):
        content = {name: content, "epoch": 3}
    torch.save(content, tmp_path / "wrapped.pt")

    entry = load(tmp_path / "wrapped.pt")

    assert (entry.checkpoint.wrapper, entry.found.prefix) == (wrapper, prefix)
    assert_same_weights(entry.module, dit_of(V1_1))


def test_shards_are_loaded_by_their_index_by_their_folder_or_by_name(tmp_path: Path) -> None:
    from huggingface_hub import save_torch_state_dict

    state = saved_as(spellings.original_dit(dit_of(V1_2)), torch.float32)
    save_torch_state_dict(state, tmp_path, max_shard_size="300KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 2

    for path in (tmp_path, tmp_path / "model.safetensors.index.json", shards):
        entry = load(path)
        assert_same_weights(entry.module, dit_of(V1_2))
        assert entry.checkpoint.format == f"safetensors, {len(shards)} shards"


# One file with everything


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_comfyui_file_gives_all_four_networks(dtype: torch.dtype, tmp_path: Path) -> None:
    state = saved_as(spellings.comfyui(*parts()), dtype)
    save_file(state, tmp_path / "hunyuan_dit_1.2.safetensors")

    manager = ModelManager(torch_dtype=dtype, device="cpu")
    entries = manager.load_model(tmp_path / "hunyuan_dit_1.2.safetensors")

    assert len(entries) == 4
    assert manager.registry.identify(entries[0].checkpoint).unclaimed == ()
    for name, expected in zip(("hunyuan_dit", "bert_clip", "mt5"), parts(), strict=False):
        assert_same_weights(manager.fetch_model(name), expected, dtype)
    vae = {key: weight.to(dtype).float() for key, weight in parts()[3].state_dict().items()}
    assert all(torch.equal(weight, vae[key]) for key, weight in manager.fetch_model("vae").state_dict().items())


def test_a_vocabulary_inside_the_file_belongs_to_its_encoder(tmp_path: Path) -> None:
    save_file(saved_as(spellings.comfyui(*parts()), torch.float32), tmp_path / "all.safetensors")

    manager = ModelManager(device="cpu", file_path_list=[tmp_path / "all.safetensors"])

    vocabulary = "text_encoders.mt5xl.spiece_model"
    assert [entry.family.name for entry in manager if vocabulary in entry.found.keys] == ["mt5"]
    assert manager.find("mt5").checkpoint[vocabulary].numpy().tobytes() == b"sentencepiece model"


def test_scales_that_belong_to_two_encoders_are_no_quarrel(tmp_path: Path) -> None:
    _, clip, encoder, _ = parts()
    state = spellings.under("clip.", spellings.spelt(clip, bert_clip.FAMILY))
    state |= spellings.under("t5.", spellings.spelt(encoder, mt5.FAMILY)) | {"logit_scale": torch.tensor(4.6)}
    save_file(saved_as(state, torch.float32), tmp_path / "two.safetensors")

    entries = ModelManager(device="cpu").load_model(tmp_path / "two.safetensors")

    assert [entry.family.name for entry in entries] == ["bert_clip", "mt5"]


# The traps that load without a message


def test_the_denoiser_computes_the_same_from_every_layout(tmp_path: Path) -> None:
    for config in (V1_1, V1_2):
        original = spellings.original_dit(dit_of(config))
        expected = velocity(dit_of(config))

        for number, state in enumerate(
            (original, spellings.diffusers_dit(original), spellings.diffsynth_dit(original))
        ):
            path = tmp_path / f"{config.size_conditioning}{number}.safetensors"
            save_file(saved_as(state, torch.float32), path)
            # A copy, since on some processors a product depends on where in memory its numbers lie.
            assert torch.equal(velocity(deepcopy(load(path).module)), expected)


@pytest.mark.parametrize("forgotten", ["swap_norms", "swap_halves"])
def test_a_forgotten_swap_would_show(forgotten: str, tmp_path: Path) -> None:
    original = spellings.original_dit(dit_of(V1_2))
    trap = saved_as(spellings.diffusers_dit(original, **{forgotten: False}), torch.float32)
    assert trap.keys() == spellings.diffusers_dit(original).keys()
    save_file(trap, tmp_path / "trap.safetensors")

    different = velocity(load(tmp_path / "trap.safetensors").module) - velocity(dit_of(V1_2))

    assert different.abs().max() > 1e-2


def test_the_autoencoder_computes_the_same_from_every_layout(tmp_path: Path) -> None:
    family = autoencoder_kl.FAMILY
    network = lively(family, replace(family.tiny(), channels=(32, 32, 32, 32)))  # a swap of levels would fit
    expected = pixels(network)

    state = spellings.diffusers_vae(network)
    for number, spelt in enumerate((state, spellings.old_vae(state), spellings.ldm_vae(state))):
        path = tmp_path / f"{number}.safetensors"
        save_file(saved_as(spelt, torch.float32), path)
        assert torch.equal(pixels(load(path).module), expected)


def test_a_forgotten_reversal_of_levels_would_show(tmp_path: Path) -> None:
    family = autoencoder_kl.FAMILY
    network = lively(family, replace(family.tiny(), channels=(32, 32, 32, 32)))
    trap = spellings.ldm_vae(spellings.diffusers_vae(network), reverse=False)
    renamed = {key.replace("up.0.upsample", "up.3.upsample"): tensor for key, tensor in trap.items()}
    save_file(saved_as(renamed, torch.float32), tmp_path / "trap.safetensors")

    different = pixels(load(tmp_path / "trap.safetensors").module) - pixels(network)

    assert different.abs().max() > 1e-2

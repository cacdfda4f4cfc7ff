"""A LoRA that is written in any format, and read again, changes the network as it did."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from diffsynth import ModelManager
from diffsynth.core.family import ModelFamily
from diffsynth.core.saving import save_network
from diffsynth.errors import InvalidRequest
from diffsynth.lora.pieces import Piece
from diffsynth.lora.spellings import FORMATS, NAMES, role
from diffsynth.lora.writing import NetworkChanges, save_lora, spell
from diffsynth.models import autoencoder_kl, bert_clip, clip, hunyuan_dit, mt5, unet
from diffsynth.models.clip.config import ClipTextConfig
from diffsynth.models.hunyuan_dit.config import HunyuanDiTConfig
from diffsynth.models.unet.config import UNetConfig
from diffsynth.types import StateDict
from tests.spellings import lively

FACTS = Path(__file__).parents[3] / "shared" / "facts" / "layouts"
RANK = 3
NETWORKS: dict[str, tuple[ModelFamily, Any]] = {
    "hunyuan_dit": (hunyuan_dit.FAMILY, hunyuan_dit.FAMILY.tiny()),
    "bert_clip": (bert_clip.FAMILY, bert_clip.FAMILY.tiny()),
    "mt5": (mt5.FAMILY, mt5.FAMILY.tiny()),
    "unet": (unet.FAMILY, UNetConfig.tiny()),
    "unet xl": (unet.FAMILY, UNetConfig.tiny_xl()),
    "clip": (clip.FAMILY, replace(ClipTextConfig.tiny(), projection_size=0)),
    "clip xl": (clip.FAMILY, replace(ClipTextConfig.tiny(), projection_size=0)),
    "clip 2": (clip.FAMILY, ClipTextConfig.tiny()),
}


def layers_of(module: nn.Module, *, convolutions: bool = True) -> Iterator[tuple[str, Tensor]]:
    """Yield our name and the weight of each layer that a LoRA may change."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and convolutions):
            yield f"{name}.weight", layer.weight.detach()


def changes_of(module: nn.Module, *, alpha: float | None = 6.0, convolutions: bool = True) -> dict[str, list[Piece]]:
    """Return a random change of every layer."""
    generator = torch.Generator().manual_seed(0)
    pieces: dict[str, list[Piece]] = {}
    for key, weight in layers_of(module, convolutions=convolutions):
        up = torch.randn(len(weight), RANK, generator=generator) * 0.2
        down = torch.randn(RANK, weight[0].numel(), generator=generator) / weight[0].numel() ** 0.5
        pieces[key] = [Piece(0, up, down, alpha)]
    return pieces


def read(network: Path, lora: Path) -> StateDict:
    """Return the weights, by our names, of a network with a LoRA."""
    manager = ModelManager(device="cpu", torch_dtype=torch.float32)
    manager.load_model(network)
    manager.load_lora(lora).merge()
    (entry,) = manager
    state: StateDict = entry.module.state_dict()
    return state


def path_for(folder: Path, to: str) -> Path:
    return folder / ("lora" if to == "peft" else "lora.safetensors")


@pytest.mark.parametrize(("name", "to"), [(name, to) for name, formats in NAMES.items() for to in formats])
def test_what_is_written_in_a_format_means_the_same_when_it_is_read(name: str, to: str, tmp_path: Path) -> None:
    family, config = NETWORKS[name]
    module = lively(family, config)
    network = save_network(module, family, config, tmp_path / "network.safetensors", family.layouts[0].name)
    pieces = changes_of(module, convolutions=to != "original")
    xl = name in ("unet xl", "clip xl", "clip 2")
    assert role(family, config, xl=xl) == name

    path = save_lora(path_for(tmp_path, to), [NetworkChanges(family, config, pieces)], to, xl=xl)

    found = read(network, path)
    for key, weight in module.state_dict().items():
        if key in pieces:
            (piece,) = pieces[key]
            weight = weight + (2.0 * piece.up @ piece.down).view_as(weight)
        torch.testing.assert_close(found[key], weight, atol=1e-5, rtol=1e-5)


def test_the_published_spelling_of_hunyuan_dit_is_written(tmp_path: Path) -> None:
    family, config = NETWORKS["hunyuan_dit"]
    pieces = changes_of(family.build(config))
    wanted = {key: pieces[key] for key in ("blocks.0.self_attn.qkv.weight", "blocks.1.cross_attn.kv.weight")}

    folder = save_lora(tmp_path / "jade", [NetworkChanges(family, config, wanted)])

    state = load_file(folder / "adapter_model.safetensors")
    table = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    names = ["blocks.0.attn1.Wqkv", "blocks.1.attn2.kv_proj"]
    assert sorted(state) == sorted(f"base_model.model.{name}.lora_{way}.weight" for name in names for way in "AB")
    assert torch.equal(
        state[f"base_model.model.{names[0]}.lora_B.weight"], wanted["blocks.0.self_attn.qkv.weight"][0].up
    )
    assert (table["r"], table["lora_alpha"], table["target_modules"]) == (RANK, 6, names)


def test_the_published_list_of_keys_is_what_is_written_at_full_size() -> None:
    path = FACTS / "original_lora_peft_rank64_v1.2.tsv"
    if not path.is_file():
        pytest.skip("the lists of published keys are not beside this repository")
    published = dict(line.split("\t") for line in path.read_text("utf-8").splitlines())
    family, config = hunyuan_dit.FAMILY, HunyuanDiTConfig()
    suffixes = ("attn.qkv.weight", "attn.out.weight", "cross_attn.q.weight", "cross_attn.kv.weight", "pooler.q.weight")
    state = family.build_on_meta(config).state_dict()
    with torch.device("meta"):
        pieces = {
            key: [Piece(0, torch.empty(len(weight), 64), torch.empty(64, weight.shape[1]))]
            for key, weight in state.items()
            if key.endswith(suffixes)
        }

    spelled = spell([NetworkChanges(family, config, pieces)], "peft")

    assert {key: ",".join(map(str, tensor.shape)) for key, tensor in spelled.tensors.items()} == published


def test_several_networks_of_sdxl_go_into_one_file_of_diffusers(tmp_path: Path) -> None:
    networks = []
    for name in ("unet xl", "clip xl", "clip 2"):
        family, config = NETWORKS[name]
        networks.append(NetworkChanges(family, config, changes_of(family.build(config), convolutions=False)))

    path = save_lora(tmp_path / "style.safetensors", networks, "diffusers", metadata={"title": "style"})

    outers = {key.split(".", 1)[0] for key in load_file(path)}
    assert outers == {"unet", "text_encoder", "text_encoder_2"}


@pytest.mark.parametrize(
    ("name", "path", "to", "message"),
    [
        ("unet", "a.safetensors", "lycoris", "no format of LoRA called 'lycoris', only peft, diffusers"),
        ("unet", "a.safetensors", "peft", "peft is a folder with adapter_model.safetensors"),
        ("unet", "a", "kohya", r"kohya is written as safetensors; call it .*a\.safetensors"),
        ("unet", "a.safetensors", "original", r"has no names for changes of unet\. It can be written as peft, diffus"),
        ("mt5", "a.safetensors", "kohya", r"has no names for changes of mt5\. It can be written as peft, diffusers"),
        ("hunyuan_dit", "a.safetensors", "original", r"cannot change convolutions: x_embedder\.proj"),
    ],
)
def test_what_a_format_cannot_say_is_one_clear_error(
    name: str, path: str, to: str, message: str, tmp_path: Path
) -> None:
    family, config = NETWORKS[name]
    changes = NetworkChanges(family, config, changes_of(family.build(config)))

    with pytest.raises(InvalidRequest, match=message):
        save_lora(tmp_path / path, [changes], to)
    assert not any(tmp_path.iterdir())


def test_changes_that_do_not_fit_the_network_are_errors(tmp_path: Path) -> None:
    family, config = NETWORKS["unet"]
    wrong = [Piece(0, torch.zeros(5, 2), torch.zeros(2, 7))]

    for key, message in (
        ("conv_in.weight", "has other sizes: up"),
        ("conv_on.weight", "has no weight conv_on.weight"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            save_lora(tmp_path / "a.safetensors", [NetworkChanges(family, config, {key: wrong})], "kohya")
    vae = autoencoder_kl.FAMILY
    with pytest.raises(InvalidRequest, match=r"changes of autoencoder_kl\. No format has"):
        save_lora(tmp_path / "a.safetensors", [NetworkChanges(vae, vae.tiny(), {})], "kohya")


def test_every_network_of_every_format_has_a_layout_of_its_family() -> None:
    for name, formats in NAMES.items():
        for to, (_, layout) in formats.items():
            assert to in FORMATS
            assert NETWORKS[name][0].layout(layout).name == layout

"""One LoRA in each of the spellings found in the wild changes a network in the same way."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from diffsynth import ModelManager
from diffsynth.core.saving import to_layout
from diffsynth.errors import (
    AdapterMismatch,
    CheckpointError,
    CorruptCheckpoint,
    UnknownCheckpoint,
    UnsupportedCheckpoint,
)
from diffsynth.models import hunyuan_dit, unet
from diffsynth.types import StateDict
from tests.lora import files
from tests.lora.files import Layers
from tests.spellings import lively, original_dit

ATTENTION = re.compile(r".*\.attn\d\.to_(q|k|v|out\.0|out)")


@pytest.fixture(scope="module")
def dit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = lively(hunyuan_dit.FAMILY)
    return files.write(tmp_path_factory.mktemp("dit") / "dit.safetensors", original_dit(network))


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    state = to_layout(lively(unet.FAMILY), unet.FAMILY.layout("ldm"), unet.FAMILY.tiny())
    return files.write(tmp_path_factory.mktemp("sd") / "unet.safetensors", state)


def load(path: Path) -> ModelManager:
    manager = ModelManager(device="cpu", torch_dtype=torch.float32)
    manager.load_model(path)
    return manager


def merged(network: Path, lora: Path, **settings: Any) -> StateDict:
    """Return the weights of a network with a LoRA, by our names."""
    manager = load(network)
    manager.load_lora(lora, **settings).merge()
    (entry,) = manager
    state: StateDict = entry.module.state_dict()
    return state


def assert_close(found: StateDict, expected: StateDict) -> None:
    for key, tensor in expected.items():
        assert torch.allclose(found[key], tensor, atol=1e-5, rtol=1e-5), key


def split(layers: Layers, names: dict[str, tuple[str, ...]]) -> Layers:
    """Respell layers of the published HunyuanDiT, those that hold several projections as several, exactly."""
    out: Layers = {}
    for name, (up, down) in layers.items():
        for theirs, parts in names.items():
            if name.endswith(theirs):
                for part, rows in zip(parts, up.chunk(len(parts)), strict=True):
                    out[name.removesuffix(theirs) + part] = rows, down
    return out


DIFFUSERS = {
    "attn1.Wqkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attn2.kv_proj": ("attn2.to_k", "attn2.to_v"),
    "attn2.q_proj": ("attn2.to_q",),
    "attn1.out_proj": ("attn1.to_out.0",),
    "attn2.out_proj": ("attn2.to_out.0",),
}
DIFFSYNTH = {**DIFFUSERS, "attn1.out_proj": ("attn1.to_out",), "attn2.out_proj": ("attn2.to_out",)}


@pytest.mark.parametrize(
    "spell",
    [
        pytest.param(lambda layers: files.peft(layers), id="peft"),
        pytest.param(lambda layers: files.peft(layers, "", ".default"), id="peft-with-the-adapters-name"),
        pytest.param(lambda layers: files.peft(layers, "diffusion_model."), id="comfyui"),
        pytest.param(lambda layers: files.kohya(layers), id="kohya"),
        pytest.param(lambda layers: files.kohya(layers, alpha=files.RANK), id="kohya-with-alpha"),
        pytest.param(lambda layers: files.kohya(layers, "lycoris_"), id="lycoris"),
        pytest.param(lambda layers: files.dotted(layers, "transformer."), id="diffusers-dotted"),
        pytest.param(lambda layers: files.peft(split(layers, DIFFUSERS), "transformer."), id="diffusers"),
        pytest.param(lambda layers: files.kohya(split(layers, DIFFUSERS)), id="kohya-diffusers-names"),
        pytest.param(lambda layers: files.peft(split(layers, DIFFSYNTH), "", ".default"), id="diffsynth"),
        pytest.param(lambda layers: files.peft(split(layers, DIFFSYNTH), "diffusion_model."), id="diffsynth-prefixed"),
    ],
)
def test_spellings_of_a_hunyuan_dit_lora_mean_the_same(
    dit: Path, tmp_path: Path, spell: Callable[[Layers], StateDict]
) -> None:
    state = load_file(dit)
    wanted = re.compile(r"blocks\.\d+\.attn\d\.(Wqkv|kv_proj|q_proj|out_proj)")
    layers = {name: pair for name, pair in files.layers_of(state).items() if wanted.fullmatch(name)}
    expected = load(files.write(tmp_path / "changed.safetensors", files.changed(state, layers, 0.8)))

    found = merged(dit, files.write(tmp_path / "lora.safetensors", spell(layers)), scale=0.8)

    assert_close(found, next(iter(expected)).module.state_dict())


def test_projections_may_be_trained_without_their_neighbours(dit: Path, tmp_path: Path) -> None:
    state = load_file(dit)
    layers = {name: pair for name, pair in files.layers_of(state).items() if name.endswith("attn1.Wqkv")}
    only_v = {name: pair for name, pair in split(layers, DIFFUSERS).items() if name.endswith("to_v")}
    third = {
        name: (torch.cat((torch.zeros_like(up[: 2 * len(up) // 3]), up[2 * len(up) // 3 :])), down)
        for name, (up, down) in layers.items()
    }
    expected = load(files.write(tmp_path / "changed.safetensors", files.changed(state, third, 1.0)))

    found = merged(dit, files.write(tmp_path / "lora.safetensors", files.peft(only_v, "transformer.")))

    assert_close(found, next(iter(expected)).module.state_dict())


def diffusers_attention(lively_state: StateDict) -> Layers:
    return {name: pair for name, pair in files.layers_of(lively_state).items() if ATTENTION.fullmatch(name)}


@pytest.mark.parametrize(
    "spell",
    [
        pytest.param(lambda layers: files.peft(layers, "unet."), id="diffusers"),
        pytest.param(files.processors, id="diffusers-first"),
        pytest.param(lambda layers: files.dotted(layers), id="diffusers-dotted"),
        pytest.param(files.linear_layers, id="diffusers-linear-layer"),
        pytest.param(lambda layers: files.kohya(layers), id="kohya"),
    ],
)
def test_spellings_of_a_unet_lora_mean_the_same(sd: Path, tmp_path: Path, spell: Callable[[Layers], StateDict]) -> None:
    network = lively(unet.FAMILY)
    state = to_layout(network, unet.FAMILY.layout("diffusers"), network.config)
    layers = diffusers_attention(state)
    expected = load(files.write(tmp_path / "changed.safetensors", files.changed(state, layers, 1.0)))

    found = merged(sd, files.write(tmp_path / "lora.safetensors", spell(layers)))

    assert len(layers) > 20
    assert_close(found, next(iter(expected)).module.state_dict())


def one_layer(state: StateDict, name: str) -> Layers:
    return {name: files.layers_of(state)[name]}


@pytest.mark.parametrize(
    ("told", "factor"),
    [
        ({"lora_alpha": 6, "r": 3}, 2.0),
        ({"lora_alpha": 6, "r": 3, "use_rslora": True}, 6 / math.sqrt(3)),
        ({"lora_alpha": 6, "r": 3, "alpha_pattern": {"attn1.Wqkv": 1.5}}, 0.5),
        ({"lora_alpha": 6, "r": 3, "alpha_pattern": {"^blocks.1.attn1.Wqkv": 1.5}}, 2.0),
    ],
)
@pytest.mark.parametrize("place", ["header", "folder"])
def test_alpha_is_taken_from_where_peft_and_diffusers_say_it(
    dit: Path, tmp_path: Path, told: dict[str, Any], factor: float, place: str
) -> None:
    state = load_file(dit)
    layers = one_layer(state, "blocks.0.attn1.Wqkv")
    expected = load(files.write(tmp_path / "changed.safetensors", files.changed(state, layers, factor)))
    if place == "header":
        metadata = {"lora_adapter_metadata": {f"transformer.{name}": value for name, value in told.items()}}
        lora = files.write(tmp_path / "l.safetensors", files.peft(layers, "transformer."), **metadata)
    else:
        lora = tmp_path / "jade"
        lora.mkdir()
        files.write(lora / "adapter_model.safetensors", files.peft(layers))
        (lora / "adapter_config.json").write_text(json.dumps(told), "utf-8")

    assert_close(merged(dit, lora), next(iter(expected)).module.state_dict())


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ("{", "its settings of the LoRA are no JSON"),
        ("[" * 100_000, "its settings of the LoRA are no JSON"),
        ("[]", "its settings of the LoRA are no table"),
        ('{"lora_alpha": NaN}', "alpha is nan, not a finite number"),
        ('{"lora_alpha": "8"}', "alpha is '8', not a finite number"),
        ('{"lora_alpha": 8, "alpha_pattern": [1]}', "its alpha_pattern is no table"),
        ('{"lora_alpha": 8, "alpha_pattern": {"(a+)+b": 1}}', "patterns that are not names of layers"),
        ('{"use_dora": true}', "says that the file is DoRA"),
    ],
)
def test_settings_that_cannot_be_meant_are_errors(dit: Path, tmp_path: Path, told: str, message: str) -> None:
    layers = one_layer(load_file(dit), "blocks.0.mlp.fc1")
    files.write(tmp_path / "adapter_model.safetensors", files.peft(layers))
    (tmp_path / "adapter_config.json").write_text(told, "utf-8")

    with pytest.raises(CheckpointError, match=rf"adapter_config\.json: .*{message}"):
        load(dit).load_lora(tmp_path)


def test_alpha_and_rank_are_those_of_each_layer(dit: Path, tmp_path: Path) -> None:
    state = load_file(dit)
    first = one_layer(state, "blocks.0.mlp.fc1")
    other = {"blocks.1.mlp.fc1": files.layers_of(state, rank=5)["blocks.1.mlp.fc1"]}
    changed = files.changed(files.changed(state, first, 1 / 3), other, 2 / 5)
    expected = load(files.write(tmp_path / "changed.safetensors", changed))
    lora = files.write(tmp_path / "l.safetensors", files.kohya(first, alpha=1.0) | files.kohya(other, alpha=2.0))

    assert_close(merged(dit, lora), next(iter(expected)).module.state_dict())


def test_the_first_web_page_of_hunyuan_dit_has_dots_for_underscores_and_its_own_scale(
    dit: Path, tmp_path: Path
) -> None:
    state = load_file(dit)
    layers = one_layer(state, "blocks.0.attn1.out_proj")
    expected = load(files.write(tmp_path / "changed.safetensors", files.changed(state, layers, 3**-0.5)))
    spelt = {"blocks.0.attn1.out.proj": layers["blocks.0.attn1.out_proj"]}

    found = merged(dit, files.write(tmp_path / "lora.safetensors", files.dotted(spelt)))

    assert_close(found, next(iter(expected)).module.state_dict())


def test_the_first_web_page_of_hunyuan_dit_has_alpha_under_the_name_of_the_weight(dit: Path, tmp_path: Path) -> None:
    state = load_file(dit)
    layers = {name: files.layers_of(state)[name] for name in ("blocks.0.attn1.out_proj", "blocks.0.attn1.Wqkv")}
    factors = {"blocks.0.attn1.out_proj": 2.0, "blocks.0.attn1.Wqkv": 3**-0.5}  # with alpha, and without
    for name, factor in factors.items():
        state = files.changed(state, {name: layers[name]}, factor)
    expected = load(files.write(tmp_path / "changed.safetensors", state))
    spelt = files.dotted({name.replace("_", "."): pair for name, pair in layers.items()})
    spelt["blocks.0.attn1.out_proj.weight.alpha"] = torch.tensor(6.0)

    found = merged(dit, files.write(tmp_path / "lora.safetensors", spelt))

    assert_close(found, next(iter(expected)).module.state_dict())


def test_a_kernel_between_the_two_matrices_counts(sd: Path, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = load_file(sd)["input_blocks.1.0.in_layers.2.weight"]
    up, mid, down = (
        torch.randn(shape, generator=generator)
        for shape in ((len(weight), 3, 1, 1), (3, 3, 3, 3), (3, weight.shape[1], 1, 1))
    )
    name = "lora_unet_input_blocks_1_0_in_layers_2"
    pair = {f"{name}.lora_up.weight": up, f"{name}.lora_mid.weight": mid, f"{name}.lora_down.weight": down}

    found = merged(sd, files.write(tmp_path / "lora.safetensors", pair), scale=0.1)

    delta = torch.zeros_like(weight)
    for row in range(3):
        for column in range(3):
            delta[:, :, row, column] = up[:, :, 0, 0] @ mid[:, :, row, column] @ down[:, :, 0, 0]
    torch.testing.assert_close(found["down_blocks.0.resnets.0.conv1.weight"], weight + 0.1 * delta)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("lora_unet_blocks_0_mlp_fc1.hada_w1_a", "LoHa"),
        ("lora_unet_blocks_0_mlp_fc1.lokr_w1", "LoKr"),
        ("lora_unet_blocks_0_mlp_fc1.dora_scale", "DoRA"),
        ("base_model.model.blocks.0.mlp.fc1.lora_magnitude_vector", "DoRA"),
    ],
)
def test_other_methods_are_refused_by_name(dit: Path, tmp_path: Path, key: str, name: str) -> None:
    lora = files.peft(one_layer(load_file(dit), "blocks.0.mlp.fc1"))

    with pytest.raises(UnsupportedCheckpoint, match=f"is {name}, not a plain LoRA"):
        load(dit).load_lora(files.write(tmp_path / "l.safetensors", lora | {key: torch.ones(2)}))


def test_files_that_are_cut_or_none_at_all_are_errors(dit: Path, tmp_path: Path) -> None:
    lora = files.peft(one_layer(load_file(dit), "blocks.0.mlp.fc1"))
    up, down = lora
    path = tmp_path / "l.safetensors"
    manager = load(dit)

    with pytest.raises(UnknownCheckpoint, match=r"holds no LoRA, but .* tensors such as"):
        manager.load_lora(dit)
    with pytest.raises(CorruptCheckpoint, match=r"blocks\.0\.mlp\.fc1 has no matrix 'down'"):
        manager.load_lora(files.write(path, {up: lora[up]}))
    with pytest.raises(CorruptCheckpoint, match=r"do not go together: up .*, down"):
        manager.load_lora(files.write(path, {up: lora[up], down: lora[down][:2]}))
    with pytest.raises(CorruptCheckpoint, match=r"fc1\.alpha is not one finite number"):
        manager.load_lora(files.write(path, {**lora, f"{up[: -len('.lora_B.weight')]}.alpha": torch.tensor(math.nan)}))
    with pytest.raises(CorruptCheckpoint, match=r"changes .* twice, under different names"):
        manager.load_lora(files.write(path, lora | files.kohya(one_layer(load_file(dit), "blocks.0.mlp.fc1"))))
    assert manager.loras == ()


def test_keys_that_fit_nowhere_are_named_with_the_nearest_layer(dit: Path, tmp_path: Path) -> None:
    layers = one_layer(load_file(dit), "blocks.0.mlp.fc1")
    (pair,) = layers.values()
    layers |= one_layer(load_file(dit), "blocks.0.mlp.fc2")
    wrong = {**layers, "blocks.0.mlp.fc3": pair, "blocks.0.attn1.Wqkv": pair}
    path = files.write(tmp_path / "l.safetensors", files.peft(wrong))
    manager = load(dit)

    with pytest.raises(AdapterMismatch) as error:
        manager.load_lora(path)
    lora = manager.load_lora(path, strict=False)

    message = str(error.value)
    assert "1 keys belong to no layer: base_model.model.blocks.0.mlp.fc3 (nearest: blocks.0.mlp.fc" in message
    assert re.search(r"blocks\.0\.attn1\.Wqkv: changes a layer of shape \(\d+, \d+\), expected \(\d+, \d+\)", message)
    assert "2 of its 4 layers fit; strict=False (--lora-partly) takes those." in message
    assert len(lora.unmatched) == 2
    assert list(lora.layers.values()) == [2]


def test_a_lora_for_another_network_is_an_error_even_when_not_strict(dit: Path, sd: Path, tmp_path: Path) -> None:
    layers = files.layers_of(load_file(sd))
    path = files.write(tmp_path / "l.safetensors", files.kohya(layers))

    for strict in (True, False):
        with pytest.raises(AdapterMismatch, match="does not fit hunyuan_dit from"):
            load(dit).load_lora(path, strict=strict)

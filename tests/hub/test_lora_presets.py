"""LoRAs of the catalogue are loaded as they are downloaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffsynth import ModelManager, download_models
from examples.random_models import write_models
from examples.random_stable_diffusion import write_single_file
from tests.hub.standin import Hub
from tests.lora import files as loras


@pytest.mark.parametrize("on", ["ModelScope", "HuggingFace"])
@pytest.mark.parametrize("style", ["porcelain", "jade"])
def test_those_of_hunyuan_dit_are_folders_with_their_alpha(style: str, on: str, hub: Hub, tmp_path: Path) -> None:
    network = write_models(tmp_path / "network")[2]
    state = torch.load(network, weights_only=True)
    layers = {name: pair for name, pair in loras.layers_of(state).items() if name.endswith(("Wqkv", "q_proj"))}
    weights = loras.write(tmp_path / "weights.safetensors", loras.peft(layers)).read_bytes()
    table = json.dumps({"r": loras.RANK, "lora_alpha": 2 * loras.RANK}).encode()
    held = {f"{name}/{file}": data for name in ("porcelain", "jade") for file, data in (
        ("adapter_model.safetensors", weights), ("adapter_config.json", table)
    )}  # fmt: skip
    hub.repositories["Tencent-Hunyuan/HYDiT-LoRA"] = {**held, "README.md": b"styles"}

    (path,) = download_models([f"HunyuanDiT-LoRA-{style.title()}"], [on], local_dir=tmp_path / "models")
    manager = ModelManager(torch.float32, "cpu", file_path_list=[network])
    lora = manager.load_lora(path)

    assert path == tmp_path / "models" / "HunyuanDiT-LoRA" / style
    assert sum(lora.layers.values()) == len(layers)
    before = manager.fetch_model("hunyuan_dit").get_parameter("blocks.0.self_attn.qkv.weight").clone()
    lora.merge()
    after = manager.fetch_model("hunyuan_dit").get_parameter("blocks.0.self_attn.qkv.weight")
    up, down = layers["blocks.0.attn1.Wqkv"]
    torch.testing.assert_close(after - before, 2 * up @ down, atol=1e-5, rtol=1e-4)


def test_that_of_sdxl_is_one_file(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "network").mkdir()
    network = write_single_file(tmp_path / "network", "sdxl")
    prefix = "model.diffusion_model."
    state = {key.removeprefix(prefix): value for key, value in load_file(network).items() if key.startswith(prefix)}
    layers = {name: pair for name, pair in loras.layers_of(state).items() if "transformer_blocks" in name}
    name = "zyd232_ChineseInkStyle_SDXL_v1_0"
    content = loras.write(tmp_path / "lora.safetensors", loras.kohya(layers, alpha=1.0)).read_bytes()
    hub.repositories[f"sd_lora/{name}"] = {f"{name}.safetensors": content}

    (path,) = download_models([f"SDXL_lora_{name}"], local_dir=tmp_path / "models")
    manager = ModelManager(torch.float32, "cpu", file_path_list=[network])
    lora = manager.load_lora(path, lora_alpha=0.5)

    assert path == tmp_path / "models" / "lora" / f"{name}.safetensors"
    assert sum(lora.layers.values()) == len(layers)

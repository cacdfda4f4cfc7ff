"""A trained control network becomes the one that comes with the package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("emoji", reason="the package emoji is not installed")

from diffsynth import ModelManager, open_checkpoint
from diffsynth.core.saving import save_network
from diffsynth.hub.catalog import CATALOG
from diffsynth.models.hunyuan_dit import CONTROLNET_FAMILY
from diffsynth.models.hunyuan_dit.config import HunyuanDiTConfig
from diffsynth.models.hunyuan_dit.control import HunyuanDiTControlNet
from examples.emoji_painter import bundle_control

RECIPE = {"step": 7, "config": {"denoiser": {"network": "/home/me/model.safetensors"}}}


def test_it_is_written_in_half_precision_with_recipe_card_and_licence(tmp_path: Path) -> None:
    network, config = HunyuanDiTControlNet(HunyuanDiTConfig.tiny()), HunyuanDiTConfig.tiny()
    source, figures = tmp_path / "control.safetensors", tmp_path / "placement.json"
    save_network(network, CONTROLNET_FAMILY, config, source, "original", {"training": json.dumps(RECIPE)})
    figures.write_text('{"with control": {"place": 91.0}}')

    bundle_control.main([str(source), "--placement", str(figures), "--home", str(tmp_path / "home")])

    folder = tmp_path / "home" / bundle_control.MODEL_ID
    (name,) = CATALOG[bundle_control.MODEL_ID].weights
    before, after = load_file(source), load_file(tmp_path / "home" / name)
    assert all(torch.equal(before[key].half(), after[key]) for key in before)
    plain = {"step": 7, "config": {"denoiser": {"network": "model.safetensors"}}}
    assert json.loads(open_checkpoint(tmp_path / "home" / name).metadata["training"]) == plain
    card = json.loads((folder / "card.json").read_text("utf-8"))
    assert (card["recipe"], card["figures"]["with control"]["place"]) == (plain, 91.0)
    assert (folder / "LICENSE").is_file()
    manager = ModelManager(torch.float32, device="cpu", file_path_list=[tmp_path / "home" / name])
    assert manager.fetch_model(HunyuanDiTControlNet).config == config

"""The UNet against that of Diffusers: its folders load, and the same numbers come out; its converter agrees."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from diffsynth.core.saving import to_layout
from diffsynth.manager import ModelManager
from diffsynth.models import unet
from diffsynth.models.unet.condition import Controls
from diffsynth.models.unet.config import UNetConfig
from tests.spellings import assert_same_weights, liven

diffusers = pytest.importorskip("diffusers")

DOWN, DOWN_TEXT, UP, UP_TEXT = "DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"
SD = {
    "block_out_channels": (32, 64, 96, 96), "cross_attention_dim": 40, "attention_head_dim": 8,
    "down_block_types": (DOWN_TEXT,) * 3 + (DOWN,), "up_block_types": (UP,) + (UP_TEXT,) * 3,
}  # fmt: skip
XL = {
    "block_out_channels": (32, 64, 128), "cross_attention_dim": 56, "attention_head_dim": (4, 1, 2),
    "down_block_types": (DOWN, DOWN_TEXT, DOWN_TEXT), "up_block_types": (UP_TEXT, UP_TEXT, UP),
    "transformer_layers_per_block": (1, 2, 3), "use_linear_projection": True, "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 24 + 6 * 256,
}  # fmt: skip
REFINER = XL | {
    "block_out_channels": (32, 64, 128, 128), "attention_head_dim": (4, 1, 2, 2),
    "down_block_types": (DOWN, DOWN_TEXT, DOWN_TEXT, DOWN), "up_block_types": (UP, UP_TEXT, UP_TEXT, UP),
    "transformer_layers_per_block": 2, "projection_class_embeddings_input_dim": 24 + 5 * 256,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "sd": SD,
    "inpaint": SD | {"in_channels": 9},
    "xl": XL,
    "refiner": REFINER,
    "kolors": XL | {"encoder_hid_dim": 72, "encoder_hid_dim_type": "text_proj"},
}


@pytest.fixture(scope="module", params=SHAPES)
def theirs(request: pytest.FixtureRequest) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = diffusers.UNet2DConditionModel(**SHAPES[request.param], sample_size=8)
    return liven(network)


def load(network: Any, folder: Path) -> Any:
    network.save_pretrained(folder / "unet")
    (entry,) = ModelManager(torch_dtype=torch.float32, device="cpu").load_model(folder / "unet")
    assert entry.found.layout.name == "diffusers"
    return entry.module


def inputs(config: UNetConfig) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Latents whose sides are no multiples of 8, timesteps, and the condition."""
    draw = torch.Generator().manual_seed(1)
    latents = torch.randn(2, config.in_channels, 12, 9, generator=draw)
    context = torch.randn(2, 7, config.text_size or config.context_size, generator=draw)
    if not config.label_size:
        return latents, torch.tensor([981, 41]), (context,)
    numbers = torch.tensor([[1024.0, 768, 0, 16, 1024, 768], [512, 512, 8, 0, 640, 896]])
    return (
        latents,
        torch.tensor([981, 41]),
        (context, torch.randn(2, 24, generator=draw), numbers[:, : config.label_size // 256]),
    )


def predict(network: Any, config: UNetConfig, **more: Any) -> Tensor:
    latents, timestep, (context, *label) = inputs(config)
    if label:
        more["added_cond_kwargs"] = dict(zip(("text_embeds", "time_ids"), label, strict=True))
    found: Tensor = network(latents, timestep, encoder_hidden_states=context, return_dict=False, **more)[0]
    return found


@torch.inference_mode()
def test_it_predicts_what_diffusers_predicts(theirs: Any, tmp_path: Path) -> None:
    network = load(theirs, tmp_path)
    latents, timestep, condition = inputs(network.config)

    predicted = network(latents, timestep, *condition)

    torch.testing.assert_close(predicted, predict(theirs, network.config), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_it_takes_control_outputs_as_diffusers_does(theirs: Any, tmp_path: Path) -> None:
    network = load(theirs, tmp_path)
    latents, timestep, condition = inputs(network.config)
    skips, height, width = [], 12, 9
    for number, channels in enumerate(network.config.skip_channels):
        if number and number % 3 == 0:
            height, width = (height + 1) // 2, (width + 1) // 2
        skips.append(torch.randn(2, channels, height, width))
    controls = Controls(tuple(skips), torch.randn_like(skips[-1]))

    predicted = network(latents, timestep, *condition, controls=controls)

    expected = predict(
        theirs, network.config, down_block_additional_residuals=controls.skips,
        mid_block_additional_residual=controls.mid,
    )  # fmt: skip
    torch.testing.assert_close(predicted, expected, atol=1e-5, rtol=1e-5)


def test_the_converter_of_diffusers_reads_our_single_files(theirs: Any, tmp_path: Path) -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    network = load(theirs, tmp_path)
    state = to_layout(network, unet.FAMILY.layout("ldm"), network.config)
    linear = "use_linear_projection" in theirs.config and theirs.config["use_linear_projection"]
    assert state["middle_block.1.proj_in.weight"].ndim == (2 if linear else 4)

    converted = convert_ldm_unet_checkpoint(
        {f"model.diffusion_model.{key}": tensor for key, tensor in state.items()}, theirs.config
    )

    expected = {key: t for key, t in theirs.state_dict().items() if not key.startswith("encoder_hid_proj")}
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[key], tensor) for key, tensor in expected.items())


@pytest.mark.parametrize("layout", [layout.name for layout in unet.FAMILY.layouts])
def test_every_layout_gives_the_same_network(theirs: Any, layout: str, tmp_path: Path) -> None:
    network = load(theirs, tmp_path)
    state = to_layout(network, unet.FAMILY.layout(layout), network.config)
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, tmp_path / "other.safetensors")

    (entry,) = ModelManager(torch_dtype=torch.float32, device="cpu").load_model(tmp_path / "other.safetensors")

    assert (entry.found.layout.name, entry.config) == (layout, network.config)
    assert_same_weights(entry.module, network)

"""Control networks against those of Diffusers: its folders load, and the same numbers come out."""

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
from diffsynth.models.unet.control import Hint
from tests.models.unet.test_parity import DOWN, SD, XL
from tests.spellings import assert_same_weights, liven, under

diffusers = pytest.importorskip("diffusers")

HINT = {"conditioning_embedding_out_channels": (4, 6, 10, 14)}
UP = ("up_block_types",)
XL_CONTROL = {key: value for key, value in XL.items() if key not in UP} | HINT
SHAPES: dict[str, dict[str, Any]] = {
    "sd": {key: value for key, value in SD.items() if key not in UP} | HINT,
    "xl": XL_CONTROL,
    "mid": XL_CONTROL | {"transformer_layers_per_block": (0, 0, 1)},
    "small": XL_CONTROL | {"transformer_layers_per_block": (0, 0, 0)},
    "smallest": XL_CONTROL | {"down_block_types": (DOWN,) * 3, "mid_block_type": "UNetMidBlock2D"},
}
UNION = XL_CONTROL | {"num_control_type": 8, "num_trans_channel": 32, "num_trans_head": 8, "num_proj_channel": 32}
TIMESTEPS = torch.tensor([981, 41])


def build(kind: Any, **config: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = kind(**config)
    return liven(network)


def load(network: Any, folder: Path) -> Any:
    network.save_pretrained(folder / "controlnet")
    (entry,) = ModelManager(torch_dtype=torch.float32, device="cpu").load_model(folder / "controlnet")
    assert (entry.family.name, entry.found.layout.name) == ("unet_controlnet", "diffusers")
    return entry.module


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(width: int, *, label: bool) -> tuple[Tensor, ...]:
    """Latents, timesteps and the condition."""
    plain = (draw(2, 4, 12, 9, seed=1), TIMESTEPS, draw(2, 7, width, seed=2))
    numbers = torch.tensor([[1024.0, 768, 0, 16, 1024, 768], [512, 512, 8, 0, 640, 896]])
    return (*plain, draw(2, 24, seed=3), numbers) if label else plain


def picture(seed: int) -> Tensor:
    return draw(1, 3, 96, 72, seed=seed).sigmoid()


def ask(network: Any, given: tuple[Tensor, ...], **more: Any) -> Controls:
    latents, timesteps, context, *label = given
    if label:
        more["added_cond_kwargs"] = dict(zip(("text_embeds", "time_ids"), label, strict=True))
    skips, mid = network(latents, timesteps, context, return_dict=False, **more)
    return Controls(tuple(skips), mid)


def assert_near(found: Controls, expected: Controls) -> None:
    for mine, theirs in zip((*found.skips, found.mid), (*expected.skips, expected.mid), strict=True):
        torch.testing.assert_close(mine, theirs, atol=5e-5, rtol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("shape", SHAPES)
def test_it_gives_what_diffusers_gives(shape: str, tmp_path: Path) -> None:
    theirs = build(diffusers.ControlNetModel, **SHAPES[shape])
    network, given = load(theirs, tmp_path), inputs(theirs.config.cross_attention_dim, label=shape != "sd")
    condition = {"controlnet_cond": picture(5).expand(2, -1, -1, -1), "conditioning_scale": 0.7}

    found = network(*given, hints=[Hint(picture(5))]) * 0.7

    assert_near(found, ask(theirs, given, **condition))
    assert_near(found.rising(), ask(theirs, given, guess_mode=True, **condition))


@torch.inference_mode()
@pytest.mark.parametrize("types", [(3,), (3, 1)], ids=["one hint", "two hints"])
def test_a_union_gives_what_diffusers_gives(types: tuple[int, ...], tmp_path: Path) -> None:
    theirs = build(diffusers.ControlNetUnionModel, **UNION)
    network, given = load(theirs, tmp_path), inputs(56, label=True)
    scales = (0.7, 0.4)[: len(types)]
    present = torch.zeros(8).index_fill(0, torch.tensor(types), 1).expand(2, -1)

    if len(types) == 1:
        found = network(*given, hints=[Hint(picture(5), types[0])]) * scales[0]
    else:
        found = network(*given, hints=[Hint(picture(5 + n), types[n], scales[n]) for n in range(len(types))])

    expected = ask(
        theirs, given, controlnet_cond=[picture(5 + n).expand(2, -1, -1, -1) for n in range(len(types))],
        control_type=present, control_type_idx=list(types), conditioning_scale=list(scales),
    )  # fmt: skip
    assert_near(found, expected)


@pytest.mark.parametrize("wrapped", [False, True], ids=["safetensors", "pickle"])
def test_a_single_file_gives_the_same_network(wrapped: bool, tmp_path: Path) -> None:
    network = load(build(diffusers.ControlNetModel, **SHAPES["sd"]), tmp_path)
    state = under("control_model.", to_layout(network, unet.CONTROLNET_FAMILY.layout("ldm"), network.config))
    assert state["control_model.middle_block.1.proj_in.weight"].ndim == 4
    path = tmp_path / ("control.pth" if wrapped else "control.safetensors")
    if wrapped:
        torch.save({"state_dict": state, "global_step": 7}, path)
    else:
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, path)

    (entry,) = ModelManager(torch_dtype=torch.float32, device="cpu").load_model(path)

    assert (entry.found.layout.name, entry.found.prefix) == ("ldm", "control_model.")
    assert_same_weights(entry.module, network)


def test_the_converter_of_diffusers_reads_our_single_files(tmp_path: Path) -> None:
    from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

    theirs = build(diffusers.ControlNetModel, **SHAPES["sd"])
    network = load(theirs, tmp_path)
    state = under("control_model.", to_layout(network, unet.CONTROLNET_FAMILY.layout("ldm"), network.config))

    converted = convert_controlnet_checkpoint(state, theirs.config)

    assert converted.keys() == theirs.state_dict().keys()
    assert all(torch.equal(converted[key], tensor) for key, tensor in theirs.state_dict().items())

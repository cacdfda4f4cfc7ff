"""CLIP's image encoder: golden numbers, the transformers class run plainly, and the bilingual tower by a formula."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffsynth.core.convert import Converter
from diffsynth.core.saving import to_layout
from diffsynth.manager import ModelManager
from diffsynth.models import clip_vision
from diffsynth.models.clip_vision.config import ClipVisionConfig
from diffsynth.models.clip_vision.model import ClipVision
from diffsynth.types import StateDict
from tests.models import golden
from tests.spellings import lively, liven

TINY = ClipVisionConfig.tiny()
GOLDEN = ClipVisionConfig(
    hidden_size=32, num_layers=3, mlp_size=64, image_size=28, patch_size=14, projection_size=24, num_heads=4
)


@cache
def network_of(config: ClipVisionConfig) -> ClipVision:
    network: ClipVision = lively(clip_vision.FAMILY, config)
    return network


def theirs_of(config: ClipVisionConfig) -> Any:
    """The transformers class of the same sizes, with textbook attention and weights of its own."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    sizes = CLIPVisionConfig(
        hidden_size=config.hidden_size,
        intermediate_size=config.mlp_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        image_size=config.image_size,
        patch_size=config.patch_size,
        projection_dim=config.projection_size,
        hidden_act="quick_gelu" if config.quick_gelu else "gelu",
        attn_implementation="eager",
    )
    return liven(CLIPVisionModelWithProjection(sizes))


def pictures(config: ClipVisionConfig) -> Tensor:
    side = config.image_size
    return torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def test_golden_numbers() -> None:
    rules = Converter(clip_vision.FAMILY.layout("transformers").rules(GOLDEN))
    network = ClipVision(GOLDEN).eval()
    shapes = {key: tuple(tensor.shape) for key, tensor in rules.to_theirs(network.state_dict()).items()}
    network.load_state_dict(rules.to_ours(golden.weights(shapes)))
    pixels = golden.values((1, 3, 28, 28), 3000, scale=1.7)

    hidden = network.vision(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]

    golden.assert_golden(network(pixels), -0.098190, 1.058382, -1.005256, -0.617073, 1.020657, 2.666593, -1.202783)
    golden.assert_golden(hidden, 0.161073, 1.590508, 0.556329, 0.924950, 1.664596, -2.698661, 1.682381)


@torch.inference_mode()
def test_it_gives_the_features_of_transformers(tmp_path: Path) -> None:
    theirs = theirs_of(TINY)
    theirs.save_pretrained(tmp_path / "image_encoder")
    (entry,) = ModelManager(torch_dtype=torch.float32, device="cpu").load_model(tmp_path / "image_encoder")

    expected = theirs(pictures(TINY)).image_embeds

    assert (entry.config, entry.found.layout.name) == (TINY, "transformers")
    torch.testing.assert_close(entry.module(pictures(TINY)), expected, atol=1e-5, rtol=1e-5)


def by_formula(pixels: Tensor, state: StateDict, config: ClipVisionConfig) -> Tensor:
    """The bilingual tower from its published names: torch's own attention layer, quick GELU, the summary projected."""

    def norm(tokens: Tensor, name: str) -> Tensor:
        return F.layer_norm(tokens, (config.hidden_size,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    patches = F.conv2d(pixels, state["visual.conv1.weight"], stride=config.patch_size).flatten(2).mT
    summary = state["visual.class_embedding"].expand(len(pixels), 1, -1)
    tokens = torch.cat((summary, patches), dim=1) + state["visual.positional_embedding"]
    tokens = norm(tokens, "visual.ln_pre")
    for number in range(config.num_layers):
        block = f"visual.transformer.resblocks.{number}"
        attention = nn.MultiheadAttention(config.hidden_size, config.num_heads, batch_first=True)
        attention.load_state_dict(
            {
                key.removeprefix(f"{block}.attn."): part
                for key, part in state.items()
                if key.startswith(f"{block}.attn.")
            }
        )
        normed = norm(tokens, f"{block}.ln_1")
        tokens = tokens + attention(normed, normed, normed, need_weights=False)[0]
        first = F.linear(
            norm(tokens, f"{block}.ln_2"), state[f"{block}.mlp.c_fc.weight"], state[f"{block}.mlp.c_fc.bias"]
        )
        gated = first * torch.sigmoid(1.702 * first)
        tokens = tokens + F.linear(gated, state[f"{block}.mlp.c_proj.weight"], state[f"{block}.mlp.c_proj.bias"])
    return norm(tokens[:, 0], "visual.ln_post") @ state["visual.proj"]


@torch.no_grad()
def test_the_bilingual_tower_follows_its_formula_from_its_published_names() -> None:
    config = replace(TINY, projection_size=TINY.hidden_size)  # square, so that nothing but numbers shows a transpose
    network = network_of(config)
    state = to_layout(network, clip_vision.FAMILY.layout("bilingual"), config)

    expected = by_formula(pictures(config), state, config)

    torch.testing.assert_close(network(pictures(config)), expected, atol=1e-5, rtol=1e-5)


def test_the_tower_is_loaded_from_a_torch_file_as_the_adapter_of_hunyuan_dit_comes_with(tmp_path: Path) -> None:
    network = network_of(TINY)
    state = to_layout(network, clip_vision.FAMILY.layout("bilingual"), TINY)
    wrapped = {f"module.{key}": tensor for key, tensor in state.items()}
    torch.save({"state_dict": wrapped, "epoch": 1, "step": 2}, tmp_path / "clip_img_encoder.pt")

    (entry,) = ModelManager(torch_dtype=torch.float32, device="cpu").load_model(tmp_path / "clip_img_encoder.pt")

    assert torch.equal(entry.module(pictures(TINY)), network(pictures(TINY)))


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_finite_and_near(dtype: torch.dtype) -> None:
    expected = network_of(TINY)(pictures(TINY))
    half: ClipVision = lively(clip_vision.FAMILY, TINY)

    found = half.to(dtype)(pictures(TINY))

    assert found.dtype == dtype
    assert (found.float() - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize(
    ("config", "tensors", "parameters"),
    [(ClipVisionConfig(), 520, 632_076_800), (ClipVisionConfig.big_g(), 776, 1_844_907_264)],
    ids=["OpenCLIP ViT-H", "OpenCLIP ViT-bigG"],
)
def test_the_released_sizes(
    config: ClipVisionConfig, tensors: int, parameters: int, request: pytest.FixtureRequest
) -> None:
    state = clip_vision.FAMILY.build_on_meta(config).state_dict()

    assert (len(state), sum(tensor.numel() for tensor in state.values())) == (tensors, parameters)
    assert config.version == request.node.callspec.id


def test_sizes_that_contradict_one_another_are_refused() -> None:
    with pytest.raises(ValueError, match="hidden_size 50 is not a multiple of num_heads 16"):
        replace(TINY, hidden_size=50)
    with pytest.raises(ValueError, match="image_size 40 is not a multiple of patch_size 14"):
        replace(TINY, image_size=40)

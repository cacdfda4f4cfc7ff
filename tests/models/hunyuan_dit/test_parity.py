"""Numbers against the Diffusers network, with the same random weights under its names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from diffsynth.models.hunyuan_dit.condition import TextFeatures
from diffsynth.models.hunyuan_dit.config import HunyuanDiTConfig
from diffsynth.models.hunyuan_dit.control import HunyuanDiTControlNet
from diffsynth.models.hunyuan_dit.model import HunyuanDiT
from diffsynth.models.hunyuan_dit.rope import Rope, build_rope
from tests import diffusers_networks

from .examples import V1_1, V1_2, random_control_network, random_latents, random_network, random_text, sizes

pytest.importorskip("diffusers")

LAYERS = {
    "patch_embed.proj": "pos_embed.proj",
    "time_embed.0": "time_extra_emb.timestep_embedder.linear_1",
    "time_embed.2": "time_extra_emb.timestep_embedder.linear_2",
    "extra_embed.0": "time_extra_emb.extra_embedder.linear_1",
    "extra_embed.2": "time_extra_emb.extra_embedder.linear_2",
    "style_embed": "time_extra_emb.style_embedder",
    "pooler.positional_embedding": "time_extra_emb.pooler.positional_embedding",
    "pooler.q": "time_extra_emb.pooler.q_proj",
    "pooler.k": "time_extra_emb.pooler.k_proj",
    "pooler.v": "time_extra_emb.pooler.v_proj",
    "pooler.out": "time_extra_emb.pooler.c_proj",
    "t5_proj.0": "text_embedder.linear_1",
    "t5_proj.2": "text_embedder.linear_2",
    "text_padding": "text_embedding_padding",
    "final.linear": "proj_out",
    "hint_proj": "input_block",
}
BLOCK_LAYERS = {
    "norm1": "norm1.norm",
    "shift": "norm1.linear",
    "self_attn.q_norm": "attn1.norm_q",
    "self_attn.k_norm": "attn1.norm_k",
    "self_attn.out": "attn1.to_out.0",
    "norm_cross": "norm2",
    "cross_attn.q": "attn2.to_q",
    "cross_attn.q_norm": "attn2.norm_q",
    "cross_attn.k_norm": "attn2.norm_k",
    "cross_attn.out": "attn2.to_out.0",
    "norm_mlp": "norm3",
    "mlp.0": "ff.net.0.proj",
    "mlp.2": "ff.net.2",
    "skip_norm": "skip_norm",
    "skip_linear": "skip_linear",
}


def diffusers_state(network: HunyuanDiT | HunyuanDiTControlNet) -> dict[str, Tensor]:
    """Return the network's weights under the names of Diffusers."""
    theirs: dict[str, Tensor] = {}
    for name, value in network.state_dict().items():
        if name in LAYERS:
            theirs[LAYERS[name]] = value
            continue
        layer, kind = name.rsplit(".", 1)
        if layer == "final.modulation":
            shift, scale = value.chunk(2)
            theirs[f"norm_out.linear.{kind}"] = torch.cat((scale, shift))
        elif layer.startswith("outputs."):
            theirs[f"{layer.replace('outputs', 'controlnet_blocks')}.{kind}"] = value
        elif layer in LAYERS:
            theirs[f"{LAYERS[layer]}.{kind}"] = value
        else:
            _, number, layer = layer.split(".", 2)
            for key, part in block_layer(layer, value).items():
                theirs[f"blocks.{number}.{key}.{kind}"] = part
    return theirs


def block_layer(layer: str, value: Tensor) -> dict[str, Tensor]:
    if layer == "self_attn.qkv":
        return dict(zip(("attn1.to_q", "attn1.to_k", "attn1.to_v"), value.chunk(3), strict=True))
    if layer == "cross_attn.kv":
        return dict(zip(("attn2.to_k", "attn2.to_v"), value.chunk(2), strict=True))
    return {BLOCK_LAYERS[layer]: value}


def diffusers_network(network: HunyuanDiT) -> Any:
    """Build the Diffusers network with the same weights."""
    config = network.config
    theirs = diffusers_networks.hunyuan_dit(config)
    theirs.load_state_dict(diffusers_state(network), strict=True)
    return theirs.eval().requires_grad_(False)


def diffusers_control_network(network: HunyuanDiTControlNet) -> Any:
    """Build the Diffusers control network with the same weights."""
    theirs = diffusers_networks.hunyuan_dit_controlnet(network.config)
    theirs.load_state_dict(diffusers_state(network), strict=True)
    return theirs.eval().requires_grad_(False)


def ask_diffusers(
    theirs: Any,
    latents: Tensor,
    timesteps: Tensor,
    text: TextFeatures,
    rope: Rope,
    image_meta_size: Tensor | None,
    controls: list[Tensor] | None = None,
) -> Tensor:
    """Return the velocity half of the Diffusers network's prediction."""
    (prediction,) = theirs(
        latents,
        timesteps,
        encoder_hidden_states=text.clip,
        text_embedding_mask=text.clip_mask,
        encoder_hidden_states_t5=text.t5,
        text_embedding_mask_t5=text.t5_mask,
        image_meta_size=image_meta_size,
        style=torch.zeros(len(latents), dtype=torch.int64),
        image_rotary_emb=(rope.cos, rope.sin),
        controlnet_block_samples=controls,
        return_dict=False,
    )
    velocity: Tensor = prediction.chunk(2, dim=1)[0]
    return velocity


def as_diffusers_builds(config: HunyuanDiTConfig, **changes: Any) -> HunyuanDiTConfig:
    """Diffusers derives two hidden widths that we name."""
    config = replace(config, **changes)
    return replace(config, t5_proj_size=4 * config.t5_dim, extra_size=4 * config.hidden_size)


CASES = [
    (as_diffusers_builds(V1_2), (6, 10), [(3, 4), (5, 9), (2, 1)]),
    (as_diffusers_builds(V1_1), (6, 10), [(3, 4), (5, 9), (2, 1)]),
    (as_diffusers_builds(V1_2, depth=4, num_heads=2, mlp_size=100), (7, 3), [(5, 2)]),
    (as_diffusers_builds(V1_1, depth=8, hidden_size=72, t5_dim=24), (5, 5), [(1, 9), (4, 3)]),
    (as_diffusers_builds(V1_2, depth=2, text_len=3, t5_len=4), (1, 8), [(3, 4)]),
    (as_diffusers_builds(V1_2, depth=10, text_dim=28), (4, 4), [(2, 2), (1, 1)]),
]


@pytest.mark.parametrize(("config", "grid", "lengths"), CASES)
def test_the_velocity_is_that_of_diffusers(
    config: HunyuanDiTConfig, grid: tuple[int, int], lengths: list[tuple[int, int]]
) -> None:
    network = random_network(config, seed=config.depth)
    text, latents = random_text(config, lengths), random_latents(len(lengths), *grid)
    rope, meta = build_rope(*grid, config.head_dim), sizes(config, len(lengths))
    timesteps = torch.tensor([981.0, 500.0, 1.0][: len(lengths)])

    velocity = network(latents, timesteps, text, rope, meta)

    expected = ask_diffusers(diffusers_network(network), latents, timesteps, text, rope, meta)
    torch.testing.assert_close(velocity, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", [as_diffusers_builds(V1_2), as_diffusers_builds(V1_1)], ids=["v1.2", "v1.1"])
def test_a_plan_gives_the_velocity_of_diffusers(config: HunyuanDiTConfig) -> None:
    network = random_network(config)
    text, latents = random_text(config, [(3, 4), (5, 9)]), random_latents(2, 6, 10)
    rope, meta = build_rope(6, 10, config.head_dim), sizes(config, 2)

    plan = network.plan([981, 461.5], network.encode_condition(text, meta), rope)
    velocity = network.denoise(latents, 1, plan)

    timesteps = torch.full((2,), 461.5)
    expected = ask_diffusers(diffusers_network(network), latents, timesteps, text, rope, meta)
    torch.testing.assert_close(velocity, expected, atol=1e-5, rtol=1e-5)


def test_controls_are_added_to_the_skips_as_in_diffusers() -> None:
    config = as_diffusers_builds(V1_2, depth=8)
    network = random_network(config)
    text, latents, rope = random_text(config, [(3, 4)]), random_latents(1, 4, 6), build_rope(4, 6, config.head_dim)
    controls = list(torch.randn(3, 1, 24, config.hidden_size))

    plan = network.plan([700], network.encode_condition(text), rope)
    velocity = network.denoise(latents, 0, plan, controls=dict(enumerate(controls)))

    timesteps = torch.tensor([700.0])
    expected = ask_diffusers(diffusers_network(network), latents, timesteps, text, rope, None, controls=list(controls))
    torch.testing.assert_close(velocity, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(velocity, network.denoise(latents, 0, plan))


@pytest.mark.parametrize(
    "config", [as_diffusers_builds(V1_2, depth=8), as_diffusers_builds(V1_1)], ids=["v1.2", "v1.1"]
)
@pytest.mark.parametrize("scale", [1.0, 0.35])
def test_a_control_network_gives_what_that_of_diffusers_gives(config: HunyuanDiTConfig, scale: float) -> None:
    network = random_control_network(config)
    text, latents, hints = random_text(config, [(3, 4), (5, 9)]), random_latents(2, 6, 10), random_latents(2, 6, 10, 7)
    rope, meta = build_rope(6, 10, config.head_dim), sizes(config, 2)
    timesteps = torch.tensor([461.5, 461.5])

    plan = network.plan([981, 461.5], network.encode_condition(text, meta), rope, hints)
    planned = network.control(latents, 1, plan, scale=scale)
    at_once = network(latents, timesteps, hints, text, rope, meta)

    (expected,) = diffusers_control_network(network)(
        latents,
        timesteps,
        hints,
        conditioning_scale=scale,
        encoder_hidden_states=text.clip,
        text_embedding_mask=text.clip_mask,
        encoder_hidden_states_t5=text.t5,
        text_embedding_mask_t5=text.t5_mask,
        image_meta_size=meta,
        style=torch.zeros(2, dtype=torch.int64),
        image_rotary_emb=(rope.cos, rope.sin),
        return_dict=False,
    )
    assert len(planned) == len(at_once) == len(expected) == config.depth // 2 - 1
    for ours, whole, theirs in zip(planned, at_once, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(whole * scale, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("perturbed", [{0}, {1, 4}, {5}], ids=str)
def test_perturbed_attention_is_that_of_diffusers(perturbed: set[int]) -> None:
    from diffusers.models.attention_processor import PAGHunyuanAttnProcessor2_0

    config = as_diffusers_builds(V1_2)
    network = random_network(config)
    text, latents, rope = random_text(config, [(3, 4)]), random_latents(1, 6, 4), build_rope(6, 4, config.head_dim)
    theirs = diffusers_network(network)
    for number in perturbed:
        theirs.blocks[number].attn1.set_processor(PAGHunyuanAttnProcessor2_0())

    plan = network.plan([700], network.encode_condition(text), rope)
    plain = network.denoise(latents, 0, plan)
    velocity = network.denoise(latents, 0, plan, perturbed_blocks=frozenset(perturbed))

    twice = random_text(config, [(3, 4)])
    twice = TextFeatures(*(torch.cat((part, part)) for part in (twice.clip, twice.clip_mask, twice.t5, twice.t5_mask)))
    pair = torch.cat((latents, latents))
    expected_plain, expected = ask_diffusers(theirs, pair, torch.full((2,), 700.0), twice, rope, None).chunk(2)
    torch.testing.assert_close(plain, expected_plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(velocity, expected, atol=1e-5, rtol=1e-5)

"""The control network: its plan, its hints, tiles, and what it shares with the denoiser."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from diffsynth.errors import ModelNotLoaded
from diffsynth.models.hunyuan_dit.config import HunyuanDiTConfig
from diffsynth.models.hunyuan_dit.control import HunyuanDiTControlNet
from diffsynth.models.hunyuan_dit.rope import build_rope
from diffsynth.models.hunyuan_dit.tiled import TokenTiling

from .examples import V1_1, V1_2, random_control_network, random_latents, random_network, random_text, sizes

both_versions = pytest.mark.parametrize("config", [V1_2, V1_1], ids=["v1.2", "v1.1"])


@pytest.mark.parametrize(("size_conditioning", "millions"), [(False, 744.2), (True, 760.8)])
def test_the_released_network_has_the_known_number_of_parameters(size_conditioning: bool, millions: float) -> None:
    with torch.device("meta"):
        network = HunyuanDiTControlNet(HunyuanDiTConfig(size_conditioning=size_conditioning))

    assert len(network.blocks) == len(network.outputs) == 19
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 1) == millions


def test_a_new_network_adds_nothing() -> None:
    network = HunyuanDiTControlNet(V1_2)
    text, latents, hints = random_text(V1_2, [(3, 4)]), random_latents(1, 4, 6), random_latents(1, 4, 6, 7)

    controls = network(latents, torch.tensor([500.0]), hints, text, build_rope(4, 6, V1_2.head_dim))

    assert not any(control.any() for control in controls)


@both_versions
def test_a_plan_gives_what_the_plain_forward_gives(config: HunyuanDiTConfig) -> None:
    network = random_control_network(config)
    text, meta = random_text(config, [(3, 4), (5, 9)]), sizes(config, 2)
    rope, hints = build_rope(5, 7, config.head_dim), random_latents(2, 5, 7, 7)

    plan = network.plan([999, 0], network.encode_condition(text, meta), rope, hints)

    for step, timestep in enumerate(plan.timesteps):
        latents = random_latents(2, 5, 7, seed=step)
        expected = network(latents, torch.full((2,), timestep), hints, text, rope, meta)
        for planned, whole in zip(network.control(latents, step, plan), expected, strict=True):
            assert planned.shape == (2, 35, config.hidden_size)
            torch.testing.assert_close(planned, whole, atol=1e-5, rtol=1e-5)


def test_hints_are_shown_to_the_rows_in_turn() -> None:
    network, rope = random_control_network(V1_2), build_rope(4, 6, V1_2.head_dim)
    condition = network.encode_condition(random_text(V1_2, [(3, 4), (5, 9)]))
    latents, hints = random_latents(4, 4, 6), random_latents(2, 4, 6, 7)
    rows = [0, 0, 1, 1]

    few = network.plan([700], condition, rope, hints).rows(rows)
    all_of_them = network.plan([700], condition.rows(rows), rope, hints.repeat(2, 1, 1, 1))

    assert len(few) == 4
    assert few.nbytes < all_of_them.nbytes
    for found, expected in zip(network.control(latents, 0, few), network.control(latents, 0, all_of_them), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_scale_multiplies_all_that_comes_out() -> None:
    network, rope = random_control_network(V1_2), build_rope(4, 6, V1_2.head_dim)
    latents = random_latents(1, 4, 6)
    plan = network.plan([700], network.encode_condition(random_text(V1_2, [(3, 4)])), rope, random_latents(1, 4, 6, 7))

    half, whole = network.control(latents, 0, plan, scale=0.5), network.control(latents, 0, plan)

    assert all(torch.equal(one, 0.5 * other) for one, other in zip(half, whole, strict=True))


def test_tiles_change_what_is_seen_and_one_tile_changes_nothing() -> None:
    network, rope = random_control_network(V1_2), build_rope(6, 9, V1_2.head_dim)
    latents = random_latents(1, 6, 9)
    plan = network.plan([700], network.encode_condition(random_text(V1_2, [(3, 4)])), rope, random_latents(1, 6, 9, 7))

    whole = network.control(latents, 0, plan)
    one_tile = network.control(latents, 0, plan, tile=TokenTiling(tile=9, stride=4))
    tiles = network.control(latents, 0, plan, tile=TokenTiling(tile=4, stride=2))

    assert all(torch.equal(one, other) for one, other in zip(whole, one_tile, strict=True))
    assert all(one.shape == other.shape for one, other in zip(whole, tiles, strict=True))
    assert not any(torch.allclose(one, other) for one, other in zip(whole, tiles, strict=True))


def test_what_comes_out_steers_the_denoiser() -> None:
    config = replace(V1_2, depth=8)
    network, denoiser = random_control_network(config), random_network(config)
    text, rope, latents = random_text(config, [(3, 4)]), build_rope(4, 6, config.head_dim), random_latents(1, 4, 6)
    plan = denoiser.plan([700], denoiser.encode_condition(text), rope)

    def velocity(hint_seed: int) -> torch.Tensor:
        hints = random_latents(1, 4, 6, hint_seed)
        controls = network.control(latents, 0, network.plan([700], network.encode_condition(text), rope, hints))
        return denoiser.denoise(latents, 0, plan, controls=dict(enumerate(controls)))

    assert torch.equal(velocity(3), velocity(3))
    assert not torch.allclose(velocity(3), velocity(4), atol=1e-3)


@both_versions
def test_without_the_condition_path_a_plan_still_works(config: HunyuanDiTConfig) -> None:
    network, rope = random_control_network(config), build_rope(4, 6, config.head_dim)
    text, meta, hints = random_text(config, [(3, 4)]), sizes(config, 1), random_latents(1, 4, 6, 7)
    latents = random_latents(1, 4, 6)
    condition = network.encode_condition(text, meta)
    plan = network.plan([700], condition, rope, hints)
    expected = network.control(latents, 0, plan)

    network.drop_condition_path()

    assert all(torch.equal(*pair) for pair in zip(network.control(latents, 0, plan), expected, strict=True))
    with pytest.raises(ModelNotLoaded, match="the condition path of the HunyuanDiT control network"):
        network.plan([700], condition, rope, hints)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_stays_finite_and_near_float32(dtype: torch.dtype) -> None:
    network, rope = random_control_network(V1_2), build_rope(4, 6, V1_2.head_dim)
    text, hints, latents = random_text(V1_2, [(3, 4)]), random_latents(1, 4, 6, 7), random_latents(1, 4, 6)
    expected = network.control(latents, 0, network.plan([700], network.encode_condition(text), rope, hints))

    network.to(dtype)
    controls = network.control(latents, 0, network.plan([700], network.encode_condition(text), rope, hints))

    for found, exact in zip(controls, expected, strict=True):
        assert found.dtype == dtype
        assert float((found.float() - exact).norm() / exact.norm()) < 0.03


def test_gradients_reach_every_parameter() -> None:
    network = random_control_network(V1_1).requires_grad_()
    text, hints, latents = random_text(V1_1, [(3, 4)]), random_latents(1, 4, 6, 7), random_latents(1, 4, 6)
    rope = build_rope(4, 6, V1_1.head_dim)

    controls = network(latents, torch.tensor([700.0]), hints, text, rope, sizes(V1_1, 1))
    torch.stack(controls).square().mean().backward()  # type: ignore[no-untyped-call]

    assert [name for name, each in network.named_parameters() if each.grad is None or not each.grad.any()] == []


def test_what_does_not_fit_is_refused() -> None:
    network, rope = random_control_network(V1_2), build_rope(4, 6, V1_2.head_dim)
    condition = network.encode_condition(random_text(V1_2, [(3, 4), (5, 9), (1, 1)]))
    plan = network.plan([700], condition, rope, random_latents(2, 4, 6))

    with pytest.raises(ValueError, match="latents of 4 x 5 tokens do not fit positions for 4 x 6"):
        network.plan([700], condition, rope, random_latents(1, 4, 5))
    with pytest.raises(ValueError, match="2 latents do not fit a plan of 3 rows"):
        network.control(random_latents(2, 4, 6), 0, plan)
    with pytest.raises(ValueError, match="3 latents are not a multiple of the plan's 2 hints"):
        network.control(random_latents(3, 4, 6), 0, plan)

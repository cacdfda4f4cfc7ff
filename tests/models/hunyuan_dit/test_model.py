from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from diffsynth.errors import ModelNotLoaded
from diffsynth.models.hunyuan_dit.condition import Condition, TextFeatures
from diffsynth.models.hunyuan_dit.config import HunyuanDiTConfig
from diffsynth.models.hunyuan_dit.model import HunyuanDiT
from diffsynth.models.hunyuan_dit.rope import build_rope

from .examples import V1_1, V1_2, random_latents, random_network, random_text, relative_error, sizes

both_versions = pytest.mark.parametrize("config", [V1_2, V1_1], ids=["v1.2", "v1.1"])


@pytest.mark.parametrize(("size_conditioning", "parameters"), [(False, 1_499_952_032), (True, 1_516_534_048)])
def test_the_released_network_has_the_known_number_of_parameters(size_conditioning: bool, parameters: int) -> None:
    with torch.device("meta"):
        network = HunyuanDiT(HunyuanDiTConfig(size_conditioning=size_conditioning))

    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@both_versions
def test_a_plan_gives_what_the_plain_forward_gives(config: HunyuanDiTConfig) -> None:
    network = random_network(config)
    text, meta = random_text(config, [(3, 4), (5, 9), (1, 1)]), sizes(config, 3)
    rope = build_rope(5, 7, config.head_dim)
    timesteps = [999, 612.5, 0]

    plan = network.plan(timesteps, network.encode_condition(text, meta), rope)

    assert len(plan) == 3
    assert plan.timesteps == (999.0, 612.5, 0.0)
    for step, timestep in enumerate(timesteps):
        latents = random_latents(3, 5, 7, seed=step)
        expected = network(latents, torch.full((3,), timestep), text, rope, meta)
        torch.testing.assert_close(network.denoise(latents, step, plan), expected, atol=1e-5, rtol=1e-5)


@both_versions
def test_a_row_does_not_depend_on_its_neighbours(config: HunyuanDiTConfig) -> None:
    network = random_network(config)
    text, meta = random_text(config, [(3, 4), (5, 9)]), sizes(config, 2)
    rope, latents = build_rope(4, 6, config.head_dim), random_latents(2, 4, 6)
    timesteps = torch.tensor([900.0, 12.0])

    together = network(latents, timesteps, text, rope, meta)

    for row in range(2):
        part = slice(row, row + 1)
        own_text = TextFeatures(text.clip[part], text.clip_mask[part], text.t5[part], text.t5_mask[part])
        alone = network(latents[part], timesteps[part], own_text, rope, None if meta is None else meta[part])
        torch.testing.assert_close(together[part], alone, atol=1e-5, rtol=1e-5)


def test_masked_clip_features_are_never_looked_at() -> None:
    network = random_network(V1_2)
    text = random_text(V1_2, [(3, 4)])
    other_clip = torch.where(text.clip_mask[..., None], text.clip, torch.tensor(7.0))

    condition = network.encode_condition(text)
    other = network.encode_condition(replace(text, clip=other_clip))

    assert torch.equal(condition.text, other.text)
    assert torch.equal(condition.text[0, 3:5], network.text_padding[3:5])
    assert torch.equal(condition.vector, other.vector)


def test_masked_t5_features_reach_the_vector_only() -> None:
    network = random_network(V1_2)
    text = random_text(V1_2, [(3, 4)])
    other_t5 = torch.where(text.t5_mask[..., None], text.t5, torch.tensor(7.0))

    condition = network.encode_condition(text)
    other = network.encode_condition(replace(text, t5=other_t5))

    torch.testing.assert_close(condition.text, other.text)
    assert not torch.allclose(condition.vector, other.vector)


def test_rows_of_a_condition_can_be_chosen_joined_and_repeated() -> None:
    network = random_network(V1_2)
    positive = network.encode_condition(random_text(V1_2, [(3, 4), (5, 9)]))
    negative = network.encode_condition(random_text(V1_2, [(1, 1)], seed=1))

    pair = Condition.cat([negative.expand(2), positive])

    assert len(pair) == 4
    assert torch.equal(pair.rows(slice(2, 4)).text, positive.text)
    assert torch.equal(pair.rows([3, 0]).vector, torch.cat((positive.vector[1:], negative.vector)))
    assert negative.expand(2).text.data_ptr() == negative.text.data_ptr()
    with pytest.raises(ValueError, match="one row can be expanded to 3, but the condition has 2"):
        positive.expand(3)


def test_rows_of_a_plan_can_be_chosen_and_repeated() -> None:
    network = random_network(V1_2)
    condition, rope = network.encode_condition(random_text(V1_2, [(3, 4), (5, 9)])), build_rope(4, 4, V1_2.head_dim)
    latents = random_latents(3, 4, 4)
    plan = network.plan([900, 100], condition, rope)

    repeated = network.denoise(latents, 1, plan.rows([1, 0, 1]))

    expected = network.denoise(latents, 1, network.plan([900, 100], condition.rows([1, 0, 1]), rope))
    torch.testing.assert_close(repeated, expected, atol=1e-6, rtol=1e-6)
    assert plan.rows(slice(0, 1)).blocks[0].keys.data_ptr() == plan.blocks[0].keys.data_ptr()
    assert plan.rows([1, 0, 1]).nbytes == 3 * plan.rows(slice(0, 1)).nbytes


def test_a_plan_of_one_row_serves_many_images() -> None:
    network = random_network(V1_2)
    condition, rope = network.encode_condition(random_text(V1_2, [(3, 4)])), build_rope(4, 4, V1_2.head_dim)
    latents = random_latents(3, 4, 4)

    shared = network.denoise(latents, 0, network.plan([500], condition, rope))

    expected = network.denoise(latents, 0, network.plan([500], condition.expand(3), rope))
    torch.testing.assert_close(shared, expected, atol=1e-6, rtol=1e-6)


@both_versions
def test_without_the_condition_path_denoising_is_the_same_to_the_last_bit(config: HunyuanDiTConfig) -> None:
    network = random_network(config)
    text, meta, rope = random_text(config, [(3, 4)]), sizes(config, 1), build_rope(4, 6, config.head_dim)
    plan = network.plan([800, 10], network.encode_condition(text, meta), rope)
    latents = random_latents(1, 4, 6)
    before = [network.denoise(latents, step, plan) for step in range(2)]
    parameters = sum(parameter.numel() for parameter in network.parameters())

    network.drop_condition_path()
    network.drop_condition_path()  # a second time does nothing

    assert all(torch.equal(network.denoise(latents, step, plan), before[step]) for step in range(2))
    assert sum(parameter.numel() for parameter in network.parameters()) < parameters
    for use in (
        lambda: network.encode_condition(text, meta),
        lambda: network.plan([800], network_condition(config), rope),
        lambda: network(latents, torch.tensor([1.0]), text, rope, meta),
    ):
        with pytest.raises(
            ModelNotLoaded, match=r"not loaded: the condition path of HunyuanDiT.*load the checkpoint again"
        ):
            use()


def network_condition(config: HunyuanDiTConfig) -> Condition:
    return Condition(
        torch.zeros(1, config.text_len + config.t5_len, config.text_dim), torch.zeros(1, config.hidden_size)
    )


def test_dropping_the_condition_path_frees_a_sixth_of_the_released_network() -> None:
    with torch.device("meta"):
        network = HunyuanDiT(HunyuanDiTConfig())
    before = sum(parameter.numel() for parameter in network.parameters())

    network.drop_condition_path()

    after = sum(parameter.numel() for parameter in network.parameters())
    assert before - after == 255_565_056


@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 0.02), (torch.float16, 0.003)], ids=str)
@both_versions
def test_half_precision_stays_finite_and_near_float32(
    config: HunyuanDiTConfig, dtype: torch.dtype, limit: float
) -> None:
    network = random_network(config)
    text, meta, rope = random_text(config, [(3, 4), (5, 9)]), sizes(config, 2), build_rope(4, 6, config.head_dim)
    latents = random_latents(2, 4, 6)
    expected = network(latents, torch.tensor([981.0, 981.0]), text, rope, meta)

    network.to(dtype)
    plan = network.plan([981], network.encode_condition(text, meta), rope)
    velocity = network.denoise(latents, 0, plan)

    assert plan.blocks[0].keys.dtype == dtype
    assert velocity.dtype == torch.float32  # that of the latents
    assert relative_error(velocity, expected) < limit


def test_a_residual_stream_that_half_precision_cannot_square_stays_finite() -> None:
    network = random_network(V1_2)
    network.blocks[0].get_submodule("mlp.2").get_parameter("bias").fill_(20000.0)
    text, rope = random_text(V1_2, [(3, 4)]), build_rope(4, 4, V1_2.head_dim)

    velocity = network.half()(random_latents(1, 4, 4), torch.tensor([981.0]), text, rope)

    assert velocity.isfinite().all()


def test_bfloat16_tells_neighbouring_timesteps_apart() -> None:
    network = random_network(V1_2).bfloat16()
    condition = network.encode_condition(random_text(V1_2, [(3, 4)]))

    plan = network.plan([980, 981], condition, build_rope(2, 2, V1_2.head_dim))

    assert not torch.equal(plan.final.scale[0], plan.final.scale[1])


def test_latents_keep_their_dtype() -> None:
    network = random_network(V1_2)
    text, rope = random_text(V1_2, [(3, 4)]), build_rope(2, 2, V1_2.head_dim)

    velocity = network(random_latents(1, 2, 2).half(), torch.tensor([5]), text, rope)

    assert velocity.dtype == torch.float16


@both_versions
def test_gradients_reach_every_parameter(config: HunyuanDiTConfig) -> None:
    network = random_network(config).train().requires_grad_(True)
    text, meta, rope = random_text(config, [(3, 4), (5, 2)]), sizes(config, 2), build_rope(4, 6, config.head_dim)

    velocity = network(random_latents(2, 4, 6), torch.tensor([981.0, 3.0]), text, rope, meta)
    names, parameters = zip(*network.named_parameters(), strict=True)
    gradients = torch.autograd.grad(velocity.square().mean(), parameters)

    still = [name for name, gradient in zip(names, gradients, strict=True) if gradient.abs().max() == 0]
    assert still == []


def test_the_gradient_is_the_slope() -> None:
    network = random_network(replace(V1_2, depth=4)).double()
    text, rope = random_text(V1_2, [(3, 4)]), build_rope(2, 3, V1_2.head_dim)
    direction = random_latents(1, 2, 3, seed=1).double()

    def loss(latents: Tensor) -> Tensor:
        velocity: Tensor = network(latents, torch.tensor([400.0]), text, rope)
        return velocity.square().mean()

    start = random_latents(1, 2, 3).double().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(start), start)

    with torch.no_grad():
        slope = (loss(start + 1e-3 * direction) - loss(start - 1e-3 * direction)) / 2e-3
    assert float((gradient * direction).sum()) == pytest.approx(float(slope), rel=1e-2)


def refused(message: str, call: Callable[[HunyuanDiT, TextFeatures], object]) -> None:
    network, text = random_network(V1_2), random_text(V1_2, [(3, 4)])
    with pytest.raises(ValueError, match=message):
        call(network, text)


def test_latents_that_are_not_whole_patches_are_refused() -> None:
    rope, odd = build_rope(4, 4, V1_2.head_dim), torch.zeros(1, 4, 9, 8)

    refused("latents of 9 x 8 are not whole patches of 2", lambda net, text: net(odd, torch.zeros(1), text, rope))


def test_latents_of_another_kind_are_refused() -> None:
    rope, other = build_rope(4, 4, V1_2.head_dim), torch.zeros(1, 16, 8, 8)

    refused(
        r"latents are \(B, 4, H, W\), not \(1, 16, 8, 8\)", lambda net, text: net(other, torch.zeros(1), text, rope)
    )


def test_positions_of_another_grid_are_refused() -> None:
    rope, latents = build_rope(6, 4, V1_2.head_dim), random_latents(1, 4, 6)

    refused(
        "latents of 4 x 6 tokens do not fit positions for 6 x 4",
        lambda net, text: net(latents, torch.zeros(1), text, rope),
    )


def test_a_plan_for_another_number_of_rows_is_refused() -> None:
    rope = build_rope(4, 4, V1_2.head_dim)

    def call(network: HunyuanDiT, text: TextFeatures) -> object:
        plan = network.plan([1], network.encode_condition(text).expand(2), rope)
        return network.denoise(random_latents(3, 4, 4), 0, plan)

    refused("3 latents do not fit a plan of 2 rows", call)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("clip", r"clip has the shape \(1, 4, 20\), but the network needs \(1, 5, 20\)"),
        ("clip_mask", r"clip_mask has the shape \(1, 4\), but the network needs \(1, 5\)"),
        ("t5", r"t5 has the shape \(1, 8, 32\), but the network needs \(1, 9, 32\)"),
        ("t5_mask", r"t5_mask has the shape \(1, 8\), but the network needs \(1, 9\)"),
    ],
)
def test_text_of_another_length_is_refused(field: str, message: str) -> None:
    def call(network: HunyuanDiT, text: TextFeatures) -> object:
        return network.encode_condition(replace(text, **{field: getattr(text, field)[:, :-1]}))

    refused(message, call)


def test_a_size_condition_must_be_there_exactly_when_the_network_takes_it() -> None:
    with pytest.raises(ValueError, match="takes no image_meta_size"):
        random_network(V1_2).encode_condition(random_text(V1_2, [(3, 4)]), torch.zeros(1, 6))
    with pytest.raises(ValueError, match="needs image_meta_size"):
        random_network(V1_1).encode_condition(random_text(V1_1, [(3, 4)]))
    with pytest.raises(ValueError, match=r"image_meta_size has the shape \(1, 4\), but the network needs \(1, 6\)"):
        random_network(V1_1).encode_condition(random_text(V1_1, [(3, 4)]), torch.zeros(1, 4))


def test_unknown_blocks_are_refused() -> None:
    network = random_network(V1_2)
    plan = network.plan([1], network.encode_condition(random_text(V1_2, [(3, 4)])), build_rope(2, 2, V1_2.head_dim))
    latents = random_latents(1, 2, 2)

    with pytest.raises(ValueError, match=r"no blocks \[6\] to perturb: the network has 6"):
        network.denoise(latents, 0, plan, perturbed_blocks=frozenset({6, 1}))
    with pytest.raises(ValueError, match=r"controls for blocks \[2\], but only the first 2 blocks feed a long skip"):
        network.denoise(latents, 0, plan, controls={1: torch.zeros(1, 4, 48), 2: torch.zeros(1, 4, 48)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, "hidden_size 48 is not a multiple of num_heads 5"),
        ({"num_heads": 8}, "head size 6 is not a multiple of 4"),
        ({"t5_dim": 12}, "t5_dim 12 is not a multiple of pooler_heads 8"),
        ({"depth": 7}, "depth 7 is odd"),
    ],
)
def test_contradicting_sizes_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(V1_2, **changes)  # type: ignore[arg-type]


def test_long_skips_pair_the_blocks_from_the_outside_in() -> None:
    released = HunyuanDiTConfig()

    assert list(released.skip_sources) == list(range(19))
    with torch.device("meta"):
        network = HunyuanDiT(released)
    takers = [number for number, block in enumerate(network.blocks) if hasattr(block, "skip_linear")]
    assert takers == list(range(21, 40))
    assert [released.depth - 1 - taker for taker in takers] == list(reversed(released.skip_sources))

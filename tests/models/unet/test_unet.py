"""The UNet by itself: golden numbers, the three steps of a loop, control outputs, attention hooks, any size."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from diffsynth.models import unet
from diffsynth.models.unet.condition import Condition, Controls
from diffsynth.models.unet.config import UNetConfig
from diffsynth.models.unet.model import UNet
from diffsynth.nn.attention import plain_attention
from tests.models import golden
from tests.spellings import lively

SD = UNetConfig.tiny()
XL = UNetConfig.tiny_xl()
REFINER = replace(XL, channels=(32, 64, 128, 128), depths=(0, 2, 1, 0), mid_depth=1, label_size=24 + 5 * 256)
KOLORS = replace(XL, text_size=72)
SHAPES = {"sd": SD, "inpaint": replace(SD, in_channels=9), "xl": XL, "refiner": REFINER, "kolors": KOLORS}

each_shape = pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)


@cache
def network_of(config: UNetConfig) -> UNet:
    network: UNet = lively(unet.FAMILY, config)
    return network


def prompt(config: UNetConfig, rows: int = 2) -> tuple[Tensor, ...]:
    """Context, and pooled prompt and numbers if the network takes them."""
    draw = torch.Generator().manual_seed(1)
    context = torch.randn(rows, 7, config.text_size or config.context_size, generator=draw)
    if not config.label_size:
        return (context,)
    count = config.label_size // 256
    return context, torch.randn(rows, 24, generator=draw), 512 + 99 * torch.randn(rows, count, generator=draw)


def noise(config: UNetConfig, rows: int = 2, height: int = 8, width: int = 12) -> Tensor:
    return torch.randn(rows, config.in_channels, height, width, generator=torch.Generator().manual_seed(2))


# Numbers


GOLDEN: dict[str, tuple[UNetConfig, list[list[float]], tuple[float, ...]]] = {
    "sd": (
        UNetConfig(channels=(32, 64, 128, 128), context_size=48, time_size=128),
        [],
        (0.070417, 0.657888, -0.411351, 0.309685, 1.099847, -0.009112, -0.385450),
    ),
    "xl": (
        UNetConfig(
            channels=(32, 64, 128), depths=(0, 2, 3), mid_depth=3, context_size=48, time_size=128, label_size=68,
            number_size=8, conv_projections=False, head_dim=32,
        ),
        [[1024, 768, 0, 16, 1024, 768], [512, 512, 8, 0, 640, 896]],
        (0.027518, 0.519729, 0.187171, 0.351160, -0.823966, -0.035374, 0.252769),
    ),
    "refiner": (
        UNetConfig(
            channels=(32, 64, 128, 128), depths=(0, 2, 2, 0), mid_depth=2, context_size=48, time_size=128,
            label_size=60, number_size=8, conv_projections=False, head_dim=32,
        ),
        [[1024, 768, 0, 16, 6.0], [512, 512, 8, 0, 2.5]],
        (0.028092, 0.542351, -0.112637, 0.421687, -0.599734, 0.041557, 0.540147),
    ),
}  # fmt: skip


@torch.inference_mode()
@pytest.mark.parametrize("name", GOLDEN)
def test_golden_numbers(name: str) -> None:
    config, numbers, expected = GOLDEN[name]
    network = UNet(config).eval()
    network.load_state_dict(golden.weights({key: tuple(t.shape) for key, t in network.state_dict().items()}))
    label = (golden.values((2, 20), 1003, scale=1.7), torch.tensor(numbers)) if numbers else ()

    predicted = network(
        golden.values((2, 4, 16, 24), 1000, scale=1.7),
        torch.tensor([981, 41]),
        golden.values((2, 7, 48), 1001, scale=1.7),
        *label,
    )

    golden.assert_golden(predicted, *expected)


@pytest.mark.parametrize(
    ("config", "tensors", "parameters"),
    [(UNetConfig(), 686, 859_520_964), (UNetConfig.sdxl(), 1680, 2_567_463_684),
     (UNetConfig.sdxl_refiner(), 1220, 2_259_526_660)],
    ids=["SD 1.5", "SDXL", "SDXL refiner"],
)  # fmt: skip
def test_released_sizes_have_the_released_number_of_parameters(
    config: UNetConfig, tensors: int, parameters: int, request: pytest.FixtureRequest
) -> None:
    state = unet.FAMILY.build_on_meta(config).state_dict()

    assert (len(state), sum(tensor.numel() for tensor in state.values())) == (tensors, parameters)
    assert config.version == request.node.callspec.id
    assert len(config.skip_channels) == (9 if tensors == 1680 else 12)


# The three steps of a loop


@torch.inference_mode()
@each_shape
def test_plan_and_denoise_equal_forward(config: UNetConfig) -> None:
    network, latents = network_of(config), noise(config)
    timesteps = (999.0, 500.5, 1.0)

    plan = network.plan(timesteps, network.encode_condition(*prompt(config)))

    assert (len(plan), plan.timesteps) == (2, timesteps)
    for step, timestep in enumerate(timesteps):
        expected = network(latents, torch.full((2,), timestep), *prompt(config))
        torch.testing.assert_close(network.denoise(latents, step, plan), expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
@each_shape
def test_rows_of_a_plan_are_the_plans_of_rows(config: UNetConfig) -> None:
    network, latents = network_of(config), noise(config)
    condition = network.encode_condition(*prompt(config))
    plan = network.plan([700.0], condition)

    both = network.denoise(latents, 0, plan)
    alone = network.denoise(latents[1:], 0, network.plan([700.0], condition.rows([1])))
    shared = network.denoise(latents, 0, plan.rows(slice(1, 2)))
    turned = network.denoise(latents.flip(0), 0, plan.rows([1, 0]))
    joined = network.plan([700.0], Condition.cat([condition.rows([0]), condition.rows([1])]))

    torch.testing.assert_close(both[1:], alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(shared[1:], alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(turned.flip(0), both, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(network.denoise(latents, 0, joined), both, atol=1e-5, rtol=1e-5)
    assert plan.nbytes == 2 * plan.rows([0]).nbytes


@torch.inference_mode()
@each_shape
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_finite_and_near(config: UNetConfig, dtype: torch.dtype) -> None:
    expected = network_of(config)(noise(config), torch.tensor([999, 3]), *prompt(config))
    half: UNet = lively(unet.FAMILY, config)

    predicted = half.to(dtype)(noise(config), torch.tensor([999, 3]), *prompt(config))

    assert predicted.dtype == torch.float32
    assert (predicted - expected).abs().mean() < 0.05 * expected.abs().mean()


@torch.inference_mode()
@pytest.mark.parametrize(("height", "width"), [(9, 7), (5, 16), (3, 2)])
def test_any_size_comes_back(height: int, width: int) -> None:
    predicted = network_of(SD)(noise(SD, 1, height, width), torch.tensor([5]), *prompt(SD, 1))

    assert predicted.shape == (1, 4, height, width)
    assert predicted.isfinite().all()


# What others add


@torch.inference_mode()
def test_controls_are_added_where_they_belong() -> None:
    network, latents, timestep = network_of(SD), noise(SD), torch.tensor([700, 3])
    seen: list[tuple[int, ...]] = []
    hooks = [block.register_forward_hook(lambda *call: seen.extend(tuple(each.shape) for each in call[2]))
             for block in network.down_blocks]  # fmt: skip
    plain = network(latents, timestep, *prompt(SD))
    for hook in hooks:
        hook.remove()
    shapes = [(2, SD.channels[0], 8, 12), *seen]
    nothing = Controls(tuple(torch.zeros(shape) for shape in shapes), torch.zeros(shapes[-1]))
    something = Controls(tuple(torch.randn(shape) for shape in shapes), torch.randn(shapes[-1]))

    assert tuple(shape[1] for shape in shapes) == SD.skip_channels
    assert torch.equal(network(latents, timestep, *prompt(SD), controls=nothing), plain)
    changed = network(latents, timestep, *prompt(SD), controls=something)
    assert (changed - plain).abs().max() > 0.01
    halves = network(latents, timestep, *prompt(SD), controls=something * 0.25 + something * 0.75)
    torch.testing.assert_close(halves, changed, atol=1e-5, rtol=1e-5)
    for number in range(len(shapes)):
        one = tuple(skip * (index == number) for index, skip in enumerate(something.skips))
        only = network(latents, timestep, *prompt(SD), controls=Controls(one, nothing.mid))
        assert (only - plain).abs().max() > 1e-4, f"control {number} does nothing"


@torch.inference_mode()
def test_an_attention_hook_sees_every_layer_and_may_replace_it() -> None:
    network, seen = network_of(XL), dict[str, tuple[int, ...]]()

    def watch(name: str, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        seen[name] = tuple(keys.shape)
        return plain_attention(name, queries, keys, values)

    def blind(name: str, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return torch.zeros_like(queries.flatten(2)) if name.endswith("attn2") else watch(name, queries, keys, values)

    plain = network(noise(XL), torch.tensor([700, 3]), *prompt(XL))
    watched = network(noise(XL), torch.tensor([700, 3]), *prompt(XL), attention=watch)
    other = (torch.zeros_like(prompt(XL)[0]), *prompt(XL)[1:])
    blinded = [network(noise(XL), torch.tensor([9, 9]), *each, attention=blind) for each in (prompt(XL), other)]

    assert torch.equal(watched, plain)
    assert {name for name in seen if name.endswith("attn2")} == set(network.cross_attentions())
    assert len(seen) == 2 * len(network.cross_attentions())
    assert seen["down_blocks.1.attentions.0.transformer_blocks.0.attn2"] == (2, 7, 1, 64)
    assert torch.equal(*blinded)


def test_cross_attentions_come_in_the_order_they_run() -> None:
    network = network_of(SD)
    ran: list[str] = []

    def note(name: str, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        ran.append(name)
        return plain_attention(name, queries, keys, values)

    with torch.inference_mode():
        network(noise(SD), torch.tensor([700, 3]), *prompt(SD), attention=note)

    assert [name for name in ran if name.endswith("attn2")] == list(network.cross_attentions())


def test_activations_may_be_computed_again_on_the_way_back() -> None:
    gradients = []
    for again in (False, True):
        network: Any = lively(unet.FAMILY, SD).requires_grad_()
        if again:
            for block in [module for module in network.modules() if type(module).__name__ == "TransformerBlock"]:
                plain = block.forward
                block.forward = lambda *args, plain=plain: checkpoint(plain, *args, use_reentrant=False)
        network(noise(SD), torch.tensor([700, 3]), *prompt(SD)).square().mean().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])

    for plainly, recomputed in zip(*gradients, strict=True):
        assert plainly is not None
        torch.testing.assert_close(plainly, recomputed)


# What does not fit


@pytest.mark.parametrize(
    ("config", "arguments", "sentence"),
    [
        (SD, (torch.zeros(2, 7, 41),), "context is (B, L, 40), not (2, 7, 41)"),
        (SD, (torch.zeros(2, 7, 40), torch.zeros(2, 24)), "takes no pooled prompt"),
        (XL, (torch.zeros(2, 7, 56),), "needs the pooled prompt and the numbers"),
        (XL, (torch.zeros(2, 7, 56), torch.zeros(2, 24), torch.zeros(2, 5)), "make 1304 values, 1560 for each of 2"),
        (KOLORS, (torch.zeros(2, 7, 56), torch.zeros(2, 24), torch.zeros(2, 6)), "context is (B, L, 72)"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(
    config: UNetConfig, arguments: tuple[Tensor, ...], sentence: str
) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the sentence follows
        network_of(config).encode_condition(*arguments)

    assert sentence in str(raised.value)


def test_latents_and_controls_that_do_not_fit_are_refused() -> None:
    network = network_of(SD)
    plan = network.plan([5.0], network.encode_condition(*prompt(SD)))

    with pytest.raises(ValueError, match=r"latents are \(B, 4, H, W\), not \(2, 9, 8, 12\)"):
        network.denoise(torch.zeros(2, 9, 8, 12), 0, plan)
    with pytest.raises(ValueError, match="3 latents do not fit a plan of 2 rows"):
        network.denoise(torch.zeros(3, 4, 8, 12), 0, plan)
    with pytest.raises(ValueError, match="controls for 1 outputs, but the network has 9"):
        network.denoise(noise(SD), 0, plan, controls=Controls((torch.zeros(1),), torch.zeros(1)))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"channels": (30, 64, 96)}, "width 30 of channels is not a multiple of norm_groups 32"),
        ({"depths": (1, 1)}, "3 levels, but 2 depths"),
        ({"head_dim": 64}, "width 32 of channels is not a multiple of head_dim 64"),
        ({"num_heads": 7}, "is not a multiple of num_heads 7"),
        ({"mid_depth": 0}, "mid_depth=0"),
    ],
)
def test_sizes_that_contradict_one_another_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        replace(SD, **changes)

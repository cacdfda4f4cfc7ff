"""Control networks of UNets by themselves: golden numbers, the steps of a loop, and what does not fit."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from diffsynth.core.convert import Converter
from diffsynth.models import unet
from diffsynth.models.unet.condition import Controls
from diffsynth.models.unet.config import UNetConfig
from diffsynth.models.unet.control import ControlNet, Hint
from diffsynth.models.unet.control_config import ControlNetConfig
from diffsynth.models.unet.model import UNet
from tests.models import golden
from tests.spellings import lively

SD, UNION = ControlNetConfig.tiny(), ControlNetConfig.tiny_union()
XL = replace(UNION, types=0)
SHAPES = {"sd": SD, "xl": XL, "union": UNION, "small": ControlNetConfig.tiny_small()}

each_shape = pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)


@cache
def network_of(config: ControlNetConfig) -> ControlNet:
    network: ControlNet = lively(unet.CONTROLNET_FAMILY, config)
    return network


def prompt(config: ControlNetConfig, rows: int = 2) -> tuple[Tensor, ...]:
    """Context, and pooled prompt and numbers if the network takes them."""
    draw = torch.Generator().manual_seed(1)
    context = torch.randn(rows, 7, config.context_size or 56, generator=draw)
    if not config.label_size:
        return (context,)
    return context, torch.randn(rows, 24, generator=draw), 512 + 99 * torch.randn(rows, 6, generator=draw)


def noise(rows: int = 2) -> Tensor:
    return torch.randn(rows, 4, 8, 12, generator=torch.Generator().manual_seed(2))


def hint(config: ControlNetConfig, number: int = 0, rows: int = 1, **more: Any) -> Hint:
    pixels = torch.rand(rows, 3, 64, 96, generator=torch.Generator().manual_seed(3 + number))
    return Hint(pixels, type=number if config.types else 0, **more)


def parts(controls: Controls) -> tuple[Tensor, ...]:
    return (*controls.skips, controls.mid)


def assert_near(found: Controls, expected: Controls) -> None:
    for mine, theirs in zip(parts(found), parts(expected), strict=True):
        torch.testing.assert_close(mine, theirs, atol=5e-5, rtol=1e-5)


# Numbers


GOLDEN_SD = ControlNetConfig(channels=(32, 64, 128, 128), context_size=48, time_size=128)
GOLDEN_UNION = ControlNetConfig(
    channels=(32, 64, 128), depths=(0, 2, 3), mid_depth=3, context_size=48, time_size=128, label_size=68,
    number_size=8, conv_projections=False, head_dim=32, types=8,
)  # fmt: skip


def with_golden_weights(config: ControlNetConfig) -> ControlNet:
    network = ControlNet(config).eval()
    converter = Converter(unet.CONTROLNET_FAMILY.layout("diffusers").rules(config))
    theirs = {key: tuple(tensor.shape) for key, tensor in converter.to_theirs(network.state_dict()).items()}
    network.load_state_dict(converter.to_ours(golden.weights(theirs)))
    return network


def golden_inputs(config: ControlNetConfig) -> tuple[Tensor, ...]:
    inputs = (
        golden.values((2, 4, 16, 24), 1000, scale=1.7),
        torch.tensor([981, 41]),
        golden.values((2, 7, 48), 1001, scale=1.7),
    )
    if not config.label_size:
        return inputs
    numbers = torch.tensor([[1024.0, 768, 0, 16, 1024, 768], [512, 512, 8, 0, 640, 896]])
    return (*inputs, golden.values((2, 20), 1003, scale=1.7), numbers)


def golden_hint(stream: int) -> Tensor:
    return (golden.values((2, 3, 128, 192), stream) + 1) / 2


@torch.inference_mode()
def test_golden_numbers() -> None:
    network, inputs = with_golden_weights(GOLDEN_SD), golden_inputs(GOLDEN_SD)

    controls = network(*inputs, hints=[Hint(golden_hint(1002))]) * 0.7

    golden.assert_golden(
        controls.skips[0], -0.008249, 0.663754, 0.805582, -0.293010, -0.661652, -0.571054, -0.109273
    )  # fmt: skip
    golden.assert_golden(
        controls.skips[11], -0.060265, 2.116694, -0.321897, -0.398051, 3.697848, -1.745797, 3.108633
    )  # fmt: skip
    golden.assert_golden(controls.mid, 0.025841, 2.442189, 0.382568, -4.172343, 1.196456, -0.039345, 3.657706)
    guessed = controls.rising()
    golden.assert_golden(
        guessed.skips[0], -0.000825, 0.066375, 0.080558, -0.029301, -0.066165, -0.057105, -0.010927
    )  # fmt: skip
    assert torch.equal(guessed.mid, controls.mid)

    denoiser = UNet(UNetConfig(channels=(32, 64, 128, 128), context_size=48, time_size=128)).eval()
    denoiser.load_state_dict(golden.weights({key: tuple(t.shape) for key, t in denoiser.state_dict().items()}))
    golden.assert_golden(
        denoiser(*inputs, controls=controls), 0.072212, 0.649910, -0.620266, -0.239901, 1.050221, -0.236160, -0.131800
    )


@torch.inference_mode()
def test_golden_numbers_of_a_union() -> None:
    network, inputs = with_golden_weights(GOLDEN_UNION), golden_inputs(GOLDEN_UNION)

    single = network(*inputs, hints=[Hint(golden_hint(1002), type=3)]) * 0.7
    double = network(*inputs, hints=[Hint(golden_hint(1002), 3, 0.7), Hint(golden_hint(1004), 1, 0.4)])

    for found, expected in (
        (single.skips[0], (-0.025181, 1.188087, -1.666757, 0.334333, 0.143118, 0.019070, -0.598413)),
        (single.mid, (0.217853, 3.735132, 3.285772, -0.854477, 5.148697, 3.004917, 4.295242)),
        (double.skips[0], (-0.013200, 1.452362, -1.575771, 1.283735, -0.203513, 0.833859, -1.541618)),
        (double.mid, (0.371158, 5.007523, 5.736035, -2.259247, 5.528744, 3.887456, 8.931528)),
    ):
        golden.assert_golden(found, *expected)


@pytest.mark.parametrize(
    ("config", "tensors"),
    [
        (ControlNetConfig(), 340),
        (ControlNetConfig.sdxl(), 844),
        (replace(ControlNetConfig.sdxl(), types=6), 863),
        (replace(ControlNetConfig.sdxl(), types=8), 863),
    ],
    ids=["SD 1.5", "SDXL", "SDXL union", "SDXL union promax"],
)
def test_released_sizes_have_the_released_number_of_tensors(
    config: ControlNetConfig, tensors: int, request: pytest.FixtureRequest
) -> None:
    state = unet.CONTROLNET_FAMILY.build_on_meta(config).state_dict()

    assert (len(state), config.version) == (tensors, request.node.callspec.id)
    biases = [key for key in state if key.startswith(("controlnet_down", "controlnet_mid")) and key.endswith("bias")]
    assert len(biases) == len(config.skip_channels) + 1


# The steps of a loop


@torch.inference_mode()
@each_shape
def test_plan_and_denoise_equal_forward(config: ControlNetConfig) -> None:
    network, latents = network_of(config), noise()
    hints = [hint(config)] if not config.types else [hint(config, 1, scale=0.6), hint(config, 3, scale=0.9)]
    condition = network.encode_condition(*prompt(config), types=[each.type for each in hints])

    plan, encoded = network.plan((999.0, 1.0), condition), network.encode_hints(hints)

    assert encoded.shape == (1, 32, 8, 12)
    for step, timestep in enumerate((999.0, 1.0)):
        expected = network(latents, torch.full((2,), timestep), *prompt(config), hints=hints)
        assert_near(network.denoise(latents, step, plan, hints=encoded), expected)


@torch.inference_mode()
@each_shape
def test_rows_do_not_mix(config: ControlNetConfig) -> None:
    network, latents = network_of(config), noise()
    both = network(latents, torch.tensor([700, 3]), *prompt(config), hints=[hint(config)])

    alone = network(
        latents[1:], torch.tensor([3]), *(part[1:] for part in prompt(config)), hints=[hint(config, rows=1)]
    )

    assert_near(Controls(tuple(skip[1:] for skip in both.skips), both.mid[1:]), alone)
    assert tuple(skip.shape[1] for skip in both.skips) == config.skip_channels


@torch.inference_mode()
def test_every_setting_of_a_hint_of_a_union_matters() -> None:
    network, one = network_of(UNION), hint(UNION, 1)
    usual = network(noise(), torch.tensor([700, 3]), *prompt(UNION), hints=[one])

    others = {
        "type": [replace(one, type=2)],
        "scale": [replace(one, scale=0.5)],
        "picture": [replace(hint(UNION, 2), type=1)],
        "second": [one, hint(UNION, 2)],
    }

    for name, hints in others.items():
        changed = network(noise(), torch.tensor([700, 3]), *prompt(UNION), hints=hints)
        assert all((a - b).abs().max() > 1e-4 for a, b in zip(parts(changed), parts(usual), strict=True)), name


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_finite_and_near(dtype: torch.dtype) -> None:
    inputs = (noise(), torch.tensor([999, 3]), *prompt(UNION))
    expected = network_of(UNION)(*inputs, hints=[hint(UNION)])
    half: ControlNet = lively(unet.CONTROLNET_FAMILY, UNION)

    found = half.to(dtype)(*inputs, hints=[hint(UNION)])

    for mine, theirs in zip(parts(found), parts(expected), strict=True):
        assert (mine.float() - theirs).abs().mean() < 0.05 * theirs.abs().mean()


# What does not fit


@pytest.mark.parametrize(
    ("config", "hints", "sentence"),
    [
        (SD, 0, "takes one hint, not 0"),
        (SD, 2, "takes one hint, not 2"),
        (UNION, 9, "types of hints are numbers from 0 to 7"),
    ],
)
def test_hints_that_do_not_fit_are_refused(config: ControlNetConfig, hints: int, sentence: str) -> None:
    given = [hint(config, number) for number in range(hints)]

    with pytest.raises(ValueError, match=sentence):
        network_of(config)(noise(), torch.tensor([3, 3]), *prompt(config), hints=given)


def test_pictures_of_another_size_are_refused() -> None:
    network = network_of(SD)

    with pytest.raises(ValueError, match=r"multiples of 8, not \(1, 3, 60, 96\)"):
        network.encode_hints([Hint(torch.zeros(1, 3, 60, 96))])
    with pytest.raises(ValueError, match=r"latents of \(8, 12\) need hints of 8 times their size"):
        network(noise(), torch.tensor([3, 3]), *prompt(SD), hints=[Hint(torch.zeros(1, 3, 64, 64))])


@pytest.mark.parametrize(
    ("config", "changes", "sentence"),
    [
        (SD, {"hint_channels": ()}, "needs a width of the hint's layers"),
        (SD, {"bare_levels": (1,)}, "level 1 of bare_levels has blocks"),
        (UNION, {"type_heads": 7}, "not a multiple of type_heads 7"),
        (SD, {"context_size": 0}, "context_size 0, but transformers of"),
    ],
)
def test_sizes_that_contradict_one_another_are_refused(
    config: ControlNetConfig, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        replace(config, **changes)

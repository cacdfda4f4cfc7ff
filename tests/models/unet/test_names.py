"""DiffSynth's row of layers, number by number; the other spellings are held against released files."""

from __future__ import annotations

import re

import pytest

from diffsynth.models import unet
from diffsynth.models.unet.config import UNetConfig

SD_RESNETS = [0, 3, 8, 11, 16, 19, 24, 26, 28, 30, 32, 34, 36, 39, 42, 45, 49, 52, 55, 59, 62, 65]
SD_ATTENTIONS = [1, 4, 9, 12, 17, 20, 29, 40, 43, 46, 50, 53, 56, 60, 63, 66]
XL_RESNETS = [0, 2, 6, 9, 14, 17, 20, 22, 24, 27, 30, 34, 37, 40, 44, 46, 48]
XL_ATTENTIONS = [7, 10, 15, 18, 21, 25, 28, 31, 35, 38, 41]


def numbers(keys: list[str], leaf: str) -> list[int]:
    return sorted({int(found[1]) for key in keys if (found := re.fullmatch(rf"blocks\.(\d+)\.{leaf}", key))})


@pytest.mark.parametrize(
    ("config", "resnets", "attentions", "samplers"),
    [
        (UNetConfig(), SD_RESNETS, SD_ATTENTIONS, [6, 14, 22, 37, 47, 57]),
        (UNetConfig.sdxl(), XL_RESNETS, XL_ATTENTIONS, [4, 12, 32, 42]),
    ],
    ids=["SD 1.5", "SDXL"],
)
def test_layers_have_the_numbers_of_diffsynth(
    config: UNetConfig, resnets: list[int], attentions: list[int], samplers: list[int]
) -> None:
    keys = list(unet.FAMILY.header(config, unet.FAMILY.layout("diffsynth")))

    assert numbers(keys, r"conv1\.weight") == resnets
    assert numbers(keys, r"proj_in\.weight") == attentions
    assert numbers(keys, r"conv\.weight") == samplers
    assert {"blocks.29.transformer_blocks.0.ff.weight", "blocks.21.transformer_blocks.9.act_fn.proj.bias"} & set(keys)


def test_the_projections_of_diffsynth_are_linear_where_others_are_convolutions() -> None:
    shapes = {
        layout.name: unet.FAMILY.header(UNetConfig(), layout)[key].shape
        for layout, key in zip(
            unet.FAMILY.layouts,
            ("middle_block.1.proj_in.weight", "mid_block.attentions.0.proj_in.weight", "blocks.29.proj_in.weight"),
            strict=True,
        )
    }

    assert shapes == {"ldm": (1280, 1280, 1, 1), "diffusers": (1280, 1280, 1, 1), "diffsynth": (1280, 1280)}

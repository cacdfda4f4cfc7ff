"""How files of HunyuanDiT's control networks are recognised, and how their names become ours.

They have what the denoiser has but its second half and its last layer, in the same spellings, and three kinds of
layers of their own. DiffSynth 1.x had none for this family.
"""

from __future__ import annotations

from diffsynth.core.convert import Rename, Rules
from diffsynth.core.family import Layout
from diffsynth.core.signature import Dims, Match, Signature
from diffsynth.models.hunyuan_dit.config import HunyuanDiTConfig
from diffsynth.models.hunyuan_dit.weights import (
    DIFFUSERS_BACKBONE,
    DIFFUSERS_SIZES,
    ORIGINAL_BACKBONE,
    ORIGINAL_SIZES,
    config_of,
)


def read_config(match: Match) -> HunyuanDiTConfig:
    """Turn measured sizes into the config of the denoiser that the network is for.

    Raises:
        ValueError: the sizes contradict each other.
    """
    blocks, outputs = match.count("block"), match.count("output")
    if blocks != outputs:
        raise ValueError(f"{blocks} blocks have {outputs} outputs; each block has one")
    return config_of(match, depth=2 * (blocks + 1))


def _layout(name: str, sizes: dict[str, Dims], backbone: Rules, hint: str, outputs: str) -> Layout:
    """Return a spelling that calls the layer of the hint, and those that lead out, by these names."""
    square: Dims = ("hidden", "hidden")
    return Layout(
        name=name,
        signature=Signature({**sizes, f"{hint}.weight": square, f"{outputs}.{{output}}.weight": square}),
        read_config=read_config,
        rules=lambda _: (*backbone, Rename(hint, "hint_proj"), Rename(f"{outputs}.{{i}}", "outputs.{i}")),
    )


LAYOUTS = (
    _layout("original", ORIGINAL_SIZES, ORIGINAL_BACKBONE, "before_proj", "after_proj_list"),
    _layout("diffusers", DIFFUSERS_SIZES, DIFFUSERS_BACKBONE, "input_block", "controlnet_blocks"),
)

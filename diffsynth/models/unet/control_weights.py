"""How control networks of UNets are recognised, what their shapes tell, and how their names become ours.

Two spellings: that of latent-diffusion, as the first networks were published, and that of Diffusers. What both share
with a UNet is read by the tables of a UNet.
"""

from __future__ import annotations

from collections.abc import Mapping

from diffsynth.core.convert import Rename, Rules, keep
from diffsynth.core.family import Layout
from diffsynth.core.signature import Dims, Match, Signature
from diffsynth.models.unet import names
from diffsynth.models.unet.control_config import ControlNetConfig
from diffsynth.models.unet.weights import HEAD_DIM, LDM_LEVELS, depth_of, ldm_stride

UNION: Mapping[str, Dims] = {
    "task_embedding": ("types", "first"),
    "control_add_embedding.linear_1.weight": ("time", "present"),
    "transformer_layes.{layer}.attn.in_proj_weight": ("_", "first"),
}
_TEXT = "transformer_blocks.{deep}.attn2.to_k.weight"

DIFFUSERS = Signature(
    {
        "controlnet_cond_embedding.conv_in.weight": ("hint", 3, 3, 3),
        "controlnet_cond_embedding.blocks.{block}.weight": ("hint{block}", "_", 3, 3),
        "controlnet_down_blocks.{output}.weight": ("_", "_", 1, 1),
        "controlnet_mid_block.weight": ("_", "_", 1, 1),
        "conv_in.weight": ("first", "in", 3, 3),
        "time_embedding.linear_1.weight": ("time", "first"),
        "down_blocks.{level}.resnets.{unit}.conv2.weight": ("width{level}", "width{level}", 3, 3),
    },
    optional={
        "down_blocks.{level}.attentions.{unit}.proj_in.weight": ("_", "_", "*bare{level}.{unit}"),
        f"down_blocks.{{level}}.attentions.{{unit}}.{_TEXT}": ("text{level}.{unit}.{deep}", "context"),
        "mid_block.attentions.0.proj_in.weight": ("_", "_", "*kernel"),
        f"mid_block.attentions.0.{_TEXT}": ("mid.{deep}", "context"),
        "add_embedding.linear_1.weight": ("_", "label"),
        "encoder_hid_proj.weight": ("context", "text"),
        **UNION,
    },
)
LDM = Signature(
    {
        "input_hint_block.0.weight": ("hint", 3, 3, 3),
        "input_hint_block.{block}.weight": ("hint{block}", "_", 3, 3),
        "zero_convs.{output}.0.weight": ("_", "_", 1, 1),
        "middle_block_out.0.weight": ("_", "_", 1, 1),
        "input_blocks.0.0.weight": ("first", "in", 3, 3),
        "time_embed.0.weight": ("time", "first"),
        "input_blocks.{n}.0.out_layers.3.weight": ("width{n}", "width{n}", 3, 3),
    },
    optional={
        "input_blocks.{n}.1.proj_in.weight": ("_", "_", "*bare{n}"),
        "middle_block.1.proj_in.weight": ("_", "_", "*kernel"),
        f"middle_block.1.{_TEXT}": ("mid.{deep}", "context"),
        "label_emb.0.0.weight": ("_", "label"),
        "encoder_hid_proj.weight": ("context", "text"),
        **LDM_LEVELS,
        **UNION,
    },
)


def read_diffusers(match: Match) -> ControlNetConfig:
    """Turn measured sizes into a config.

    Raises:
        ValueError: the sizes contradict each other.
    """
    levels = [(match.sizes[f"width{i}"], depth_of(match, f"text{i}.0")) for i in range(match.count("level"))]
    bare = [f"bare{i}.0" in match.sizes for i in range(len(levels))]
    hints = [match.sizes[f"hint{i}"] for i in range(1, match.count("block"), 2)]
    return _config(match, levels, bare, hints, layers=match.count("unit"))


def read_ldm(match: Match) -> ControlNetConfig:
    """As `read_diffusers`."""
    places = range(1, match.count("n"), ldm_stride(match))
    levels = [(match.sizes[f"width{n}"], depth_of(match, f"text{n}")) for n in places]
    bare = [f"bare{n}" in match.sizes for n in places]
    hints = [match.sizes[f"hint{n}"] for n in range(4, match.count("block") - 1, 4)]  # SiLUs have numbers too
    return _config(match, levels, bare, hints, layers=ldm_stride(match) - 1)


def _config(
    match: Match, levels: list[tuple[int, int]], attends: list[bool], hints: list[int], *, layers: int
) -> ControlNetConfig:
    """Turn measured sizes into a config.

    Args:
        match: the measured sizes.
        levels: their widths and transformer depths.
        attends: whether each has a transformer, of however many blocks.
        hints: widths of the hint's layers but for the first.
        layers: residual blocks of a level.
    """
    size = match.sizes
    depths = (*(depth for _, depth in levels), depth_of(match, "mid"))
    present = (*attends, "kernel" in size)
    convs = size.get("kernel") == 2
    types = size.get("types", 0)
    return ControlNetConfig(
        in_channels=size["in"],
        channels=tuple(width for width, _ in levels),
        depths=depths[:-1],
        mid_depth=depths[-1],
        layers_per_block=layers,
        context_size=size.get("context", 0),
        text_size=size.get("text", 0),
        time_size=size["time"],
        label_size=size.get("label", 0),
        number_size=size["present"] // types if types else ControlNetConfig.number_size,
        conv_projections=convs,
        head_dim=0 if convs else HEAD_DIM,
        hint_channels=(size["hint"], *hints),
        bare_levels=tuple(n for n, depth in enumerate(depths) if present[n] and not depth),
        types=types,
        type_layers=match.count("layer") if types else ControlNetConfig.type_layers,
    )


def diffusers(config: ControlNetConfig) -> Rules:
    """Return the table of Diffusers' names."""
    return (
        *names.diffusers_encoder(config),
        keep("controlnet_cond_embedding.conv_in"),
        keep("controlnet_cond_embedding.blocks.{i}"),
        keep("controlnet_cond_embedding.conv_out"),
        keep("controlnet_down_blocks.{i}"),
        keep("controlnet_mid_block"),
        *(_union() if config.types else ()),
    )


def ldm(config: ControlNetConfig) -> Rules:
    """Return the table of latent-diffusion's names; layers without weights are counted there too."""
    blocks = 2 * len(config.hint_channels) - 2
    return (
        *names.ldm_encoder(config),
        Rename("input_hint_block.0", "controlnet_cond_embedding.conv_in"),
        *(Rename(f"input_hint_block.{2 * n + 2}", f"controlnet_cond_embedding.blocks.{n}") for n in range(blocks)),
        Rename(f"input_hint_block.{2 * blocks + 2}", "controlnet_cond_embedding.conv_out"),
        Rename("zero_convs.{i}.0", "controlnet_down_blocks.{i}"),
        Rename("middle_block_out.0", "controlnet_mid_block"),
        *(_union() if config.types else ()),
    )


def _union() -> Rules:
    layer = "transformer_layes.{i}"  # spelt so in the published files
    return (
        Rename("task_embedding", "hint_types.task_embedding"),
        Rename("spatial_ch_projs", "hint_types.spatial_ch_projs"),
        Rename("control_add_embedding.linear_1", "hint_types.control_add_embedding.linear_1"),
        Rename("control_add_embedding.linear_2", "hint_types.control_add_embedding.linear_2"),
        *(Rename(f"{layer}.{name}", f"hint_types.layers.{{i}}.{name}") for name in ("ln_1", "ln_2")),
        *(
            Rename(f"{layer}.attn.in_proj_{kind}", f"hint_types.layers.{{i}}.in_proj.{kind}")
            for kind in ("weight", "bias")
        ),
        Rename(f"{layer}.attn.out_proj", "hint_types.layers.{i}.out_proj"),
        *(Rename(f"{layer}.mlp.{name}", f"hint_types.layers.{{i}}.{name}") for name in ("c_fc", "c_proj")),
    )


LAYOUTS = (
    Layout(name="ldm", signature=LDM, read_config=read_ldm, rules=ldm),
    Layout(name="diffusers", signature=DIFFUSERS, read_config=read_diffusers, rules=diffusers),
)

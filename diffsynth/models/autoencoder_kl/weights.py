"""How autoencoders are recognised, what their shapes tell, and how their names become ours.

Ours are the names of Diffusers. Older Diffusers files spell the attention layers otherwise; single files use the
names of latent-diffusion (LDM), which counts the decoder's levels from the last to the first and stores the
attention layers as 1x1 convolutions.
"""

from __future__ import annotations

from diffsynth.core.convert import CONV1X1_TO_LINEAR, SAME, Op, Rename, Rules, keep
from diffsynth.core.family import Layout
from diffsynth.core.signature import Match, Signature
from diffsynth.models.autoencoder_kl.config import AutoencoderKLConfig


def read_config(match: Match) -> AutoencoderKLConfig:
    """Turn measured sizes into a config.

    Raises:
        ValueError: the sizes contradict each other.
    """
    size, levels = match.sizes, match.count("level")
    absent = [level for level in range(levels) if f"width{level}" not in size]
    if absent:
        raise ValueError(f"the encoder has {levels} levels, but no weights of level {absent[0]}")
    return AutoencoderKLConfig(
        in_channels=size["pixels"],
        latent_channels=size["latent"],
        channels=tuple(size[f"width{level}"] for level in range(levels)),
        layers_per_block=match.count("unit"),
    )


def _signature(block: str, attention: str) -> Signature:
    return Signature(
        {
            f"encoder.{block}.conv2.weight": ("width{level}", "width{level}", 3, 3),
            "encoder.conv_in.weight": ("width0", "pixels", 3, 3),
            "decoder.conv_in.weight": ("_", "latent", 3, 3),
            f"decoder.{attention}.weight": ("_",) * (4 if "attn_1" in attention else 2),
            "quant_conv.weight": ("moments", "moments", 1, 1),
        }
    )


def _resnet(theirs: str, ours: str, shortcut: str = "conv_shortcut") -> Rules:
    same = (Rename(f"{theirs}.{name}", f"{ours}.{name}") for name in ("norm1", "conv1", "norm2", "conv2"))
    return (*same, Rename(f"{theirs}.{shortcut}", f"{ours}.conv_shortcut"))


def _attention(theirs: str, ours: str, names: tuple[str, ...], op: Op = SAME) -> Rules:
    """The norm and the query, key, value and output layers of one attention, named in this order."""
    norm, *layers = names
    pairs = zip(layers, ("to_q", "to_k", "to_v", "to_out.0"), strict=True)
    return (
        Rename(f"{theirs}.{norm}", f"{ours}.group_norm"),
        *(Rename(f"{theirs}.{layer}", f"{ours}.{name}", op) for layer, name in pairs),
    )


_ENDS: Rules = (
    keep("encoder.conv_in"),
    keep("encoder.conv_out"),
    keep("decoder.conv_in"),
    keep("decoder.conv_out"),
    keep("quant_conv"),
    keep("post_quant_conv"),
)


def _diffusers(*attention: str) -> Rules:
    def middle(side: str) -> Rules:
        resnets, block = f"{side}.mid_block.resnets.{{i}}", f"{side}.mid_block.attentions.0"
        return (keep(f"{side}.conv_norm_out"), *_resnet(resnets, resnets), *_attention(block, block, attention))

    down, up = "encoder.down_blocks.{i}", "decoder.up_blocks.{i}"
    return (
        *_ENDS,
        *middle("encoder"),
        *_resnet(f"{down}.resnets.{{j}}", f"{down}.resnets.{{j}}"),
        keep(f"{down}.downsamplers.0.conv"),
        *middle("decoder"),
        *_resnet(f"{up}.resnets.{{j}}", f"{up}.resnets.{{j}}"),
        keep(f"{up}.upsamplers.0.conv"),
    )


def _ldm(config: AutoencoderKLConfig) -> Rules:
    def middle(side: str) -> Rules:
        attention, names = f"{side}.mid_block.attentions.0", ("norm", "q", "k", "v", "proj_out")
        return (
            Rename(f"{side}.norm_out", f"{side}.conv_norm_out"),
            *_resnet(f"{side}.mid.block_1", f"{side}.mid_block.resnets.0", "nin_shortcut"),
            *_resnet(f"{side}.mid.block_2", f"{side}.mid_block.resnets.1", "nin_shortcut"),
            *_attention(f"{side}.mid.attn_1", attention, names, CONV1X1_TO_LINEAR),
        )

    def level(theirs: int, ours: int) -> Rules:
        up = f"decoder.up_blocks.{ours}"
        return (
            *_resnet(f"decoder.up.{theirs}.block.{{j}}", f"{up}.resnets.{{j}}", "nin_shortcut"),
            Rename(f"decoder.up.{theirs}.upsample.conv", f"{up}.upsamplers.0.conv"),
        )

    last = len(config.channels) - 1
    return (
        *_ENDS,
        *middle("encoder"),
        *_resnet("encoder.down.{i}.block.{j}", "encoder.down_blocks.{i}.resnets.{j}", "nin_shortcut"),
        Rename("encoder.down.{i}.downsample.conv", "encoder.down_blocks.{i}.downsamplers.0.conv"),
        *middle("decoder"),
        *(rule for ours in range(last + 1) for rule in level(last - ours, ours)),
    )


_NEW = ("group_norm", "to_q", "to_k", "to_v", "to_out.0")
_OLD = ("group_norm", "query", "key", "value", "proj_attn")
_BLOCK = "down_blocks.{level}.resnets.{unit}"

LAYOUTS = (
    Layout(
        name="diffusers",
        signature=_signature(_BLOCK, "mid_block.attentions.0.to_q"),
        read_config=read_config,
        rules=lambda _: _diffusers(*_NEW),
    ),
    Layout(
        name="diffusers-old",
        signature=_signature(_BLOCK, "mid_block.attentions.0.query"),
        read_config=read_config,
        rules=lambda _: _diffusers(*_OLD),
    ),
    Layout(
        name="ldm",
        signature=_signature("down.{level}.block.{unit}", "mid.attn_1.q"),
        read_config=read_config,
        rules=_ldm,
    ),
)

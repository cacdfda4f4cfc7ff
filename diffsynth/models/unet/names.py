"""How the names of UNets in files become ours, which are those of Diffusers.

Files of latent-diffusion (LDM) count the blocks of each way through all levels; DiffSynth 1.x counts all layers, and
the places where an output is put aside or fetched, in one row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from diffsynth.core.convert import CONV1X1_TO_LINEAR, SAME, Op, Rename, Rule, Rules, keep
from diffsynth.models.unet.config import EncoderConfig, UNetConfig

HALF_SLOTS = 2  # of a downsampler in DiffSynth's row: itself, and its output put aside


def level_slots(layers: int, depth: int) -> int:
    """Return the places in DiffSynth's row that a level takes on the way down, its downsampler not counted."""
    return layers * (3 if depth else 2)  # a residual block, perhaps a transformer, and their output put aside


def diffusers(config: UNetConfig) -> Rules:
    """Return the table of Diffusers' names."""
    return (
        *diffusers_encoder(config),
        *_resnet("up_blocks.{i}.resnets.{j}", "up_blocks.{i}.resnets.{j}"),
        *_transformer("up_blocks.{i}.attentions.{j}", "up_blocks.{i}.attentions.{j}", _op(config)),
        keep("up_blocks.{i}.upsamplers.0.conv"),
        *_end("conv_norm_out", "conv_out"),
    )


def diffusers_encoder(config: EncoderConfig) -> Rules:
    """Return the table of Diffusers' names of the way down and the middle."""
    resnets = ("down_blocks.{i}.resnets.{j}", "mid_block.resnets.{i}")
    transformers = ("down_blocks.{i}.attentions.{j}", "mid_block.attentions.0")
    return (
        *_start("time_embedding.linear_1", "time_embedding.linear_2", "conv_in"),
        *_label("add_embedding.linear_1", "add_embedding.linear_2"),
        *(rule for path in resnets for rule in _resnet(path, path)),
        *(rule for path in transformers for rule in _transformer(path, path, _op(config))),
        keep("down_blocks.{i}.downsamplers.0.conv"),
    )


def ldm(config: UNetConfig) -> Rules:
    """Return the table of latent-diffusion's names."""
    return (
        *ldm_encoder(config),
        *_layers(_ldm_way_up(config), _op(config), _LDM_RESNET, _BLOCK),
        *_end("out.0", "out.2"),
    )


def ldm_encoder(config: EncoderConfig) -> Rules:
    """Return the table of latent-diffusion's names of the way down and the middle."""
    return (
        *_start("time_embed.0", "time_embed.2", "input_blocks.0.0"),
        *_label("label_emb.0.0", "label_emb.0.2"),
        *_layers(_ldm_way_down(config), _op(config), _LDM_RESNET, _BLOCK),
    )


def diffsynth(config: UNetConfig) -> Rules:
    """Return the table of the names of DiffSynth 1.x, which are also those in its LoRA files."""
    return (
        *_start("time_embedding.0", "time_embedding.2", "conv_in"),
        *_label("add_time_embedding.0", "add_time_embedding.2"),
        *_layers(_diffsynth_places(config), SAME, _RESNET, _DIFFSYNTH_BLOCK),
        *_end("conv_norm_out", "conv_out"),
    )


_RESNET = {name: name for name in ("norm1", "conv1", "time_emb_proj", "norm2", "conv2", "conv_shortcut")}
_LDM_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_BLOCK = {
    name: name
    for name in (
        "norm1", "attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0",
        "norm2", "attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0",
        "norm3", "ff.net.0.proj", "ff.net.2",
    )
}  # fmt: skip
_DIFFSYNTH_BLOCK = _BLOCK | {
    "attn1.to_out.0": "attn1.to_out",
    "attn2.to_out.0": "attn2.to_out",
    "ff.net.0.proj": "act_fn.proj",
    "ff.net.2": "ff",
}


def _op(config: EncoderConfig) -> Op:
    return CONV1X1_TO_LINEAR if config.conv_projections else SAME


def _start(time_1: str, time_2: str, conv_in: str) -> Rules:
    return (
        Rename(time_1, "time_embedding.linear_1"),
        Rename(time_2, "time_embedding.linear_2"),
        Rename(conv_in, "conv_in"),
        keep("encoder_hid_proj"),
    )


def _end(norm_out: str, conv_out: str) -> Rules:
    return (Rename(norm_out, "conv_norm_out"), Rename(conv_out, "conv_out"))


def _label(first: str, second: str) -> Rules:
    return (Rename(first, "add_embedding.linear_1"), Rename(second, "add_embedding.linear_2"))


def _layers(places: Iterable[tuple[str, str]], op: Op, resnet: dict[str, str], block: dict[str, str]) -> Iterator[Rule]:
    """Yield the rules of residual blocks, transformers and samplers, given our place and theirs of each."""
    for ours, theirs in places:
        if ".resnets." in ours:
            yield from _resnet(theirs, ours, resnet)
        elif ".attentions." in ours:
            yield from _transformer(theirs, ours, op, block)
        else:
            yield Rename(theirs, ours)


def _resnet(theirs: str, ours: str, layers: dict[str, str] = _RESNET) -> Rules:
    return tuple(Rename(f"{theirs}.{their}", f"{ours}.{our}") for our, their in layers.items())


def _transformer(theirs: str, ours: str, op: Op, layers: dict[str, str] = _BLOCK) -> Rules:
    block = "transformer_blocks.{k}"
    return (
        Rename(f"{theirs}.norm", f"{ours}.norm"),
        Rename(f"{theirs}.proj_in", f"{ours}.proj_in", op),
        *(Rename(f"{theirs}.{block}.{their}", f"{ours}.{block}.{our}") for our, their in layers.items()),
        Rename(f"{theirs}.proj_out", f"{ours}.proj_out", op),
    )


def _ldm_way_down(config: EncoderConfig) -> Iterator[tuple[str, str]]:
    """Yield the place of each layer in our names and in those of latent-diffusion, down to the middle."""
    layers, last = config.layers_per_block, len(config.channels) - 1
    for level in range(last + 1):
        down = f"down_blocks.{level}"
        for number in range(layers):
            block = f"input_blocks.{level * (layers + 1) + number + 1}"
            yield f"{down}.resnets.{number}", f"{block}.0"
            if config.attends(level):
                yield f"{down}.attentions.{number}", f"{block}.1"
        if level < last:
            yield f"{down}.downsamplers.0.conv", f"input_blocks.{(level + 1) * (layers + 1)}.0.op"
    for number, path in enumerate(("resnets.0", "attentions.0", "resnets.1")):
        yield f"mid_block.{path}", f"middle_block.{number}"


def _ldm_way_up(config: UNetConfig) -> Iterator[tuple[str, str]]:
    """Yield the place of each layer in our names and in those of latent-diffusion, from the middle up."""
    layers, last = config.layers_per_block, len(config.channels) - 1
    for level in range(last + 1):
        up = f"up_blocks.{last - level}"
        for number in range(layers + 1):
            block = f"output_blocks.{(last - level) * (layers + 1) + number}"
            yield f"{up}.resnets.{number}", f"{block}.0"
            if config.attends(level):
                yield f"{up}.attentions.{number}", f"{block}.1"
        if level > 0:
            block = f"output_blocks.{(last - level + 1) * (layers + 1) - 1}"
            yield f"{up}.upsamplers.0.conv", f"{block}.{2 if config.attends(level) else 1}.conv"


def _diffsynth_places(config: UNetConfig) -> Iterator[tuple[str, str]]:
    """Yield the place of each layer in our names and in DiffSynth's row."""
    for number, ours in enumerate(_row(config)):
        if ours:
            yield ours, f"blocks.{number}.conv" if ours.endswith(".conv") else f"blocks.{number}"


def _row(config: UNetConfig) -> Iterator[str]:
    """Yield our name of each place in DiffSynth's row, empty where an output is put aside or fetched."""
    last = len(config.channels) - 1
    for level, depth in enumerate(config.depths):
        for number in range(config.layers_per_block):
            yield f"down_blocks.{level}.resnets.{number}"
            if depth:
                yield f"down_blocks.{level}.attentions.{number}"
            yield ""
        if level < last:
            yield f"down_blocks.{level}.downsamplers.0.conv"
            yield ""
    yield from ("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1")
    for block, depth in enumerate(config.depths[::-1]):
        for number in range(config.layers_per_block + 1):
            yield ""
            yield f"up_blocks.{block}.resnets.{number}"
            if depth:
                yield f"up_blocks.{block}.attentions.{number}"
        if block < last:
            yield f"up_blocks.{block}.upsamplers.0.conv"

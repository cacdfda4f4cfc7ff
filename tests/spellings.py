"""The spellings of weight files, translated by hand: what the tables of ``diffsynth.models`` are held against.

Nothing here uses these tables. Each function takes a state dict and returns the same weights as another program
would have saved them.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from diffsynth.core.family import Layout, ModelFamily
from diffsynth.core.saving import to_layout
from diffsynth.models import autoencoder_kl, bert_clip, hunyuan_dit, mt5
from diffsynth.types import StateDict

N = TypeVar("N", bound=nn.Module)

DIT_TO_DIFFUSERS = (
    (r"mlp_t5\.0", "text_embedder.linear_1"),
    (r"mlp_t5\.2", "text_embedder.linear_2"),
    (r"pooler\.", "time_extra_emb.pooler."),
    (r"x_embedder\.proj", "pos_embed.proj"),
    (r"t_embedder\.mlp\.0", "time_extra_emb.timestep_embedder.linear_1"),
    (r"t_embedder\.mlp\.2", "time_extra_emb.timestep_embedder.linear_2"),
    (r"extra_embedder\.0", "time_extra_emb.extra_embedder.linear_1"),
    (r"extra_embedder\.2", "time_extra_emb.extra_embedder.linear_2"),
    (r"style_embedder", "time_extra_emb.style_embedder"),
    (r"final_layer\.linear", "proj_out"),
    (r"final_layer\.adaLN_modulation\.1", "norm_out.linear"),
    (r"(blocks\.\d+)\.norm1", r"\1.norm1.norm"),
    (r"(blocks\.\d+)\.default_modulation\.1", r"\1.norm1.linear"),
    (r"(blocks\.\d+)\.norm2", r"\1.norm3"),
    (r"(blocks\.\d+)\.norm3", r"\1.norm2"),
    (r"(blocks\.\d+\.attn2)\.q_proj", r"\1.to_q"),
    (r"(blocks\.\d+\.attn\d)\.q_norm", r"\1.norm_q"),
    (r"(blocks\.\d+\.attn\d)\.k_norm", r"\1.norm_k"),
    (r"(blocks\.\d+\.attn\d)\.out_proj", r"\1.to_out.0"),
    (r"(blocks\.\d+)\.mlp\.fc1", r"\1.ff.net.0.proj"),
    (r"(blocks\.\d+)\.mlp\.fc2", r"\1.ff.net.2"),
)
DIT_TO_DIFFSYNTH = (
    (r"mlp_t5\.", "t5_embedder."),
    (r"pooler\.", "t5_pooler."),
    (r"x_embedder\.", "patch_embedder."),
    (r"t_embedder\.", "timestep_embedder."),
    (r"text_embedding_padding", "text_emb_padding"),
    (r"style_embedder\.weight", "style_embedder"),
    (r"(blocks\.\d+)\.default_modulation", r"\1.modulation"),
    (r"(blocks\.\d+\.attn2)\.q_proj", r"\1.to_q"),
    (r"(blocks\.\d+)\.attn(\d)\.(q|k)_norm", r"\1.rota\2.\3_norm"),
    (r"(blocks\.\d+\.attn\d)\.out_proj", r"\1.to_out"),
    (r"(blocks\.\d+)\.mlp\.fc1", r"\1.mlp.0"),
    (r"(blocks\.\d+)\.mlp\.fc2", r"\1.mlp.2"),
)
VAE_TO_LDM = (
    (r"(encoder|decoder)\.conv_norm_out", r"\1.norm_out"),
    (r"encoder\.down_blocks\.(\d)\.resnets", r"encoder.down.\1.block"),
    (r"encoder\.down_blocks\.(\d)\.downsamplers\.0", r"encoder.down.\1.downsample"),
    (r"decoder\.up_blocks\.(\d)\.resnets", r"decoder.up.\1.block"),
    (r"decoder\.up_blocks\.(\d)\.upsamplers\.0", r"decoder.up.\1.upsample"),
    (r"(encoder|decoder)\.mid_block\.resnets\.0", r"\1.mid.block_1"),
    (r"(encoder|decoder)\.mid_block\.resnets\.1", r"\1.mid.block_2"),
    (r"(encoder|decoder)\.mid_block\.attentions\.0\.group_norm", r"\1.mid.attn_1.norm"),
    (r"(encoder|decoder)\.mid_block\.attentions\.0\.to_(q|k|v)", r"\1.mid.attn_1.\2"),
    (r"(encoder|decoder)\.mid_block\.attentions\.0\.to_out\.0", r"\1.mid.attn_1.proj_out"),
)
OLD_ATTENTION = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}


def liven(network: N, seed: int = 0) -> N:
    """Fill a network so that no parameter is a constant, norms included: what is swapped shows."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            centre = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
            parameter.data = centre + 0.3 * noise
        else:
            parameter.data = noise * parameter[0].numel() ** -0.5
    return network.eval().requires_grad_(requires_grad=False)


def lively(family: ModelFamily, config: Any = None, seed: int = 0) -> Any:
    """Build a small network of a family in which no parameter is a constant."""
    network: Any = liven(family.build(config or family.tiny()), seed)
    if hasattr(network, "after_load"):
        network.after_load()
    return network


def spelt(network: Any, family: ModelFamily, layout: Layout | None = None) -> StateDict:
    """Return a network's weights in one of our layouts, the first one if none is named."""
    return to_layout(network, layout or family.layouts[0], network.config)


def original_dit(network: nn.Module) -> StateDict:
    return spelt(network, hunyuan_dit.FAMILY)


def diffusers_dit(original: StateDict, *, swap_norms: bool = True, swap_halves: bool = True) -> StateDict:
    """Respell the published names as those of Diffusers; without the swaps it is a trap."""
    out: StateDict = {}
    for key, tensor in original.items():
        head, _, kind = key.rpartition(".")
        if head.endswith("attn1.Wqkv"):
            parts = zip(("to_q", "to_k", "to_v"), tensor.chunk(3), strict=True)
            out |= {f"{head.removesuffix('Wqkv')}{name}.{kind}": part.clone() for name, part in parts}
        elif head.endswith("attn2.kv_proj"):
            parts = zip(("to_k", "to_v"), tensor.chunk(2), strict=True)
            out |= {f"{head.removesuffix('kv_proj')}{name}.{kind}": part.clone() for name, part in parts}
        elif "adaLN_modulation" in key and swap_halves:
            shift, scale = tensor.chunk(2)
            out[_respell(key, DIT_TO_DIFFUSERS)] = torch.cat((scale, shift))
        elif not swap_norms and re.search(r"\.norm[23]\.", key):
            out[key] = tensor
        else:
            out[_respell(key, DIT_TO_DIFFUSERS)] = tensor
    return out


def diffsynth_dit(original: StateDict) -> StateDict:
    """Respell the published names as the network of DiffSynth 1.x has them."""
    out: StateDict = {}
    for key, tensor in original.items():
        head, _, kind = key.rpartition(".")
        names = {"attn1.Wqkv": ("to_q", "to_k", "to_v"), "attn2.kv_proj": ("to_k", "to_v")}
        fused = next((name for name in names if head.endswith(name)), None)
        if fused:
            parts = zip(names[fused], tensor.chunk(len(names[fused])), strict=True)
            layer = head.removesuffix(fused.split(".")[1])
            out |= {f"{layer}{name}.{kind}": part.clone() for name, part in parts}
        else:
            out[_respell(key, DIT_TO_DIFFSYNTH)] = tensor[0] if key == "style_embedder.weight" else tensor
    return out


def diffusers_vae(network: nn.Module) -> StateDict:
    """Return an autoencoder's weights as Diffusers has them; our own names are the same."""
    return dict(network.state_dict())


def old_vae(diffusers: StateDict) -> StateDict:
    """Respell the attention layers as Diffusers did before version 0.15."""
    return {_replaced(key, OLD_ATTENTION) if ".attentions." in key else key: t for key, t in diffusers.items()}


def ldm_vae(diffusers: StateDict, *, reverse: bool = True) -> StateDict:
    """Respell an autoencoder in the names of latent-diffusion; unless levels are reversed it is a trap."""
    out: StateDict = {}
    last = max(int(key.split(".")[2]) for key in diffusers if key.startswith("decoder.up_blocks."))
    for key, tensor in diffusers.items():
        name = _respell(key, VAE_TO_LDM).replace("conv_shortcut", "nin_shortcut")
        if (up := re.match(r"decoder\.up\.(\d)", name)) and reverse:
            name = f"decoder.up.{last - int(up[1])}{name[len('decoder.up.0') :]}"
        out[name] = tensor[:, :, None, None] if ".attn_1." in name and tensor.ndim == 2 else tensor
    return out


def original_clip(network: nn.Module) -> StateDict:
    """Return the text tower with an image tower beside it, as the published file has it."""
    image = {f"visual.transformer.resblocks.{i}.attn.in_proj_weight": torch.randn(6, 2) for i in range(2)}
    rest = {
        "logit_scale": torch.tensor(4.6),
        "text_projection": torch.randn(4, 4),
        "visual.conv1.weight": torch.ones(3),
    }
    return spelt(network, bert_clip.FAMILY) | image | rest


def original_mt5(network: nn.Module) -> StateDict:
    """Return the encoder with a decoder, a head and the embedding under four names, as the published file has it."""
    encoder = spelt(network, mt5.FAMILY)
    decoder = {key.replace("encoder.", "decoder.", 1): t.flip(0) for key, t in encoder.items() if "block" in key}
    cross = {"decoder.block.0.layer.1.EncDecAttention.q.weight": torch.randn(4, 4)}
    names = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    return encoder | decoder | cross | dict.fromkeys(names, encoder["shared.weight"])


def comfyui(dit: nn.Module, clip: nn.Module, t5: nn.Module, vae: nn.Module) -> StateDict:
    """Return four networks and a vocabulary in one dict, as ComfyUI saves them."""
    vocabulary = torch.frombuffer(bytearray(b"sentencepiece model"), dtype=torch.uint8)
    return {
        **under("model.diffusion_model.", original_dit(dit)),
        **under("vae.", ldm_vae(diffusers_vae(vae))),
        **under("text_encoders.hydit_clip.transformer.", spelt(clip, bert_clip.FAMILY)),
        **under("text_encoders.mt5xl.transformer.", spelt(t5, mt5.FAMILY)),
        "text_encoders.mt5xl.spiece_model": vocabulary,
        "text_encoders.mt5xl.logit_scale": torch.tensor(4.6),
        "text_encoders.hydit_clip.logit_scale": torch.tensor(4.6),
    }


def under(prefix: str, state: StateDict) -> StateDict:
    return {prefix + key: tensor for key, tensor in state.items()}


def saved_as(state: StateDict, dtype: torch.dtype) -> StateDict:
    """Return the tensors in a dtype, each dense and in memory of its own."""
    return {key: (t.to(dtype) if t.is_floating_point() else t).contiguous().clone() for key, t in state.items()}


FAMILIES: tuple[ModelFamily, ...] = (hunyuan_dit.FAMILY, bert_clip.FAMILY, mt5.FAMILY, autoencoder_kl.FAMILY)


def assert_same_weights(found: nn.Module, expected: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Compare two networks bit for bit; the second is converted first if a dtype is named."""
    wanted, have = expected.state_dict(), found.state_dict()
    assert have.keys() == wanted.keys()
    for key, tensor in wanted.items():
        converted: Tensor = tensor if dtype is None else tensor.to(dtype)
        assert have[key].dtype == converted.dtype, key
        assert torch.equal(have[key], converted), key


def _respell(key: str, table: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in table:
        if re.match(pattern + r"(\.|$|(?<=\.))", key):
            return re.sub("^" + pattern, replacement, key, count=1)
    return key


def _replaced(text: str, table: dict[str, str]) -> str:
    for old, new in table.items():
        text = text.replace(old, new)
    return text

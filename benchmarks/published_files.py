"""Write HunyuanDiT with random weights as it is published: keys, shapes, dtypes and containers, also what stays unread.

    python -m benchmarks.published_files FOLDER SIZE

Weights have a spread of one over the square root of what they add up, so that signals neither die nor overflow
through the released depth; norms are near one, but no two alike, so that swapped layers show.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measure import memory_mb
from benchmarks.sizes import SIZES, Sizes
from diffsynth.core.family import ModelFamily
from diffsynth.models import autoencoder_kl, bert_clip, hunyuan_dit, mt5
from diffsynth.models.mt5.config import MT5Config
from diffsynth.types import StateDict
from examples.random_models import write_sentencepiece, write_wordpiece

Shapes = dict[str, tuple[int, ...]]

CLIP = "clip_text_encoder/pytorch_model.bin"
T5 = "mt5/pytorch_model.bin"
DIT = "model/pytorch_model_ema.pt"
VAE = "sdxl-vae-fp16-fix/diffusion_pytorch_model.bin"
DTYPES = {CLIP: torch.float32, T5: torch.float16, DIT: torch.float16, VAE: torch.float32}
EMBEDDINGS = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")  # the same memory as shared.weight
PIECE = 2**24


def shapes(sizes: Sizes) -> dict[str, Shapes]:
    """Return file → key → shape, for the four published files."""
    parts: tuple[tuple[str, ModelFamily, object], ...] = (
        (CLIP, bert_clip.FAMILY, sizes.clip),
        (T5, mt5.FAMILY, sizes.t5),
        (DIT, hunyuan_dit.FAMILY, sizes.dit),
        (VAE, autoencoder_kl.FAMILY, sizes.vae),
    )
    found: dict[str, Shapes] = {}
    for name, family, config in parts:
        layout = family.layouts[0]
        header = family.header(config, layout)
        found[name] = {layout.prefix + key: spec.shape for key, spec in header.items()}
    found[CLIP] |= image_tower(sizes.tower_width, sizes.tower_layers, sizes.clip.hidden_size)
    found[T5] |= t5_decoder(sizes.t5)
    return found


def image_tower(width: int, layers: int, text_width: int) -> Shapes:
    """Return what lies beside the text tower: a ViT/14 for pictures of 224 pixels, and two projections."""
    vector, tower = (width,), "visual.transformer.resblocks"
    found: Shapes = {
        "logit_scale": (),
        "text_projection": (text_width, text_width),
        "visual.class_embedding": vector,
        "visual.positional_embedding": (257, width),
        "visual.proj": (width, text_width),
        "visual.conv1.weight": (width, 3, 14, 14),
    }
    for norm in ("ln_pre", "ln_post"):
        found |= {f"visual.{norm}.weight": vector, f"visual.{norm}.bias": vector}
    linears = {"attn.in_proj_": (3, 1), "attn.out_proj.": (1, 1), "mlp.c_fc.": (4, 1), "mlp.c_proj.": (1, 4)}
    for layer in range(layers):
        for norm in ("ln_1", "ln_2"):
            found |= {f"{tower}.{layer}.{norm}.weight": vector, f"{tower}.{layer}.{norm}.bias": vector}
        for name, (out, into) in linears.items():
            found[f"{tower}.{layer}.{name}weight"] = (out * width, into * width)
            found[f"{tower}.{layer}.{name}bias"] = (out * width,)
    return found


def t5_decoder(config: MT5Config) -> Shapes:
    """Return what lies beside the mT5 encoder: the decoder, the output head, the embedding under two more names."""
    model, inner, table = config.d_model, config.num_heads * config.d_kv, (config.vocab_size, config.d_model)
    found: Shapes = dict.fromkeys((*EMBEDDINGS, "lm_head.weight"), table)
    found["decoder.final_layer_norm.weight"] = (model,)
    found["decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = (config.buckets, config.num_heads)
    for block in range(config.num_layers):
        start = f"decoder.block.{block}.layer"
        for layer, attention in enumerate(("SelfAttention", "EncDecAttention")):
            found |= {f"{start}.{layer}.{attention}.{name}.weight": (inner, model) for name in "qkv"}
            found[f"{start}.{layer}.{attention}.o.weight"] = (model, inner)
        found |= {f"{start}.2.DenseReluDense.{name}.weight": (config.d_ff, model) for name in ("wi_0", "wi_1")}
        found[f"{start}.2.DenseReluDense.wo.weight"] = (model, config.d_ff)
        found |= {f"{start}.{layer}.layer_norm.weight": (model,) for layer in range(3)}
    return found


def random_tensor(key: str, shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Return random values that a layer of this name may have; made in pieces, so that little is held twice."""
    mean, spread = 0.0, 0.1
    if len(shape) > 1:
        spread = max(1, torch.Size(shape[1:]).numel()) ** -0.5
        if "Attention.q." in key:  # T5 does not divide by the root of the head's size; its weights do
            spread /= 8
    elif key.endswith("weight") or not shape:
        mean, spread = 1.0, 0.2
    values = torch.empty(shape, dtype=dtype)
    for piece in torch.split(values.view(-1), PIECE):
        piece.copy_(torch.randn(len(piece), generator=generator).mul_(spread).add_(mean))
    return values


def random_state(keys: Mapping[str, tuple[int, ...]], dtype: torch.dtype, seed: int) -> StateDict:
    """Return random values for every key; what the published file holds once under several names is one tensor."""
    generator = torch.Generator().manual_seed(seed)
    own = [key for key in keys if key not in EMBEDDINGS]
    state = {key: random_tensor(key, keys[key], dtype, generator) for key in own}
    state |= {key: state["shared.weight"] for key in keys if key in EMBEDDINGS}
    return {key: state[key] for key in keys}


def write_published(folder: Path, sizes: Sizes) -> list[Path]:
    """Write the four files under ``folder/t2i``, one after the other, and return them in the order of loading."""
    written: list[Path] = []
    for seed, (name, keys) in enumerate(shapes(sizes).items()):
        path = folder / "t2i" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(random_state(keys, DTYPES[name], seed), path)
        written.append(path)
    return written


def write_vocabularies(folder: Path, size: int, released: Path | None) -> None:
    """Put the two vocabularies under ``folder/t2i``.

    Args:
        folder: has or gets ``t2i``.
        size: lines of vocab.txt; a made one is filled up with words nobody writes.
        released: a ``t2i`` folder with the published vocabularies, or None to make small ones.
    """
    words, pieces = folder / "t2i" / "tokenizer" / "vocab.txt", folder / "t2i" / "mt5" / "spiece.model"
    for path in (words, pieces):
        path.parent.mkdir(parents=True, exist_ok=True)
    if released is not None:
        for path in (words, pieces):
            shutil.copyfile(released / path.relative_to(folder / "t2i"), path)
        return
    count = write_wordpiece(words)
    with words.open("a", encoding="utf-8") as file:
        file.writelines(f"[unused{number}]\n" for number in range(size - count))
    write_sentencepiece(pieces)


if __name__ == "__main__":
    files = write_published(Path(sys.argv[1]), SIZES[sys.argv[2]])
    mb = sum(path.stat().st_size for path in files) / 1e6
    print(json.dumps({"files": [str(path) for path in files], "mb": mb, "peak_mb": memory_mb("VmHWM")}))

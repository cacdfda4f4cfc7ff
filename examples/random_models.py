"""Write a small HunyuanDiT with random weights, file for file as the real one is published.

It draws noise, in a second on a CPU: good for trying the road that the 14 GB model takes.

    python examples/random_models.py FOLDER
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from sentencepiece import SentencePieceTrainer
from torch import nn

from diffsynth.core.saving import to_layout
from diffsynth.models import autoencoder_kl, bert_clip, hunyuan_dit, mt5
from diffsynth.models.hunyuan_dit.control import HunyuanDiTControlNet

CORPUS = (
    "一只獾轻轻嗅着一朵黄色玫瑰",
    "一只熊猫，蓝色背景",
    "a badger gently sniffing a yellow rose",
    "a panda on blue",
)


def write_models(
    folder: Path,
    *,
    size_conditioning: bool = False,
    seed: int = 0,
    text_len: int = 77,
    t5_len: int = 256,
    controlnets: Sequence[str] = (),
) -> list[Path]:
    """Write the four files of a small random HunyuanDiT and its vocabularies, and control networks if need be.

    Args:
        folder: gets ``t2i/``.
        size_conditioning: as versions 1.0 and 1.1 have it, else version 1.2.
        seed: of the random weights.
        text_len: tokens of the CLIP text encoder.
        t5_len: tokens of the mT5 encoder.
        controlnets: what control networks are for, such as "canny".

    Returns:
        The weight files, in the order that ``ModelManager.load_models`` wants them.
    """
    root = folder / "t2i"
    for name in (
        "clip_text_encoder",
        "mt5",
        "model",
        "sdxl-vae-fp16-fix",
        "tokenizer",
        *(["controlnet"] if controlnets else ()),
    ):
        (root / name).mkdir(parents=True, exist_ok=True)
    words = write_wordpiece(root / "tokenizer" / "vocab.txt")
    pieces = write_sentencepiece(root / "mt5" / "spiece.model")

    torch.manual_seed(seed)
    clip = replace(bert_clip.FAMILY.tiny(), vocab_size=words, max_positions=max(80, text_len))
    t5 = replace(mt5.FAMILY.tiny(), vocab_size=pieces)
    dit = replace(
        hunyuan_dit.FAMILY.tiny(),
        text_dim=clip.hidden_size,
        text_len=text_len,
        t5_dim=t5.d_model,
        t5_len=t5_len,
        size_conditioning=size_conditioning,
    )
    parts = (
        (bert_clip.FAMILY, clip, "clip_text_encoder/pytorch_model.bin"),
        (mt5.FAMILY, t5, "mt5/pytorch_model.bin"),
        (hunyuan_dit.FAMILY, dit, "model/pytorch_model_ema.pt"),
        (autoencoder_kl.FAMILY, autoencoder_kl.FAMILY.tiny(), "sdxl-vae-fp16-fix/diffusion_pytorch_model.bin"),
        *((hunyuan_dit.CONTROLNET_FAMILY, dit, f"controlnet/pytorch_model_{name}_distill.pt") for name in controlnets),
    )
    for family, config, name in parts:
        module: nn.Module = family.build(config)
        state = to_layout(module, family.layouts[0], config)
        if isinstance(module, HunyuanDiTControlNet):
            for layer in (module.hint_proj, *module.outputs):
                nn.init.normal_(layer.weight, std=0.1)  # they begin at zero
            state = to_layout(module, family.layouts[0], config)
        if family is bert_clip.FAMILY:  # the published file holds more than the text tower
            state |= {"logit_scale": torch.zeros(()), "visual.proj": torch.zeros(3, 5)}
        if family is mt5.FAMILY:
            state |= {"encoder.embed_tokens.weight": state["shared.weight"], "lm_head.weight": torch.zeros(3, 5)}
        torch.save(state, root / name)
    return [root / name for _, _, name in parts]


def write_wordpiece(path: Path) -> int:
    """Write a small BERT vocabulary and return its number of tokens."""
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    characters = sorted({char for line in CORPUS for char in line if ord(char) > 126})
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{char}" for char in letters), *characters]
    path.write_text("\n".join(tokens) + "\n", "utf-8")
    return len(tokens)


def write_sentencepiece(path: Path) -> int:
    """Write a small sentencepiece model and return its number of pieces."""
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        vocab_size=340,
        hard_vocab_limit=False,
        byte_fallback=True,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
    from sentencepiece import SentencePieceProcessor

    return int(SentencePieceProcessor(model_proto=model.getvalue()).get_piece_size())


if __name__ == "__main__":
    for written in write_models(Path(sys.argv[1])):
        print(written)

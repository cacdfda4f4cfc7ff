"""Draw the same picture from the same files with Diffusers' and transformers' classes, network by network.

    python -m benchmarks.full_size_theirs SIZE SIDE PROMPT SEED RESULT

The working directory must hold ``models/HunyuanDiT``. Nothing of ``diffsynth`` computes here; its default
conventions are written out once more: DDIM in velocity form from timestep 999 to 0, both guidance passes alone,
the picture's size twice as size condition, 1e-5 in the decoder's last norm, 8-bit values cut off.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.full_size_ours import STEPS
from benchmarks.measure import Recorder
from benchmarks.published_files import CLIP, DIT, T5, VAE
from benchmarks.sizes import SIZES, Sizes
from benchmarks.theirs import (
    build_t5,
    build_text_encoder,
    build_transformer,
    build_vae,
    rotary_table,
    transformer_state,
)
from diffsynth.types import StateDict

FOLDER = Path("models/HunyuanDiT/t2i")
CFG_SCALE = 7.5
BETAS = (0.00085, 0.03)
LATENT_SCALE = 0.13025


def read(name: str) -> StateDict:
    """Map a published file with PyTorch's own reader."""
    found: StateDict = torch.load(FOLDER / name, map_location="cpu", mmap=True, weights_only=True)
    return found


def filled(build: Callable[[], Any], state: StateDict) -> Any:
    """Build a network without memory of its own, give it these weights, and make sure that it has all of them."""
    with torch.device("meta"):
        network: nn.Module = build()
    network.load_state_dict(state, strict=True, assign=True)
    return network


def encode(sizes: Sizes, prompt: str) -> dict[str, Tensor]:
    """Return features and masks of the empty and the real prompt, two rows each."""
    from transformers import BertTokenizer, T5Tokenizer

    def tokens(tokenizer: Any, length: int) -> tuple[Tensor, Tensor]:
        settings = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
        found = tokenizer(["", prompt], **settings)
        return found.input_ids, found.attention_mask

    state = {key.removeprefix("bert."): values for key, values in read(CLIP).items() if key.startswith("bert.")}
    bert = build_text_encoder(sizes.clip)
    bert.load_state_dict(state, strict=True)
    ids, clip_mask = tokens(BertTokenizer.from_pretrained(FOLDER / "tokenizer"), sizes.dit.text_len)
    clip = torch.cat([bert(ids[row : row + 1], clip_mask[row : row + 1])[0] for row in range(2)])

    used = {key: values for key, values in read(T5).items() if key.startswith("encoder.") or key == "shared.weight"}
    embedding = used["shared.weight"].float()
    state = {key: embedding if "embed" in key else values.float() for key, values in used.items()}
    state["shared.weight"] = state["encoder.embed_tokens.weight"] = embedding
    encoder = filled(lambda: build_t5(sizes.t5), state)
    ids, t5_mask = tokens(T5Tokenizer.from_pretrained(FOLDER / "mt5", extra_ids=0), sizes.dit.t5_len)
    t5 = torch.cat([encoder(ids[row : row + 1], t5_mask[row : row + 1])[0] for row in range(2)])
    return {"clip": clip, "clip_mask": clip_mask, "t5": t5, "t5_mask": t5_mask}


def denoise(sizes: Sizes, features: dict[str, Tensor], side: int, seed: int) -> Tensor:
    """Return the final latents."""
    config = sizes.dit
    transformer = filled(lambda: build_transformer(config), transformer_state(read(DIT), torch.float32))
    rotary = rotary_table(side // 16, side // 16, config.head_dim)
    size_condition = torch.tensor([[side, side, side, side, 0, 0]], dtype=torch.float32)

    def velocity(latents: Tensor, timestep: int, row: int) -> Tensor:
        part = {name: values[row : row + 1] for name, values in features.items()}
        (prediction,) = transformer(
            latents,
            torch.tensor([float(timestep)]),
            encoder_hidden_states=part["clip"],
            text_embedding_mask=part["clip_mask"],
            encoder_hidden_states_t5=part["t5"],
            text_embedding_mask_t5=part["t5_mask"],
            image_meta_size=size_condition,
            style=torch.zeros(1, dtype=torch.int64),
            image_rotary_emb=rotary,
            return_dict=False,
        )
        found: Tensor = torch.chunk(prediction, 2, dim=1)[0]
        return found

    roots = torch.linspace(BETAS[0] ** 0.5, BETAS[1] ** 0.5, 1000, dtype=torch.float32)
    signal = torch.cumprod(1 - roots**2, dim=0).tolist()
    timesteps = [round(999 - index * 999 / (STEPS - 1)) for index in range(STEPS)]
    latents = torch.randn((1, config.in_channels, side // 8, side // 8), generator=torch.Generator().manual_seed(seed))
    for timestep, following in pairwise([*timesteps, None]):
        assert timestep is not None
        a, b = signal[timestep], 1.0 if following is None else signal[following]
        negative, positive = (velocity(latents, timestep, row) for row in (0, 1))
        guided = negative + CFG_SCALE * (positive - negative)
        keep = (a * b) ** 0.5 + ((1 - a) * (1 - b)) ** 0.5
        latents = latents * keep + guided * ((a * (1 - b)) ** 0.5 - (b * (1 - a)) ** 0.5)
    return latents


def decode(sizes: Sizes, latents: Tensor) -> Tensor:
    """Return the picture, (H, W, 3) bytes."""
    vae = build_vae(sizes.vae)
    vae.load_state_dict(read(VAE), strict=True)
    vae.decoder.conv_norm_out.eps = 1e-5
    pixels = vae.decode(latents / LATENT_SCALE).sample[0]
    found: Tensor = ((pixels / 2 + 0.5).clamp(0, 1) * 255).to(torch.uint8).permute(1, 2, 0)
    return found


@torch.no_grad()
def run(sizes: Sizes, side: int, prompt: str, seed: int, result: Path) -> dict[str, Any]:
    """Draw, write features, latents and picture to ``result``, and return the stages."""
    recorder = Recorder()
    with recorder.stage("load text encoders and encode prompts"):
        features = encode(sizes, prompt)
    gc.collect()
    with recorder.stage("load denoiser and denoise"):
        latents = denoise(sizes, features, side, seed)
    gc.collect()
    with recorder.stage("load autoencoder and decode"):
        picture = decode(sizes, latents)
    torch.save({**features, "latents": latents, "picture": picture}, result)
    return {"stages": recorder.summary()}


if __name__ == "__main__":
    size_name, pixels, text, number, path = sys.argv[1:]
    print(json.dumps(run(SIZES[size_name], int(pixels), text, int(number), Path(path))))

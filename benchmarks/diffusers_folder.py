"""Write the networks of a release as a Diffusers folder: a safetensors file and a config for each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.components import COMPONENTS
from benchmarks.published_files import random_state
from benchmarks.sizes import Sizes
from benchmarks.theirs import build_t5, build_text_encoder, build_transformer, build_vae

FILES = {"transformers": "model.safetensors", "diffusers": "diffusion_pytorch_model.safetensors"}


def write_diffusers_folder(folder: Path, sizes: Sizes) -> list[Path]:
    """Write a folder that both Diffusers and ``diffsynth`` load, with random weights; return the weight files."""
    builders: dict[str, Callable[[], Any]] = {
        "text_encoder": lambda: build_text_encoder(sizes.clip),
        "text_encoder_2": lambda: build_t5(sizes.t5),
        "transformer": lambda: build_transformer(sizes.dit),
        "vae": lambda: build_vae(sizes.vae),
    }
    folder.mkdir(parents=True, exist_ok=True)
    index = {name: [library, kind] for name, (library, kind, _) in COMPONENTS.items()}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "HunyuanDiTPipeline", **index}, indent=2))
    written: list[Path] = []
    for seed, (name, (library, _, dtype)) in enumerate(COMPONENTS.items()):
        with torch.device("meta"):
            network = builders[name]()
        save = network.save_config if library == "diffusers" else network.config.save_pretrained
        save(folder / name)
        keys = {key: tuple(values.shape) for key, values in network.state_dict().items()}
        keys.pop("encoder.embed_tokens.weight", None)  # the same as shared.weight, and saved under that name only
        path = folder / name / FILES[library]
        save_file(random_state(keys, getattr(torch, dtype), seed), path, metadata={"format": "pt"})
        written.append(path)
    return written

"""A toy to train: coloured squares on coloured backgrounds, in both languages, and settings that take milliseconds."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from diffsynth.core.checkpoint import open_checkpoint
from diffsynth.core.saving import save_network
from diffsynth.models import autoencoder_kl
from diffsynth.models.autoencoder_kl.config import AutoencoderKLConfig
from diffsynth.training import (
    AutoencoderJob,
    DataConfig,
    DenoiserJob,
    Example,
    LoRAConfig,
    OptimizerConfig,
    RecordConfig,
    ScheduleConfig,
    TrainingConfig,
    UNetJob,
    train,
)
from diffsynth.training.denoiser import DenoiserTraining
from diffsynth.training.hunyuan_dit import HunyuanDiTEnsemble
from examples.random_models import write_sentencepiece, write_wordpiece

COLORS = {"red": "红色", "blue": "蓝色", "green": "绿色", "yellow": "黄色"}
VAE = {"channels": [32, 64], "layers_per_block": 1}
DIT = {
    "hidden_size": 48,
    "depth": 4,
    "num_heads": 3,
    "mlp_size": 96,
    "text_len": 24,
    "t5_len": 26,
    "t5_proj_size": 128,
    "extra_size": 192,
}
CLIP = {"hidden_size": 64, "num_layers": 1, "mlp_size": 72, "max_positions": 24}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 56, "num_layers": 1, "num_heads": 3, "buckets": 16}


class Squares:
    """Pictures of 32 pixels: an index fixes the colours, the random numbers the place."""

    def __init__(self, count: int = 12) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int, rng: Random) -> Example:
        names = list(COLORS)
        square, background = names[index % 4], names[(index + 1 + index // 4) % 4]
        image = Image.new("RGB", (32, 32), background)
        left, top = rng.randrange(16), rng.randrange(16)
        ImageDraw.Draw(image).rectangle((left, top, left + 15, top + 15), fill=square)
        return Example(image, (f"a {square} panda on {background}", f"{COLORS[background]}背景"))


def squares(count: int = 12) -> Squares:
    """What a config names."""
    return Squares(count)


def write_folder(folder: Path, count: int = 4) -> Path:
    """Write squares as a folder with metadata.jsonl."""
    folder.mkdir(parents=True)
    lines = []
    for index in range(count):
        example = Squares(count).__getitem__(index, Random(index))
        example.image.save(folder / f"{index}.png")
        lines.append({"file_name": f"{index}.png", "text": example.texts[0], "text_zh": example.texts[1]})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return folder


def autoencoder_config(
    run: Path, *, steps: int = 6, job: dict[str, Any] | None = None, **changes: Any
) -> TrainingConfig:
    """Settings of an autoencoder run that saves every other step."""
    data = DataConfig(source="tests.training.toy:squares", size=32, held_out=2)
    return TrainingConfig(
        **{
            "data": data,
            "autoencoder": AutoencoderJob(**{"network": VAE, "crop": 16, **(job or {})}),
            "optimizer": OptimizerConfig(learning_rate=2e-3, ema=0.9),
            "schedule": ScheduleConfig(steps=steps, batch_size=4, warmup=2),
            "record": RecordConfig(folder=str(run), checkpoint_every=2, sample_every=3, sample_count=2, plot_every=2),
            "device": "cpu",
            **changes,
        }
    )


def write_vocabularies(folder: Path) -> tuple[Path, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    write_wordpiece(folder / "vocab.txt")
    write_sentencepiece(folder / "spiece.model")
    return folder / "vocab.txt", folder / "spiece.model"


def write_vae(path: Path) -> Path:
    """Write a random autoencoder whose latents, scaled, have about unit variance."""
    config = AutoencoderKLConfig(channels=(32, 64), layers_per_block=1)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        vae = autoencoder_kl.FAMILY.build(config)
    with torch.no_grad():
        vae.quant_conv.weight *= 20  # type: ignore[union-attr, operator]
    return save_network(vae, autoencoder_kl.FAMILY, config, path, "diffusers")


def denoiser_config(
    run: Path, files: Path, *, steps: int = 6, job: dict[str, Any] | None = None, **changes: Any
) -> TrainingConfig:
    """Settings of a denoiser run over the autoencoder and the vocabularies in ``files``."""
    if not (files / "vocab.txt").is_file():
        write_vocabularies(files)
        write_vae(files / "vae.safetensors")
    settings = {
        "autoencoder": str(files / "vae.safetensors"),
        "network": DIT,
        "clip": CLIP,
        "t5": T5,
        "clip_tokenizer": str(files / "vocab.txt"),
        "t5_tokenizer": str(files / "spiece.model"),
        "sample_steps": 2,
    }
    return TrainingConfig(
        **{
            "data": DataConfig(source="tests.training.toy:squares", size=32),
            "denoiser": DenoiserJob(**{**settings, **(job or {})}),
            "optimizer": OptimizerConfig(learning_rate=1e-3, ema=0.9),
            "schedule": ScheduleConfig(steps=steps, batch_size=4, warmup=2),
            "record": RecordConfig(folder=str(run), checkpoint_every=2, sample_every=3, sample_count=2, plot_every=2),
            "device": "cpu",
            **changes,
        }
    )


def lora_config(
    run: Path,
    files: Path,
    *,
    steps: int = 6,
    job: dict[str, Any] | None = None,
    lora: LoRAConfig | None = None,
    **changes: Any,
) -> TrainingConfig:
    """Settings of a LoRA's run over a denoiser in ``files``, which is made if need be: new, but trained for a step."""
    base = files / "base" / "final"
    if not base.is_dir():
        train(denoiser_config(files / "base", files, steps=1, optimizer=OptimizerConfig(learning_rate=0.05, ema=0)))
    settings = {
        "network": str(base / "model" / "pytorch_model_ema.safetensors"),
        "clip": str(base / "clip_text_encoder" / "pytorch_model.safetensors"),
        "t5": str(base / "mt5" / "pytorch_model.safetensors"),
        "clip_tokenizer": "",
        "t5_tokenizer": "",
        "train_text_encoders": False,
    }
    return denoiser_config(
        run, files, steps=steps, job={**settings, **(job or {})}, lora=lora or LoRAConfig(rank=3, alpha=6), **changes
    )


def unet_config(
    run: Path,
    file: Path,
    *,
    steps: int = 6,
    job: dict[str, Any] | None = None,
    lora: LoRAConfig | None = None,
    **changes: Any,
) -> TrainingConfig:
    """Settings of a LoRA's run over Stable Diffusion or SDXL."""
    return TrainingConfig(
        **{
            "data": DataConfig(source="tests.training.toy:squares", size=32),
            "unet": UNetJob(**{"files": (str(file),), "sample_steps": 2, **(job or {})}),
            "lora": lora or LoRAConfig(rank=3, alpha=6),
            "optimizer": OptimizerConfig(learning_rate=1e-2, ema=0.9),
            "schedule": ScheduleConfig(steps=steps, batch_size=4, warmup=2),
            "record": RecordConfig(folder=str(run), checkpoint_every=2, sample_every=3, sample_count=2, plot_every=2),
            "device": "cpu",
            **changes,
        }
    )


def networks_of(job: DenoiserTraining) -> HunyuanDiTEnsemble:
    """Return the networks of a HunyuanDiT run."""
    assert isinstance(job.ensemble, HunyuanDiTEnsemble)
    return job.ensemble


def tensors(path: Path) -> dict[str, Tensor]:
    """Return all tensors of a file."""
    opened = open_checkpoint(path, mmap=False)
    return {key: opened[key] for key in opened.header}


def differing(first: Path, second: Path) -> list[str]:
    """Return the names of tensors that are not the same, bit for bit, in two files."""
    one, other = tensors(first), tensors(second)
    return [key for key in one.keys() | other.keys() if key not in one or not torch.equal(one[key], other[key])]

"""A small random HunyuanDiT on disk, lively enough that every setting shows in its images."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from diffsynth import HunyuanDiTImagePipeline, ModelManager
from diffsynth.core.saving import to_layout
from diffsynth.models import bert_clip, hunyuan_dit, mt5
from diffsynth.models.hunyuan_dit.config import HunyuanDiTConfig
from diffsynth.pipelines.denoise import StepReport
from diffsynth.pipelines.hunyuan_dit.request import HunyuanDiTRequest
from diffsynth.pipelines.monitor import Monitor
from examples.random_models import write_models

PROMPT = "一只熊猫，蓝色背景"
OTHER_PROMPT = "a badger gently sniffing a yellow rose"
AS_THEY_ARE = ("padding", "positional", "embed", "shared", "relative")  # tables, drawn by their own modules
CONTRAST = 0.8  # of the decoder's last layer, so that images fill most of the range of colours


def write_toy(folder: Path, *, text_len: int = 77, t5_len: int = 256, **changes: Any) -> list[Path]:
    """Write weight files in which no parameter is a constant, norms included, so that a swap shows.

    Args:
        folder: gets ``t2i/``.
        text_len: tokens of the CLIP text encoder.
        t5_len: tokens of the mT5 encoder.
        **changes: of the denoiser's config.

    Returns:
        The weight files.
    """
    paths = write_models(folder, text_len=text_len, t5_len=t5_len)
    dit = folder / "t2i" / "model" / "pytorch_model_ema.pt"
    config = dit_config(text_len=text_len, t5_len=t5_len, **changes)
    torch.save(to_layout(hunyuan_dit.FAMILY.build(config), hunyuan_dit.FAMILY.layout("original"), config), dit)
    generator = torch.Generator().manual_seed(1)
    for path in paths:
        state = torch.load(path, weights_only=True)
        torch.save({key: _lively(key, value, generator) for key, value in state.items()}, path)
    return paths


def write_control(path: Path, *, seed: int = 5, text_len: int = 77, t5_len: int = 256, **changes: Any) -> Path:
    """Write a control network for the toy denoiser as some published files wrap it, all of it lively.

    Args:
        path: the file.
        seed: of its weights.
        text_len: tokens of the CLIP text encoder.
        t5_len: tokens of the mT5 encoder.
        **changes: of the denoiser's config.
    """
    family, config = hunyuan_dit.CONTROLNET_FAMILY, dit_config(text_len=text_len, t5_len=t5_len, **changes)
    generator = torch.Generator().manual_seed(seed)
    state = to_layout(family.build(config), family.layout("original"), config)
    torch.save({"module": {key: _lively(key, value, generator) for key, value in state.items()}}, path)
    return path


def dit_config(**changes: Any) -> HunyuanDiTConfig:
    """Return the toy denoiser's sizes; the two hidden widths are those that Diffusers derives from others."""
    sizes = hunyuan_dit.FAMILY.tiny()
    text_dim, t5_dim = bert_clip.FAMILY.tiny().hidden_size, mt5.FAMILY.tiny().d_model
    config: HunyuanDiTConfig = replace(
        sizes,
        **{
            "text_dim": text_dim,
            "t5_dim": t5_dim,
            "t5_proj_size": 4 * t5_dim,
            "extra_size": 4 * sizes.hidden_size,
            **changes,
        },
    )
    return config


def _lively(key: str, value: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(value.shape, generator=generator)
    fan_in = value[0].numel() if value.ndim > 1 else 1
    if value.ndim < 2:
        return (1.0 if "norm" in key.lower() and key.endswith("weight") else 0.0) + 0.2 * noise
    if any(word in key for word in AS_THEY_ARE):
        return value
    gain = CONTRAST if "decoder.conv_out" in key else 1.0
    return noise * (gain / math.sqrt(fan_in))


def load_toy(
    paths: list[Path], conventions: str = "diffsynth", dtype: torch.dtype | None = torch.float32
) -> HunyuanDiTImagePipeline:
    """Load weight files into a pipeline of their own."""
    manager = ModelManager(torch_dtype=dtype, device="cpu")
    manager.load_models(paths)
    return HunyuanDiTImagePipeline.from_model_manager(manager, conventions)


def draw_ours(pipe: HunyuanDiTImagePipeline, prompt: str | list[str], **settings: Any) -> tuple[Any, Tensor]:
    """Return the images and the clean latents that the last step left."""
    reports: list[StepReport] = []
    images = pipe(prompt, callback=reports.append, **{"batch_size": 4, **settings})
    return images, reports[-1].latents


def assert_same_latents(found: Tensor, expected: Tensor) -> None:
    """Fail if latents differ by more than the last digits of float32 over a few steps."""
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def quiet() -> Monitor:
    """Return a monitor that shows nothing."""
    return Monitor(lambda timesteps: timesteps)


def request(prompt: str = PROMPT, **settings: object) -> HunyuanDiTRequest:
    """Return a request of a small image with few steps."""
    small = {"height": 64, "width": 96, "num_inference_steps": 2, "seed": 7}
    return HunyuanDiTRequest.from_settings({"prompt": prompt, **small, **settings})


def values(image: Image.Image) -> NDArray[np.int16]:
    """Return an image's 8-bit values, (H, W, 3), in a type that can be subtracted."""
    return np.asarray(image, dtype=np.int16)


def largest_difference(first: Image.Image, second: Image.Image) -> int:
    """Return the largest difference of two images of one size, in 1/255."""
    return int(np.abs(values(first) - values(second)).max())

"""Small random releases of Stable Diffusion and SDXL, in memory and on disk, lively enough that settings show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffsynth import ModelManager, SDImagePipeline, SDXLImagePipeline
from diffsynth.pipelines.denoise import StepReport
from examples.random_stable_diffusion import write_single_file

Pipeline = SDImagePipeline | SDXLImagePipeline

PROMPT = "a photo of a cat"
OTHER = "hot cats and an octane badger!!! wow"
SMALL: dict[str, Any] = {"height": 64, "width": 96, "num_inference_steps": 3, "seed": 3}


def write_release(folder: Path, name: str, **beside: Tensor) -> Path:
    """Write a release as one file in which no parameter is a constant; ``beside`` are further keys."""
    path = write_single_file(folder, name)
    generator = torch.Generator().manual_seed(1)
    state = {key: _lively(key, value, generator) for key, value in load_file(path).items()}
    save_file({**state, **beside}, path)
    return path


def _lively(key: str, value: Tensor, generator: torch.Generator) -> Tensor:
    if not value.is_floating_point() or "logit_scale" in key:
        return value
    noise = torch.randn(value.shape, generator=generator)
    if value.ndim < 2:
        return (1.0 if key.endswith("weight") else 0.0) + 0.1 * noise
    if "embedding" in key:
        return 0.5 * noise
    return noise / math.sqrt(value[0].numel())


def load(paths: Sequence[Path], kind: type[Any], conventions: str = "diffusers", **which: Any) -> Any:
    """Return a pipeline in float32 of a manager of its own."""
    manager = ModelManager(torch_dtype=torch.float32, device="cpu")
    manager.load_models(list(paths))
    return kind.from_model_manager(manager, conventions, **which)


def draw(pipe: Pipeline, prompt: str | list[str], **settings: Any) -> tuple[Any, Tensor]:
    """Return the images and the clean latents that the last step left."""
    reports: list[StepReport] = []
    images = pipe(prompt, callback=reports.append, **{"batch_size": 4, **SMALL, **settings})
    return images, reports[-1].latents


def assert_same(found: Tensor, expected: Tensor, *, tolerance: float = 1e-4) -> None:
    """Fail if latents differ by more than the tolerance.

    Noise at the noisiest level is 14.6 times as large as the data, and an untrained network that predicts epsilon
    takes none of it away. Latents then end at 50 and more, where neighbouring float32 numbers are 4e-6 apart, so
    that a tenth of the tolerance times the largest value is allowed there. The same samplers are held to the
    tolerance itself with velocity predictions.
    """
    assert found.shape == expected.shape
    assert found.std() > 0.05
    largest = float(expected.abs().max())
    assert float((found - expected).abs().max()) < (tolerance if largest < 32 else tolerance / 10 * largest)

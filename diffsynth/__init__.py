"""diffsynth: checkpoint files in, images out.

The public names are imported when they are first used, so that ``import diffsynth`` is quick.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffsynth.batch.why import compare_images
    from diffsynth.converting import convert_lora
    from diffsynth.core.checkpoint import open_checkpoint
    from diffsynth.errors import DiffSynthError
    from diffsynth.hub.download import download_model, download_models
    from diffsynth.manager import ModelManager
    from diffsynth.merging import merge_models
    from diffsynth.pipelines.hunyuan_dit.pipeline import HunyuanDiTImagePipeline
    from diffsynth.pipelines.latent_file import open_latents, save_latents
    from diffsynth.pipelines.recipe import save_image
    from diffsynth.pipelines.sd.pipeline import SDImagePipeline
    from diffsynth.pipelines.sdxl.pipeline import SDXLImagePipeline

__version__ = "0.1.0"

__all__ = [
    "DiffSynthError",
    "HunyuanDiTImagePipeline",
    "ModelManager",
    "SDImagePipeline",
    "SDXLImagePipeline",
    "__version__",
    "compare_images",
    "convert_lora",
    "download_model",
    "download_models",
    "merge_models",
    "open_checkpoint",
    "open_latents",
    "save_image",
    "save_latents",
]

_HOMES = {
    "DiffSynthError": "diffsynth.errors",
    "HunyuanDiTImagePipeline": "diffsynth.pipelines.hunyuan_dit.pipeline",
    "ModelManager": "diffsynth.manager",
    "SDImagePipeline": "diffsynth.pipelines.sd.pipeline",
    "SDXLImagePipeline": "diffsynth.pipelines.sdxl.pipeline",
    "convert_lora": "diffsynth.converting",
    "compare_images": "diffsynth.batch.why",
    "download_model": "diffsynth.hub.download",
    "download_models": "diffsynth.hub.download",
    "merge_models": "diffsynth.merging",
    "open_checkpoint": "diffsynth.core.checkpoint",
    "open_latents": "diffsynth.pipelines.latent_file",
    "save_image": "diffsynth.pipelines.recipe",
    "save_latents": "diffsynth.pipelines.latent_file",
}


def __getattr__(name: str) -> Any:
    """Import a public name, or a folder of the package, on first use (PEP 562)."""
    if not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""``diffsynth env``: versions, devices and settings, for a bug report."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer

from diffsynth.cli.options import Debug

PACKAGES = (
    "diffsynth",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "sentencepiece",
    "huggingface_hub",
    "modelscope",
    "modelscope-hub",
    "pillow",
    "numpy",
)
VARIABLES = ("DIFFSYNTH_CACHE", "XDG_CACHE_HOME", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "PYTORCH_ALLOC_CONF")


def env(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Show versions, devices and settings."""
    facts = _facts()
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    for group, values in facts.items():
        print(group)
        for name, value in values.items():
            print(f"  {name:<26} {value}")


def _facts() -> dict[str, dict[str, Any]]:
    import torch

    from diffsynth.core.digest import record_path
    from diffsynth.core.placement import best_device
    from diffsynth.hub.settings import described

    device = best_device()
    machine: dict[str, Any] = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "device": str(device),
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        machine |= {"device name": properties.name, "device memory": f"{properties.total_memory / 1e9:.1f} GB"}
    return {
        "packages": {name: _version(name) for name in PACKAGES},
        "machine": machine,
        "settings": {name: os.environ.get(name, "(not set)") for name in VARIABLES},
        "downloads": {name: f"{value} ({origin})" for name, value, origin in described()},
        "files": {"remembered hashes": str(record_path())},
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "(not installed)"

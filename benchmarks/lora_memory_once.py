"""Attach a LoRA in this process and measure how its anonymous memory grows; for ``benchmarks.lora_memory``.

    python -m benchmarks.lora_memory_once DENOISER FIRST LORA

FIRST is a small LoRA that is attached and taken off before, so that what is imported on first use does not count.
The last line of output is JSON.
"""

from __future__ import annotations

import gc
import json
import sys
from typing import Any

import torch

from benchmarks.measure import memory_mb
from diffsynth.manager import ModelManager


def anonymous_mb() -> float:
    """Return the anonymous memory after what nobody holds is gone."""
    gc.collect()
    return memory_mb("RssAnon")


def run(denoiser: str, first: str, lora: str) -> dict[str, Any]:
    """Load, attach and take off; return bytes and growth in MB."""
    manager = ModelManager(torch_dtype=torch.float16, device="cpu", file_path_list=[denoiser])
    (entry,) = manager
    manager.load_lora(first).detach()
    before = anonymous_mb()
    attached = manager.load_lora(lora)
    during, own = anonymous_mb(), attached.nbytes
    layers = sum(attached.layers.values())
    attached.detach()
    return {
        "denoiser_mb": entry.nbytes / 1e6,
        "mapped": entry.mapped,
        "layers": layers,
        "lora_mb": own / 1e6,
        "attached_mb": during - before,
        "detached_mb": anonymous_mb() - before,
    }


if __name__ == "__main__":
    print(json.dumps(run(*sys.argv[1:])))

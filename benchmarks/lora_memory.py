"""What attaching a LoRA to the HunyuanDiT denoiser costs in memory, against the bytes of its matrices.

    python -m benchmarks.lora_memory

The denoiser has random weights in float16 and is mapped from its file; the LoRA changes the layers that the published
ones do. What grows is the anonymous memory of a fresh process, that which no file backs.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import (
    available_memory_mb,
    describe_environment,
    environment,
    run_fresh,
    table,
    write_json,
)
from benchmarks.published_files import random_tensor
from benchmarks.sizes import SIZES
from diffsynth.core.saving import save_tensors
from diffsynth.lora.pieces import Piece
from diffsynth.lora.writing import NetworkChanges, save_lora
from diffsynth.models.hunyuan_dit import FAMILY
from diffsynth.models.hunyuan_dit.config import HunyuanDiTConfig
from diffsynth.types import TensorSpec

LAYERS = ("self_attn.qkv", "self_attn.out", "cross_attn.q", "cross_attn.kv", "cross_attn.out", "pooler.q")
NEEDED = {"tiny": (1e8, 0.0), "small": (1e9, 1e9), "full": (4e9, 8e9)}  # bytes of disk and of memory
SLACK_MB = 4.0  # what Python and the allocator may need beside the matrices
DTYPE = torch.float16
ROWS = {
    "denoiser_mb": "weights of the denoiser",
    "lora_mb": "matrices of the LoRA",
    "attached_mb": "growth when it is attached",
    "detached_mb": "what of that stays when it is taken off",
}


def write_denoiser(path: Path, config: HunyuanDiTConfig) -> Path:
    """Write a denoiser of random weights, one tensor at a time."""
    layout = FAMILY.layout("original")
    shapes = {key: spec.shape for key, spec in FAMILY.header(config, layout).items()}
    generator = torch.Generator().manual_seed(0)

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for key, shape in shapes.items():
            yield key, random_tensor(key, shape, DTYPE, generator)

    return save_tensors(path, {key: TensorSpec(shape, DTYPE) for key, shape in shapes.items()}, tensors())


def write_lora(path: Path, config: HunyuanDiTConfig, rank: int, *, layers: int | None = None) -> Path:
    """Write a random LoRA on the layers that the published ones change, or on the first few of them."""
    weights = FAMILY.build_on_meta(config).state_dict()
    changed = [key for key in weights if key.removesuffix(".weight").endswith(LAYERS) and key.endswith(".weight")]
    pieces = {
        key: [
            Piece(0, torch.randn(len(weights[key]), rank).to(DTYPE), torch.randn(rank, weights[key].shape[1]).to(DTYPE))
        ]
        for key in changed[:layers]
    }
    return save_lora(path, [NetworkChanges(FAMILY, config, pieces)], "peft")


def measure(size: str, rank: int, folder: Path) -> dict[str, Any]:
    """Write the files and return what a fresh process measured."""
    config = SIZES[size].dit
    denoiser = write_denoiser(folder / "denoiser.safetensors", config)
    first = write_lora(folder / "first", config, 1, layers=1)
    lora = write_lora(folder / "lora", config, rank)
    return run_fresh("benchmarks.lora_memory_once", *map(str, (denoiser, first, lora)))


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Read the command line, run, print and return the result.

    Raises:
        SystemExit: it cost more than its size.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.lora_memory", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--size", choices=SIZES, default="full", help="of the denoiser (default: full)")
    parser.add_argument("--rank", type=int, default=64, help="of the LoRA (default: 64)")
    parser.add_argument("--folder", type=Path, help="where to write the files (default: a temporary folder)")
    parser.add_argument("--json", type=Path, help="where to keep the result")
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        disk, memory = NEEDED[options.size]
        if shutil.disk_usage(folder).free < disk or 1e6 * available_memory_mb() < memory:
            print(f"skipped: {disk / 1e9:.0f} GB of disk and {memory / 1e9:.0f} GB of memory are needed")
            return {}
        found = measure(options.size, options.rank, folder)
    finally:
        shutil.rmtree(folder)
    report = {"size": options.size, "rank": options.rank, "environment": environment(), **found}
    print(describe_environment(report["environment"]))
    kept = "mapped from its file" if found["mapped"] else "in memory"
    print(
        f"size {options.size}, rank {options.rank}, {found['layers']} layers; the denoiser {kept}; MB of 10^6 bytes\n"
    )
    print(table([["what", "MB"], *([text, f"{found[name]:.2f}"] for name, text in ROWS.items())]))
    if options.json:
        write_json(options.json, report)
        print(f"\nkept in {options.json}")
    if found["attached_mb"] > found["lora_mb"] + SLACK_MB:
        raise SystemExit(f"failed: {found['lora_mb']:.1f} MB of LoRA took {found['attached_mb']:.1f} MB of memory")
    return report


if __name__ == "__main__":
    main(sys.argv[1:])

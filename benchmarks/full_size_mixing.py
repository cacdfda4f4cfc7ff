"""Load SDXL beside HunyuanDiT, both as large as published, with one autoencoder, and take a step.

    python -m benchmarks.full_size_mixing [--folder FOLDER] [--keep]

Writes HunyuanDiT's four files and SDXL's single file with random weights (22 GB), loads them into one manager in a
fresh process and draws one step with SDXL. HunyuanDiT stays in the float16 of its files, which are mapped; SDXL's own
networks are converted to float32, in which a CPU computes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.full_size import lacking_room, stage_table
from benchmarks.measure import Recorder, describe_environment, environment, run_fresh, write_json
from benchmarks.published_files import CLIP, DIT, T5, VAE, random_state, write_published, write_vocabularies
from benchmarks.sizes import SIZES
from diffsynth.models import clip, unet
from diffsynth.models.autoencoder_kl.config import AutoencoderKLConfig
from diffsynth.models.clip.config import ClipTextConfig
from diffsynth.models.unet.config import UNetConfig
from diffsynth.types import StateDict
from examples import random_stable_diffusion as small
from examples.random_stable_diffusion import Part, more_merges, write_tokenizer

NEEDED_DISK = 24e9
NEEDED_MEMORY_MB = 18_500
RESULT = "full_size_mixing.json"
FILE = "sd_xl_base_1.0.safetensors"


def sdxl(size: str) -> tuple[Part, ...]:
    """Return the networks of SDXL's single file, in the published structure."""
    configs: dict[str, Any] = {part.prefix: part.config for part in small.RELEASES["sdxl"]}
    if size == "full":
        full = (UNetConfig.sdxl(), AutoencoderKLConfig(), ClipTextConfig(), ClipTextConfig.big_g())
        configs = dict(zip(configs, full, strict=True))
    return tuple(replace(part, config=configs[part.prefix]) for part in small.RELEASES["sdxl"])


def write_sdxl(folder: Path, size: str) -> Path:
    """Write SDXL's file in float16, with the vocabulary of its text encoders beside it."""
    import torch
    from safetensors.torch import save_file

    state: StateDict = {}
    for seed, part in enumerate(sdxl(size), start=10):
        header = part.family.header(part.config, part.family.layout(part.layout))
        keys = {part.prefix + key: spec.shape for key, spec in header.items()}
        state |= random_state(keys, torch.float16, seed)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / FILE, metadata={"format": "pt"})
    write_tokenizer(folder / "tokenizer", more_merges(sdxl(size)[2].config.vocab_size))
    return folder / FILE


def write(folder: Path, size: str) -> dict[str, float]:
    """Write all files under ``folder/models``; return their megabytes."""
    home = folder / "models" / "HunyuanDiT"
    files = [*write_published(home, SIZES[size]), write_sdxl(folder / "models" / "stable_diffusion_xl", size)]
    write_vocabularies(home, SIZES[size].clip.vocab_size, None)
    return {"mb": sum(path.stat().st_size for path in files) / 1e6}


def run(folder: Path, side: int) -> dict[str, Any]:
    """Load everything into one manager, draw a step, and measure the stages."""
    recorder = Recorder()
    with recorder.stage("import"):
        import numpy as np
        import torch

        from diffsynth import HunyuanDiTImagePipeline, ModelManager, SDXLImagePipeline
        from diffsynth.models.unet.model import UNet

    started, models = time.perf_counter(), folder / "models"
    manager = ModelManager(torch_dtype=torch.float16, device="cpu")
    with recorder.stage("load HunyuanDiT"):
        loaded = manager.load_models([models / "HunyuanDiT" / "t2i" / name for name in (CLIP, T5, DIT, VAE)])
    for kind in (unet.FAMILY.name, clip.FAMILY.name):
        with recorder.stage(f"load {kind} of SDXL"):
            loaded += manager.load_model(models / "stable_diffusion_xl" / FILE, kind=kind, torch_dtype=torch.float32)
    first = HunyuanDiTImagePipeline.from_model_manager(manager)
    second = SDXLImagePipeline.from_model_manager(manager)
    if first.vae is not second.vae:
        raise SystemExit("failed: the pipelines do not share the autoencoder")
    recorder.watch(UNet, "forward", lambda *_: "one pass through the UNet")
    with recorder.stage("draw one step with SDXL"):
        image = second("a lighthouse in fog", num_inference_steps=1, cfg_scale=1.0, height=side, width=side, seed=7)
    spread = float(np.asarray(image).std())
    return {
        "seconds": time.perf_counter() - started,
        "stages": recorder.summary(),
        "peak_mb": max(stage.rss_mb for stage in recorder.stages),
        "anonymous_mb": max(stage.anonymous_mb for stage in recorder.stages),
        "spread": spread,
        "networks": [entry.family.name for entry in loaded],
        "environment": environment(),
    }


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.full_size_mixing", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--folder", type=Path, default=Path("build/full_size_mixing"), help="where to write")
    parser.add_argument("--keep", action="store_true", help="keep the weights")
    parser.add_argument("--side", type=int, default=256, help="of the picture in pixels, a multiple of 16")
    parser.add_argument("--size", choices=("tiny", "full"), default="full", help="of the networks (default: full)")
    parser.add_argument("--only", choices=("write", "run"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    folder = options.folder.resolve()
    if options.only:
        print(json.dumps(write(folder, options.size) if options.only == "write" else run(folder, options.side)))
        return
    folder.mkdir(parents=True, exist_ok=True)
    if options.size == "full" and (lack := lacking_room(folder, NEEDED_DISK, NEEDED_MEMORY_MB)):
        print(f"skipped: {lack}")
        return
    same = ("--folder", str(folder), "--size", options.size, "--side", str(options.side))
    try:
        written = run_fresh("benchmarks.full_size_mixing", *same, "--only", "write")
        print(f"wrote {written['mb'] / 1e3:.1f} GB of weights")
        report = run_fresh("benchmarks.full_size_mixing", *same, "--only", "run")
    finally:
        if not options.keep:
            shutil.rmtree(folder / "models", ignore_errors=True)
    write_json(folder / RESULT, {**written, **report})
    print(describe_environment(report["environment"]))
    print(f"\n{', '.join(report['networks'])}: one manager, the autoencoder shared by both pipelines\n")
    print(stage_table(report["stages"]))
    print(
        f"\nat most {report['peak_mb'] / 1e3:.1f} GB in memory, {report['anonymous_mb'] / 1e3:.1f} GB of it anonymous"
    )
    if not report["spread"] > 1:
        raise SystemExit("failed: the picture is of one colour and proves nothing")


if __name__ == "__main__":
    main(sys.argv[1:])

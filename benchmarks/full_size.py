"""Draw with files as large as the published ones, and compare with Diffusers.

    python -m benchmarks.full_size [--folder FOLDER] [--keep]

Writes the four published files with random weights (15 GB), runs the program of the README on them in a fresh
process, then Diffusers' and transformers' own classes in another, and compares text features, latents and picture.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.measure import available_memory_mb, describe_environment, run_fresh, table, write_json
from benchmarks.published_files import write_vocabularies
from benchmarks.sizes import SIZES

NEEDED_DISK = 17e9
NEEDED_MEMORY_MB = 18_500
RESULT = "full_size.json"

# Largest difference allowed, as a share of the largest value. Both sides compute in float32, in another order.
BOUNDS = {"clip": 1e-4, "t5": 1e-4, "latents": 1e-3}
PICTURE_BOUND = 2  # of 255; values near a whole number are cut off to either side


def lacking_room(folder: Path, disk: float, memory_mb: float) -> str | None:
    """Say what this machine lacks of bytes of disk and megabytes of memory, or return None."""
    free, memory = shutil.disk_usage(folder).free, available_memory_mb()
    if free < disk:
        return f"{free / 1e9:.1f} GB of disk are free; {disk / 1e9:.0f} GB are needed"
    if memory < memory_mb:
        return f"{memory / 1e3:.1f} GB of memory are available; {memory_mb / 1e3:.1f} GB are needed"
    return None


def draw_and_compare(folder: Path, size: str, side: int, released: Path | None) -> dict[str, Any]:
    """Write the files, draw with both, compare.

    Args:
        folder: gets ``models/``, the picture and the tensors of both sides.
        size: a name of ``benchmarks.sizes``.
        side: of the picture, in pixels.
        released: a ``t2i`` folder with the published vocabularies, or None for made ones.
    """
    folder = folder.resolve()
    models = folder / "models" / "HunyuanDiT"
    ours, theirs = folder / "ours.pt", folder / "theirs.pt"

    report = run_fresh("benchmarks.published_files", str(models), size)
    write_vocabularies(models, SIZES[size].clip.vocab_size, released)
    print(f"wrote {report['mb'] / 1e3:.1f} GB of weights, holding at most {report['peak_mb'] / 1e3:.1f} GB")

    our_run = run_fresh("benchmarks.full_size_ours", str(side), str(ours), folder=folder)
    print(describe_environment(our_run["environment"]))
    print(f"\ndiffsynth, {our_run['seconds']:.1f} s for the program after imports:\n\n{our_run['program']}")
    print(stage_table(our_run["stages"]))

    request = (size, str(side), our_run["prompt"], str(our_run["seed"]))
    their_run = run_fresh("benchmarks.full_size_theirs", *request, str(theirs), folder=folder)
    print("\nDiffusers and transformers, one network in memory at a time:\n")
    print(stage_table(their_run["stages"]))

    picture = np.asarray(Image.open(folder / our_run["picture"]))
    compared = compare(torch.load(ours), torch.load(theirs), torch.from_numpy(picture.copy()))
    print("\nLargest differences:\n")
    print(comparison_table(compared))
    return {
        "size": size,
        "side": side,
        "weights_mb": report["mb"],
        "ours": our_run,
        "theirs": their_run,
        "compared": compared,
    }


def compare(ours: dict[str, Tensor], theirs: dict[str, Tensor], picture: Tensor) -> dict[str, dict[str, float]]:
    """Return for each result the largest value, the largest difference and the bound."""
    for name in ("clip_mask", "t5_mask"):
        if not torch.equal(ours[name].bool(), theirs[name].bool()):
            raise SystemExit(f"failed: {name} differs: the prompts have other tokens")
    found = {}
    for name, bound in BOUNDS.items():
        largest = float(theirs[name].abs().max())
        difference = float((ours[name] - theirs[name]).abs().max())
        found[name] = {"largest": largest, "difference": difference, "bound": bound * largest}
    steps = (picture.int() - theirs["picture"].int()).abs()
    spread = float(theirs["picture"].float().std())
    found["picture"] = {"largest": 255, "difference": float(steps.max()), "bound": PICTURE_BOUND, "spread": spread}
    found["picture"]["share_different"] = float((steps > 0).float().mean())
    return found


def check(compared: dict[str, dict[str, float]]) -> None:
    """Leave with an error if a difference is above its bound, or the picture shows nothing."""
    for name, row in compared.items():
        if not row["difference"] <= row["bound"]:
            raise SystemExit(f"failed: {name} differs by {row['difference']:.3g}, more than {row['bound']:.3g}")
    if compared["picture"]["spread"] < 1:
        raise SystemExit("failed: the picture is of one colour and proves nothing")


def stage_table(stages: list[dict[str, Any]]) -> str:
    """Return stages as text."""
    head = ["stage", "s", "peak GB", "of it anonymous GB"]
    rows = [
        [each["name"], f"{each['seconds']:.2f}", f"{each['rss_mb'] / 1e3:.2f}", f"{each['anonymous_mb'] / 1e3:.2f}"]
        for each in stages
    ]
    return table([head, *rows])


def comparison_table(compared: dict[str, dict[str, float]]) -> str:
    """Return the comparison as text."""
    head = ["", "difference", "bound", "largest value"]
    rows = [
        [name, f"{row['difference']:.3g}", f"{row['bound']:.3g}", f"{row['largest']:.3g}"]
        for name, row in compared.items()
    ]
    return table([head, *rows])


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.full_size", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--folder", type=Path, default=Path("build/full_size"), help="where to write (default: build/full_size)"
    )
    parser.add_argument("--keep", action="store_true", help="keep the weights")
    parser.add_argument("--side", type=int, default=256, help="of the picture in pixels, a multiple of 16")
    parser.add_argument("--size", choices=SIZES, default="full", help="of the networks (default: full)")
    parser.add_argument("--released", type=Path, help="a t2i folder with the published vocabularies")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.size == "full" and (lack := lacking_room(options.folder, NEEDED_DISK, NEEDED_MEMORY_MB)):
        print(f"skipped: {lack}")
        return
    try:
        report = draw_and_compare(options.folder, options.size, options.side, options.released)
    finally:
        if not options.keep:
            shutil.rmtree(options.folder / "models", ignore_errors=True)
    write_json(options.folder / RESULT, report)
    check(report["compared"])
    print(f"\nkept in {options.folder / RESULT}")


if __name__ == "__main__":
    main(sys.argv[1:])

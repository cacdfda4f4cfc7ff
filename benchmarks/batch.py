"""Images per second of ``diffsynth batch`` beside the loop that a user of Diffusers writes, on the same weights.

    python -m benchmarks.batch [--requests 256] [--repeats 5] [--json FILE]

The job: pictures of 128x128 in 20 steps by the model that comes with the package, of 64 prompts, a fifth of the
requests asked for twice. Ours reads the job, plans, draws, and writes files with recipes and a ledger; in one process,
and in a process of one thread for each processor (``--shard``). Theirs calls ``pipe(prompt)`` for each request and
saves what comes. The model is loaded before. By turns, after a round that is thrown away; then batch images are
compared with ours drawn alone, and ours with theirs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.measure import Spread, describe_environment, environment, table, write_json
from diffsynth import HunyuanDiTImagePipeline, ModelManager, download_models
from diffsynth.batch import Shard, run_batch

MODEL_ID = "HunyuanDiT-Emoji"
THINGS = (
    "panda", "badger", "fox", "tiger", "rabbit", "frog", "monkey", "dog",
    "cat", "lion", "penguin", "apple", "rocket", "sunflower", "snowman", "doughnut",
)  # fmt: skip
COLORS = ("blue", "green", "red", "yellow")
COPIES = 5  # every fifth request was made before
NAMES = "{index:06d}.png"
THEIRS = "Diffusers, one by one"


@dataclass(frozen=True)
class Task:
    """What is drawn in each repetition.

    Args:
        requests: how many.
        side: of the pictures.
        steps: of the solver.
    """

    requests: int
    side: int
    steps: int

    @property
    def settings(self) -> dict[str, Any]:
        """What all requests have in common, under our names."""
        return {
            "height": self.side, "width": self.side, "num_inference_steps": self.steps, "guidance_scale": 2.5,
            "scheduler": "ddim", "resolution_binning": False,
        }  # fmt: skip

    def rows(self) -> list[dict[str, Any]]:
        """Return prompt and seed of each request."""
        prompts = [f"a {thing} on a {color} background" for thing, color in itertools.product(THINGS, COLORS)]
        rows: list[dict[str, Any]] = []
        for number in range(self.requests):
            copy = number % COPIES == COPIES - 1
            rows.append(rows[number // 2] if copy else {"prompt": prompts[number % len(prompts)], "seed": number})
        return rows


def load(folder: Path) -> tuple[HunyuanDiTImagePipeline, Any]:
    """Return our pipeline and that of Diffusers, with the same weights."""
    from tests.pipelines.diffusers_parts import make_pipeline

    ours = load_ours(folder)
    theirs = make_pipeline(ours, "ddim")
    lengths, encode = (ours.denoiser.config.text_len, ours.denoiser.config.t5_len), theirs.encode_prompt

    def encode_prompt(*args: Any, max_sequence_length: int, text_encoder_index: int, **options: Any) -> Any:
        """Take the lengths of this model's texts, in place of those of the released one, which are written out."""
        length = lengths[text_encoder_index]
        return encode(*args, max_sequence_length=length, text_encoder_index=text_encoder_index, **options)

    theirs.encode_prompt = encode_prompt
    return ours, theirs


def load_ours(folder: Path) -> HunyuanDiTImagePipeline:
    """Return our pipeline."""
    manager = ModelManager(torch_dtype=torch.float32, device="cpu")
    manager.load_models(download_models([MODEL_ID], local_dir=folder))
    return HunyuanDiTImagePipeline.from_model_manager(manager, "diffusers")


def draw_ours(pipe: HunyuanDiTImagePipeline, task: Task, folder: Path, **part: Any) -> None:
    """Draw the job, or the part of it that further arguments of ``run_batch`` say, as the command line does."""
    job = folder.parent / f"{folder.name}-{os.getpid()}.jsonl"
    job.write_text("".join(json.dumps(row) + "\n" for row in task.rows()), "utf-8")
    progress = run_batch(pipe, job, folder, defaults=task.settings, names=NAMES, **part)
    if progress.failures:
        raise RuntimeError(f"images failed: {progress.failures}")


@contextmanager
def shards(count: int, folder: Path) -> Iterator[Callable[[Task, Path], None]]:
    """Start processes of one thread that hold our pipeline; what is yielded draws a job with all of them."""
    context = get_context("spawn")
    with ProcessPoolExecutor(count, context, _start, (folder, context.Barrier(count))) as pool:

        def draw(task: Task, place: Path) -> None:
            promises = [pool.submit(_draw_shard, task, place, Shard(index, count)) for index in range(count)]
            for promise in promises:
                promise.result()

        yield draw


_parts: dict[str, Any] = {}  # of a process of its own


def _start(folder: Path, everybody: Any) -> None:
    torch.set_num_threads(1)
    _parts.update(pipe=load_ours(folder), everybody=everybody)


def _draw_shard(task: Task, place: Path, shard: Shard) -> None:
    _parts["everybody"].wait()  # else one process might draw two shards
    draw_ours(_parts["pipe"], task, place, choose=shard, ledger=shard.ledger)


def draw_theirs(pipe: Any, task: Task, folder: Path) -> None:
    """Draw request after request."""
    folder.mkdir()
    for number, row in enumerate(task.rows()):
        (image,) = pipe(
            row["prompt"],
            height=task.side,
            width=task.side,
            num_inference_steps=task.steps,
            guidance_scale=task.settings["guidance_scale"],
            generator=torch.Generator().manual_seed(row["seed"]),
            use_resolution_binning=False,
        ).images
        image.save(folder / NAMES.format(index=number))


def measure(
    ours: HunyuanDiTImagePipeline, theirs: Any, sharded: Callable[[Task, Path], None], task: Task, repeats: int,
    folder: Path,
) -> dict[str, Any]:  # fmt: skip
    """Return the images per second of each way, and how far their images are apart."""
    ways: dict[str, Callable[[Task, Path], None]] = {
        "diffsynth batch, one process": partial(draw_ours, ours),
        "diffsynth batch, a shard per processor": sharded,
        THEIRS: partial(draw_theirs, theirs),
    }
    few = Task(min(task.requests, 32), task.side, task.steps)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number, way in enumerate(ways.values()):
        way(few, folder / f"{number}-warm-up")
    for repeat in range(repeats):
        for number, (name, way) in enumerate(ways.items()):
            started = time.perf_counter()
            way(task, folder / f"{number}-{repeat}")
            rates[name].append(task.requests / (time.perf_counter() - started))
    *mine, other = rates
    return {
        "images_per_second": {name: vars(Spread.of(values)) for name, values in rates.items()},
        "gains": {
            name: vars(Spread.of([one / two for one, two in zip(rates[name], rates[other], strict=True)]))
            for name in mine
        },
        "difference_to_alone": max(_difference_alone(ours, task, folder / "1-0", number) for number in (0, 5, 7)),
        "difference_to_theirs": max(
            _difference(folder / "1-0" / path.name, path) for path in (folder / "2-0").iterdir()
        ),
    }


def _difference_alone(pipe: HunyuanDiTImagePipeline, task: Task, folder: Path, number: int) -> int:
    number = min(number, task.requests - 1)
    alone = folder / f"alone-{number}.png"
    pipe(**task.rows()[number], **task.settings, progress_bar_cmd=iter).save(alone)
    return _difference(folder / NAMES.format(index=number), alone)


def _difference(first: Path, second: Path) -> int:
    """Return the largest difference of two pictures, of 255."""
    with Image.open(first) as one, Image.open(second) as other:
        return int(np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).max())


def render(result: dict[str, Any]) -> str:
    """Return the result as text."""
    rows = [["way", "images a second"]]
    rows += [[name, Spread(**spread).text()] for name, spread in result["images_per_second"].items()]
    rows += [[f"{name}: gain", Spread(**spread).text()] for name, spread in result["gains"].items()]
    return table(rows)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Read the command line, run, print and return the result.

    Raises:
        SystemExit: images differ by more than the last digit.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batch", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--requests", type=int, default=256, help="in each repetition (default: 256)")
    parser.add_argument("--side", type=int, default=128, help="of the pictures (default: 128)")
    parser.add_argument("--steps", type=int, default=20, help="of the solver (default: 20)")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each side (default: 5)")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="of PyTorch, and shards (default: all processors)"
    )
    parser.add_argument("--json", type=Path, help="where to keep the result")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    task = Task(options.requests, options.side, options.steps)
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)  # of Diffusers
        ours, theirs = load(Path(folder) / "models")
        with shards(options.threads, Path(folder) / "models") as sharded:
            result = measure(ours, theirs, sharded, task, options.repeats, Path(folder))
    known = environment()
    report = {"model": MODEL_ID, **vars(task), "environment": known, **result}
    print(describe_environment(known))
    print(
        f"{task.requests} requests, {task.side}x{task.side}, {task.steps} steps; "
        f"median of {options.repeats} (low-high)\n"
    )
    print(render(result))
    alone, apart = result["difference_to_alone"], result["difference_to_theirs"]
    print(f"\nlargest difference: to the same image drawn alone {alone} of 255, to Diffusers {apart} of 255")
    if options.json:
        write_json(options.json, report)
        print(f"kept in {options.json}")
    if alone > 1:
        raise SystemExit(f"failed: images of a batch differ by {alone} of 255 from those drawn alone")
    return report


if __name__ == "__main__":
    main(sys.argv[1:])

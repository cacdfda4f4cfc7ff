"""Time of a denoising step: our plain forward, ours after ``plan``, and Diffusers', with the same random weights.

    python -m benchmarks.denoise [--pixels 256 512] [--repeats 5] [--json FILE]

By default the released width with 4 of its 40 blocks, one guidance pair, float32. The three take turns in one
process, after a round that is thrown away, and their results are compared. What ``plan`` computes once per image is
timed apart.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.measure import Spread, describe_environment, environment, table, write_json
from benchmarks.published_files import random_state
from benchmarks.sizes import SIZES
from benchmarks.theirs import build_transformer, rotary_table, transformer_state
from diffsynth.core.convert import Converter
from diffsynth.models.hunyuan_dit import FAMILY
from diffsynth.models.hunyuan_dit.condition import Plan, TextFeatures
from diffsynth.models.hunyuan_dit.config import HunyuanDiTConfig
from diffsynth.models.hunyuan_dit.model import HunyuanDiT
from diffsynth.models.hunyuan_dit.rope import build_rope

TIMESTEPS = (999.0, 500.0)
STEP = 1
REAL_TOKENS = (9, 12)  # of the prompt, for each text encoder; the negative prompt is shorter by 7


class OperatorCount(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operators that reach the device; views, which do nothing there, are counted too."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return function(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Contest:
    """The three ways to compute one step, and the plan that one of them needs."""

    ways: dict[str, Callable[[], Tensor]]
    make_plan: Callable[[], Plan]


def build_networks(config: HunyuanDiTConfig) -> tuple[HunyuanDiT, Any]:
    """Return our network and Diffusers' with the same random weights."""
    keys = {key: spec.shape for key, spec in FAMILY.header(config, FAMILY.layouts[0]).items()}
    published = random_state(keys, torch.float32, seed=0)
    with torch.device("meta"):
        ours, theirs = HunyuanDiT(config), build_transformer(config)
    converter = Converter(FAMILY.layouts[0].rules(config))
    ours.load_state_dict(converter.to_ours(published), strict=True, assign=True)
    theirs.load_state_dict(transformer_state(published, torch.float32), strict=True, assign=True)
    return ours.eval().requires_grad_(requires_grad=False), theirs


def random_text(config: HunyuanDiTConfig) -> TextFeatures:
    """Return features of a negative and a real prompt, the rest of the places free."""
    generator = torch.Generator().manual_seed(1)

    def encoder(length: int, width: int, real: int) -> tuple[Tensor, Tensor]:
        lengths = torch.tensor([[max(1, min(real, length) - 7)], [min(real, length)]])
        return torch.randn(2, length, width, generator=generator), torch.arange(length) < lengths

    clip, clip_mask = encoder(config.text_len, config.text_dim, REAL_TOKENS[0])
    t5, t5_mask = encoder(config.t5_len, config.t5_dim, REAL_TOKENS[1])
    return TextFeatures(clip, clip_mask, t5, t5_mask)


def contest(ours: HunyuanDiT, theirs: Any, pixels: int) -> Contest:
    """Prepare one step of a guidance pair at a picture size."""
    config, grid = ours.config, pixels // 16
    latents = torch.randn(2, config.in_channels, pixels // 8, pixels // 8, generator=torch.Generator().manual_seed(2))
    text, rope = random_text(config), build_rope(grid, grid, config.head_dim)
    meta = torch.tensor([[pixels] * 4 + [0, 0]] * 2, dtype=torch.float32) if config.size_conditioning else None
    timestep, rotary = torch.full((2,), TIMESTEPS[STEP]), rotary_table(grid, grid, config.head_dim)

    def make_plan() -> Plan:
        return ours.plan(TIMESTEPS, ours.encode_condition(text, meta), rope)

    plan = make_plan()

    def ask_theirs() -> Tensor:
        (prediction,) = theirs(
            latents,
            timestep,
            encoder_hidden_states=text.clip,
            text_embedding_mask=text.clip_mask,
            encoder_hidden_states_t5=text.t5,
            text_embedding_mask_t5=text.t5_mask,
            image_meta_size=meta,
            style=torch.zeros(2, dtype=torch.int64),
            image_rotary_emb=rotary,
            return_dict=False,
        )
        return torch.chunk(prediction, 2, dim=1)[0]

    ways = {
        "plain forward": lambda: ours(latents, timestep, text, rope, meta),
        "after plan": lambda: ours.denoise(latents, STEP, plan),
        "Diffusers": ask_theirs,
    }
    return Contest(ways, make_plan)


def timed(function: Callable[[], Any]) -> float:
    """Return the milliseconds a call takes."""
    started = time.perf_counter()
    function()
    return 1e3 * (time.perf_counter() - started)


@torch.no_grad()
def measure(config: HunyuanDiTConfig, sides: Sequence[int], repeats: int) -> list[dict[str, Any]]:
    """Return a row for each picture size and way."""
    ours, theirs = build_networks(config)
    rows: list[dict[str, Any]] = []
    for pixels in sides:
        prepared = contest(ours, theirs, pixels)
        results = {name: way() for name, way in prepared.ways.items()}  # also the round that is thrown away
        expected = results["Diffusers"]
        times: dict[str, list[float]] = {name: [] for name in prepared.ways}
        plans: list[float] = []
        for _ in range(repeats):
            for name, way in prepared.ways.items():
                times[name].append(timed(way))
            plans.append(timed(prepared.make_plan))
        for name, way in prepared.ways.items():
            with OperatorCount() as counter:
                way()
            row: dict[str, Any] = {"pixels": pixels, "way": name, "ms": vars(Spread.of(times[name]))}
            row["operators"] = counter.count
            row["difference"] = float((results[name] - expected).abs().max() / expected.abs().max())
            rows.append(row)
        rows.append({"pixels": pixels, "way": "the plan, once", "ms": vars(Spread.of(plans))})
    return rows


def render(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as text, each with its speed against Diffusers."""
    theirs = {row["pixels"]: row["ms"]["median"] for row in rows if row["way"] == "Diffusers"}
    lines = [["pixels", "way", "ms", "speed", "operators", "difference"]]
    for row in rows:
        line = [str(row["pixels"]), row["way"], Spread(**row["ms"]).text(1)]
        if "difference" in row:
            speed = theirs[row["pixels"]] / row["ms"]["median"]
            line += [f"{speed:.2f}", str(row["operators"]), f"{row['difference']:.1e}"]
        lines.append(line + [""] * (6 - len(line)))
    return table(lines)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Read the command line, run, print and return the result.

    Raises:
        SystemExit: the three do not compute the same.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.denoise", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="full", help="width of the network (default: full)")
    parser.add_argument("--depth", type=int, default=4, help="blocks (default: 4)")
    parser.add_argument("--pixels", type=int, nargs="+", default=[256, 512], help="sides of the picture")
    parser.add_argument("--repeats", type=int, default=7, help="measurements of each way (default: 7)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of PyTorch (default: all processors)")
    parser.add_argument("--bound", type=float, default=1e-4, help="relative difference that is allowed")
    parser.add_argument("--json", type=Path, help="where to keep the result")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    config = replace(SIZES[options.size].dit, depth=options.depth)
    rows = measure(config, options.pixels, options.repeats)
    known = environment()
    report = {"size": options.size, "depth": options.depth, "rows": 2, "environment": known, "measured": rows}
    print(describe_environment(known))
    print(
        f"width {config.hidden_size}, {config.depth} blocks, a guidance pair; median of {options.repeats} (low-high)\n"
    )
    print(render(rows))
    if options.json:
        write_json(options.json, report)
        print(f"\nkept in {options.json}")
    if different := [row["way"] for row in rows if not row.get("difference", 0) <= options.bound]:
        raise SystemExit(f"failed: not the same as Diffusers: {', '.join(different)}")
    return report


if __name__ == "__main__":
    main(sys.argv[1:])

"""A job of a hundred thousand images that is nearly finished goes on within seconds."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from diffsynth.batch import make_plan, read_entries, run_plan
from diffsynth.batch.ledger import line_of
from diffsynth.batch.plan import Item, Plan
from diffsynth.batch.runner import asked
from diffsynth.pipelines.request import ImageRequest

from .fake import FakePipeline

IMAGES = int(os.environ.get("DIFFSYNTH_TEST_ITEMS", "20000"))
SECONDS_PER_ITEM = 100e-6  # of the processor; 45 were measured on a busy machine


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.jsonl"
    row = '{{"prompt": "prompt {}", "seed": {}, "cfg_scale": 3, "negative_prompt": "blurred, grey"}}\n'
    path.write_text("".join(row.format(number, number) for number in range(IMAGES)))
    return path


def finish(plan: Plan, folder: Path, but: int) -> None:
    """Write a ledger and files as if all but the last images were drawn."""
    folder.mkdir()
    with (folder / "ledger.jsonl").open("w") as ledger:
        pairs = [(unit.group, item) for unit in plan.units for item in unit.items]
        for group, item in pairs[:-but]:
            ledger.write(line_of(line(folder, item, asked(group, item))))


def line(folder: Path, item: Item, request: dict[str, object]) -> dict[str, object]:
    (folder / item.names[0]).write_bytes(b"content")
    status = (folder / item.names[0]).stat()
    facts = {"sha256": "0" * 64, "size": status.st_size, "mtime_ns": status.st_mtime_ns, "seconds": 5.8}
    return {"key": item.key, "files": item.names, **facts, "time": "2026-01-01", "versions": {}, "request": request}


def test_it_goes_on_within_seconds(job: Path, tmp_path: Path) -> None:
    plan = make_plan(FakePipeline(), read_entries(job, ImageRequest), names="{index:06d}.png")
    finish(plan, tmp_path / "out", but=2)
    began: list[float] = []

    started = time.process_time()
    plan = make_plan(FakePipeline(), read_entries(job, ImageRequest), names="{index:06d}.png")
    progress = run_plan(
        FakePipeline(), plan, tmp_path / "out", on_progress=lambda progress: began.append(time.process_time())
    )

    assert (progress.finished, progress.drawn) == (IMAGES - 2, 2)
    assert began[0] - started < SECONDS_PER_ITEM * IMAGES

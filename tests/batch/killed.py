"""Draws a job in child processes that are killed, again and again, and checks the folder after every death.

    python -m tests.batch.killed FOLDER KILLS files|tar

Half of the children are killed from outside at a random moment, half kill themselves in the middle of a write: when a
number of bytes of an image or of a line is on the disk, or just before or after a file gets its name. Prints what it
counted.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from diffsynth.batch import run_batch
from diffsynth.batch.images import recipe_in
from diffsynth.pipelines.request import ImageRequest
from tests.batch.fake import FakePipeline

IMAGES, TOGETHER = 150, 3
WRITES = {"files": 40, "tar": 6}  # a child that kills itself does it in one of so many
JOB: list[dict[str, Any]] = [
    {"prompt": f"prompt {number % 40}", "seed": number // 2, "size": f"16x{16 + 8 * (number % 5)}"}
    for number in range(IMAGES)
]


def die() -> None:
    """End this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_a_write(number: int, share: float) -> None:
    """Kill this process in its write or link of this number.

    Args:
        number: from 1; links count too.
        share: of the bytes that are written before; of a link, whether it is made.
    """
    left = number
    write, link = os.write, os.link

    def here() -> bool:
        nonlocal left
        left -= 1
        return left == 0

    def dying_write(handle: int, data: Any) -> int:
        if here():
            write(handle, bytes(data)[: int(len(data) * share)])
            die()
        return write(handle, data)

    def dying_link(source: Any, target: Any) -> None:
        if here():
            if share > 0.5:
                link(source, target)
            die()
        link(source, target)

    os.write, os.link = dying_write, dying_link  # type: ignore[assignment]


def draw(folder: Path, drawn: Path, kind: str) -> None:
    """Draw the job, noting the seed and prompt of every image that is drawn."""

    def note(requests: Sequence[ImageRequest]) -> None:
        with drawn.open("a") as file:
            file.writelines(f"{each.prompt} {each.seed} {each.width}\n" for each in requests)

    run_batch(FakePipeline(0.001, note), JOB, folder, batch_size=TOGETHER, format=kind, names="{index:03d}.png")


def child(work: Callable[[], None]) -> int:
    """Run work in a process of its own and return its id."""
    number = os.fork()
    if number:
        return number
    try:
        work()
        os._exit(0)
    finally:  # after an error, which is told
        traceback.print_exc()
        os._exit(1)


def check(folder: Path, expected: dict[str, bytes]) -> None:
    """Fail unless every finished file is whole, and no image is in two lines."""
    for path in folder.rglob("*"):
        if path.suffix in (".png", ".tar"):
            assert path.read_bytes() == expected[path.name], f"{path} is not what it should be"
    ledger = folder / "ledger.jsonl"
    if not ledger.exists():
        return
    *whole, torn = ledger.read_bytes().split(b"\n")
    lines = [json.loads(line) for line in whole]
    keys = Counter(line["key"] for line in lines if "key" in line)
    assert not keys or max(keys.values()) == 1, "an image is in two lines"
    assert len(torn) < 5000
    for line in lines:
        for name in line.get("files", ()):
            content = (folder / name).read_bytes()
            assert hashlib.sha256(content).hexdigest() == line["sha256"], f"{name} is not what its line says"


def one_job(folder: Path, whole: Path, kind: str, dice: random.Random, kills: int) -> tuple[int, int]:
    """Draw one job to its end, with at most so many kills; return how many there were, and images drawn again."""
    expected = {path.name: path.read_bytes() for path in whole.iterdir()}
    drawn = folder.with_suffix(".drawn")
    killed = 0
    while True:
        inside, number, share = dice.random() < 0.5, dice.randint(1, WRITES[kind]), dice.random()

        def work(dies: bool = inside and killed < kills, number: int = number, share: float = share) -> None:
            if dies:
                die_in_a_write(number, share)
            draw(folder, drawn, kind)

        process = child(work)
        if not inside and killed < kills:
            time.sleep(share / 4)
            os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        check(folder, expected)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
        killed += 1
    images = {path.name for path in folder.iterdir()} - {"ledger.jsonl"}
    assert images == expected.keys() - {"ledger.jsonl"}, "files are missing, or left over"
    again = Counter(drawn.read_text().splitlines())
    distinct = len({(each["prompt"], each["seed"], each["size"]) for each in JOB})
    assert len(again) == distinct
    return killed, sum(again.values()) - distinct


def main(root: Path, kills: int, kind: str) -> None:
    torch.set_num_threads(1)
    dice = random.Random(kills)
    whole = root / "whole"
    draw(whole, root / "whole.drawn", kind)
    assert all(recipe_in(path) for path in whole.glob("*.png"))
    total = again = 0
    while total < kills:
        killed, more = one_job(root / f"job-{total}", whole, kind, dice, kills - total)
        total, again = total + killed, again + more
    sys.stdout.write(
        json.dumps({"kills": total, "drawn again": again, "at most": total * (64 if kind == "tar" else TOGETHER)})
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])

"""``diffsynth train``: train networks as a TOML file says, or go on with a run that was stopped."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from diffsynth.cli.options import Debug, Verbose
from diffsynth.errors import Cancelled

if TYPE_CHECKING:
    from diffsynth.training.loop import StepReport

SECONDS_BETWEEN_LINES = 10


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="TOML file with the settings.")],
    folder: Annotated[Path | None, typer.Option(help="Folder of the run, instead of the one in CONFIG.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Stop when so many steps are done in all.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on with the run that is in the folder.")] = True,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Train networks from pictures with captions.

    Ctrl-C writes a checkpoint after the current step and stops; the same command goes on from there.
    """
    from diffsynth.training.run import train
    from diffsynth.training.toml import read_config

    sys.path.insert(0, str(Path.cwd()))  # for data that the config names as module:function
    settings = read_config(config)
    with _stopping(steps) as on_step:
        final = train(settings, folder=folder, steps=steps, resume=resume, on_step=on_step)
    print(final)


@contextmanager
def _stopping(until: int | None) -> Iterator[Callable[[StepReport], None]]:
    """Report progress, and let the first Ctrl-C or request to terminate stop after the current step."""
    asked = False
    last = 0.0

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        print("stopping after this step; once more stops at once", file=sys.stderr)

    def on_step(report: StepReport) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > SECONDS_BETWEEN_LINES or report.step == (until or report.steps) or asked:
            last = now
            print(_line(report), flush=True)
        if asked:
            raise Cancelled(f"stopped after step {report.step} of {report.steps}")

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield on_step
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _line(report: StepReport) -> str:
    values = "  ".join(f"{name} {value:.4g}" for name, value in report.values.items())
    return f"step {report.step}/{report.steps}  {values}"

"""``diffsynth train``: train networks as a TOML file says, or go on with a run that was stopped."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffsynth.cli.options import Debug, Verbose
from diffsynth.cli.stopping import stopping

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
    told = _printing(steps)

    def on_step(report: StepReport) -> None:
        told(report)
        check(report)

    with stopping() as check:
        final = train(settings, folder=folder, steps=steps, resume=resume, on_step=on_step)
    print(final)


def _printing(until: int | None) -> Callable[[StepReport], None]:
    """Return a function that prints a line for a step, though not for each."""
    last = 0.0

    def on_step(report: StepReport) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > SECONDS_BETWEEN_LINES or report.step == (until or report.steps):
            last = now
            print(_line(report), flush=True)

    return on_step


def _line(report: StepReport) -> str:
    values = "  ".join(f"{name} {value:.4g}" for name, value in report.values.items())
    return f"step {report.step}/{report.steps}  {values}"

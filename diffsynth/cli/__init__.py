"""The command line: ``diffsynth download | list | inspect | merge | convert | generate | batch | grid | report | why |
train | env``.

One file per command. Nothing here imports torch before a command has to run, so that ``--help`` is quick. Only this
folder prints.
"""

from __future__ import annotations

import functools
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import typer

from diffsynth.cli import batch, convert, download, env, generate, grid, inspect, listing, merge, report, train, why
from diffsynth.cli.options import State, print_anything
from diffsynth.cli.stopping import INTERRUPTED, TERMINATED
from diffsynth.errors import Cancelled, DiffSynthError

app = typer.Typer(
    name="diffsynth",
    help="Draw with diffusion models: checkpoint files in, images out.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code.

    0 means done, 1 that something failed, 2 that the command was misspelt, 130 that Ctrl-C stopped it, 143 that a
    request to terminate did.
    """
    print_anything()
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; see ``main``."""
    try:
        app(args=None if arguments is None else list(arguments))
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    return 0


def reporting(command: Callable[..., int | None]) -> Callable[..., None]:
    """Give a command its exit code, and turn what it raises on purpose into one line on standard error."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            code = command(*args, **kwargs) or 0
        except (KeyboardInterrupt, Cancelled) as asked:
            code = _failed("stopped; no unfinished file was left behind.", getattr(asked, "exit_code", INTERRUPTED))
        except _Terminated:
            code = _failed("terminated; no unfinished file was left behind.", TERMINATED)
        except (DiffSynthError, OSError) as error:
            code = _failed(f"{type(error).__name__}: {error}", 1)
        except RuntimeError as error:
            if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported for this
                raise
            code = _failed(f"out of memory: {error} Try a smaller size, --batch-size 1 or --tiled.", 1)
        raise typer.Exit(code)

    return wrapped


for _name, _command in (
    ("download", download.download),
    ("list", listing.list_models),
    ("inspect", inspect.inspect),
    ("merge", merge.merge),
    ("generate", generate.generate),
    ("batch", batch.batch),
    ("train", train.train),
    ("grid", grid.grid),
    ("report", report.report),
    ("why", why.why),
    ("env", env.env),
):
    app.command(_name)(reporting(_command))
convert.group.command("lora")(reporting(convert.lora))
app.add_typer(convert.group, name="convert")


class _Terminated(BaseException):
    """Raised by the signal handler, so that files being written are cleaned up on the way out."""


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated


def _failed(message: str, code: int) -> int:
    if State.debug:
        traceback.print_exc()
    print(message, file=sys.stderr)
    return code

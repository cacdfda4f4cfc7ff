"""Options that several commands have."""

from __future__ import annotations

import logging
import sys
from typing import Annotated, ClassVar

import typer

from diffsynth.errors import InvalidRequest


class State:
    """What the running command was told about how to report."""

    debug: ClassVar[bool] = False


def _set_debug(value: bool) -> bool:
    State.debug = value
    start_logging(logging.DEBUG if value else logging.WARNING)
    return value


def _set_verbose(value: bool) -> bool:
    if value and not State.debug:
        start_logging(logging.INFO)
    return value


def start_logging(level: int) -> None:
    """Send the package's messages to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logger = logging.getLogger("diffsynth")
    logger.handlers[:] = [handler]
    logger.setLevel(level)


Debug = Annotated[bool, typer.Option("--debug", callback=_set_debug, is_eager=True, help="Show every detail.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", callback=_set_verbose, help="Say what is being done.")]
Kinds = Annotated[
    list[str] | None,
    typer.Option("--as", metavar="[PATH=]KIND", help="Say by hand which network a file holds, such as hunyuan_dit."),
]


def kinds_by_path(kinds: list[str] | None) -> dict[str, str]:
    """Return path → kind; the kind for every path stands under the empty path.

    Raises:
        InvalidRequest: one path is given two kinds.
    """
    found: dict[str, str] = {}
    for text in kinds or []:
        path, _, kind = text.rpartition("=")
        if found.setdefault(path, kind) != kind:
            raise InvalidRequest(f"--as names two kinds for {path or 'every file'}: {found[path]} and {kind}.")
    return found

"""Options that several commands have."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
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


def expanded(paths: Sequence[Path], kinds: list[str] | None) -> list[tuple[Path, str | None]]:
    """Return the parts of every path, such as the networks of a folder, each with the kind that ``--as`` names for it.

    Raises:
        InvalidRequest: ``--as`` names two kinds for a path, or a path that is not among them.
    """
    from diffsynth.core.folder import component_folders

    chosen: dict[str, str] = {}
    for text in kinds or []:
        path, _, kind = text.rpartition("=")
        if chosen.setdefault(path, kind) != kind:
            raise InvalidRequest(f"--as names two kinds for {path or 'every file'}: {chosen[path]} and {kind}.")
    parts: list[tuple[Path, str | None]] = []
    used = {""}
    for whole in paths:
        for part in component_folders(whole) or [whole]:
            name = next((str(each) for each in (part, whole) if str(each) in chosen), "")
            used.add(name)
            parts.append((part, chosen.get(name)))
    if unused := [path for path in chosen if path not in used]:
        raise InvalidRequest(f"--as names {unused[0]}, which is not among the files.")
    return parts

"""Options that several commands have."""

from __future__ import annotations

import io
import logging
import os
import stat
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from diffsynth.errors import CheckpointError, InvalidRequest, printable

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "float16", "bfloat16")


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


def print_anything() -> None:
    """Let standard output and error escape what a terminal's encoding lacks, such as odd file names, not fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


Debug = Annotated[bool, typer.Option("--debug", callback=_set_debug, is_eager=True, help="Show every detail.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", callback=_set_verbose, help="Say what is being done.")]
Kinds = Annotated[
    list[str] | None,
    typer.Option("--as", metavar="[PATH=]KIND", help="Say by hand which network a file holds; repeat for several."),
]
Dtype = Annotated[str | None, typer.Option(help="float32, float16 or bfloat16.")]


def named_once(option: str, pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return what an option says of each name.

    Raises:
        InvalidRequest: it says two things of one.
    """
    found: dict[str, str] = {}
    for name, value in pairs:
        if name in found:
            raise InvalidRequest(f"{option} names {printable(name)} twice; give it once.")
        found[name] = value
    return found


def check_file(path: Path) -> None:
    """Make sure, before anything is loaded or drawn, that a file can be written.

    Raises:
        InvalidRequest: it cannot.
        OSError: it cannot, for a reason that the system gives, such as a name that is too long.
    """
    with suppress(FileNotFoundError, NotADirectoryError):
        if not stat.S_ISREG(path.stat().st_mode):
            raise InvalidRequest(f"{printable(path, 300)} is a folder or no regular file; name a file to write.")
    check_folder(path.parent)


def check_folder(folder: Path) -> None:
    """Make sure, likewise, that files can be written into a folder, which need not be there yet."""
    there = next(each for each in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(each))
    if not there.is_dir():
        reason = f"{printable(there, 300)} is not a folder"
    elif not os.access(there, os.W_OK | os.X_OK):
        reason = f"no permission to write into {printable(there, 300)}"
    else:
        return
    raise InvalidRequest(f"nothing can be written into {printable(folder, 300)}: {reason}.")


def dtype_named(name: str | None) -> torch.dtype | None:
    """Return the dtype that ``--dtype`` names, or None if it was not given.

    Raises:
        InvalidRequest: there is no such dtype.
    """
    import torch

    if name is not None and name not in DTYPES:
        raise InvalidRequest(f"--dtype must be one of {', '.join(DTYPES)}, not {name!r}.")
    return getattr(torch, name) if name else None


def expanded(paths: Sequence[Path], kinds: list[str] | None) -> list[tuple[Path, str | None]]:
    """Return the parts of every path, such as the networks of a folder, each with the kind that ``--as`` names for it.

    A part that holds several networks, and for which several are named, comes once for each.

    Raises:
        InvalidRequest: ``--as`` names two kinds for every path, or a path that is not among them.
    """
    chosen: dict[str, list[str | None]] = {}
    for text in kinds or []:
        path, _, kind = text.rpartition("=")
        named = chosen.setdefault(path, [])
        named += [] if kind in named else [kind]
        if not path and len(named) > 1:
            raise InvalidRequest(
                f"--as names two kinds for every file: {named[0]} and {kind}. Say which file is which."
            )
    parts: list[tuple[Path, str | None]] = []
    used = {""}
    for whole in paths:
        for part in _parts(whole):
            name = next((str(each) for each in (part, whole) if str(each) in chosen), "")
            used.add(name)
            parts += [(part, kind) for kind in chosen.get(name, [None])]
    if unused := [path for path in chosen if path not in used]:
        raise InvalidRequest(f"--as names {unused[0]}, which is not among the files.")
    return parts


def _parts(whole: Path) -> list[Path]:
    """Return the folders of a model's parts, or the path itself; a part that cannot be read fails when it is opened."""
    from diffsynth.core.folder import component_folders

    try:
        return component_folders(whole) or [whole]
    except (OSError, CheckpointError):
        return _possible_parts(whole) or [whole]


def _possible_parts(folder: Path) -> list[Path]:
    """Return the folders inside a folder that have weights or cannot be read."""
    from diffsynth.core.folder import WEIGHT_SUFFIXES

    parts = []
    with suppress(OSError):
        for part in sorted(folder.iterdir()):
            try:
                wanted = part.is_dir() and any(file.suffix.lower() in WEIGHT_SUFFIXES for file in part.iterdir())
            except OSError:
                wanted = True
            if wanted:
                parts.append(part)
    return parts

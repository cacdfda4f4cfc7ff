"""``diffsynth report``: a folder of images as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diffsynth.cli.options import Debug, Verbose, check_file


def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a batch, or of images with recipes.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .html file to write.")] = Path("report.html"),
    embed: Annotated[
        bool,
        typer.Option("--embed", help="Put small copies of all images into the page, so that it can be sent alone."),
    ] = False,
    title: Annotated[str | None, typer.Option(help="Title of the page; the folder's name by default.")] = None,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Write a page about a run: images with their settings, what failed and why, networks with hashes, speed.

    It opens from the disk, needs no server and no network, and can be read without JavaScript.
    """
    from diffsynth.batch.report import write_report

    check_file(output)
    print(write_report(folder, output, embed=embed, title=title))

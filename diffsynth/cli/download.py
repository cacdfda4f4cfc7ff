"""``diffsynth download``: fetch models of the catalogue, or files of any repository."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from diffsynth.cli.options import Debug, Verbose
from diffsynth.errors import InvalidRequest


def download(
    names: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="Names that `diffsynth list` shows, or repositories OWNER/NAME."),
    ],
    models: Annotated[Path, typer.Option(help="Folder of downloaded models.")] = Path("models"),
    hub: Annotated[
        list[str] | None, typer.Option(help="ModelScope or HuggingFace; repeat in the order to ask them.")
    ] = None,
    files: Annotated[list[str] | None, typer.Option(help="Only files that fit this pattern; repeat for more.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a repository.")] = None,
    offline: Annotated[bool | None, typer.Option("--offline/--online", help="Ask no hub; check what is here.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Ask anew, and read every file again.")] = False,
    reuse: Annotated[list[Path] | None, typer.Option(help="Folder of another tool to take files from.")] = None,
    verbose: Verbose = False,
    debug: Debug = False,
) -> int:
    """Fetch what is missing, check everything, and print the files in the order they are loaded."""
    from diffsynth.hub.download import HUBS, download_model, download_models

    wanted = dict.fromkeys(names)
    repositories = [name for name in wanted if "/" in name]
    if revision is not None and len(repositories) != len(wanted):
        raise InvalidRequest("--revision is for repositories, OWNER/NAME; those of the catalogue are chosen there.")
    options: dict[str, Any] = {"local_dir": models, "offline": offline, "verify": verify, "reuse": reuse or ()}
    paths: list[Path] = []
    try:
        for name in repositories:
            paths += download_model(name, files or "*", source=hub or HUBS, revision=revision, **options)
        if known := [name for name in wanted if name not in repositories]:
            paths += download_models(known, hub or HUBS, files=files or (), **options)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here.", file=sys.stderr)
        return 130
    for path in paths:
        print(path)
    return 0

"""``diffsynth list``: the catalogue, with sizes and what is here already."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from diffsynth.cli.options import Debug, Verbose


def list_models(
    models: Annotated[Path, typer.Option(help="Folder of downloaded models.")] = Path("models"),
    hub: Annotated[
        list[str] | None, typer.Option(help="ModelScope or HuggingFace; repeat in the order to ask them.")
    ] = None,
    offline: Annotated[bool | None, typer.Option("--offline/--online", help="Ask no hub for sizes.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Show the models that can be fetched by name. Sizes are asked for once, and remembered."""
    from diffsynth.hub.download import HUBS
    from diffsynth.hub.status import catalogue_status

    rows = catalogue_status(models, hub or HUBS, offline=offline)
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return
    width = max(len(row.name) for row in rows)
    for row in rows:
        print(f"{row.name:<{width}}  {_size(row.bytes):>9}  {_state(row.here, row.files):<14}  {row.about}")


def _size(count: int | None) -> str:
    return "?" if count is None else f"{count / 1e9:,.2f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"


def _state(here: int, files: int | None) -> str:
    if not here:
        return "-"
    return "here" if here == files else f"{here} of {files or '?'} files"

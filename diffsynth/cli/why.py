"""``diffsynth why``: what makes two images differ."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffsynth.cli.options import Debug, Verbose
from diffsynth.errors import InvalidRequest

if TYPE_CHECKING:
    from diffsynth.batch.why import Explanation


def why(
    first: Annotated[str, typer.Argument(metavar="A", help="An image, latents, or a folder of images.")],
    second: Annotated[str, typer.Argument(metavar="B", help="What to compare it with.")],
    run: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder of a batch, of which A and B are names or keys.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Tell what differs in the recipes of two images, what in their pixels, and whether one explains the other.

    Of two folders, such as two runs of one job, images of the same name are compared. The exit code is 0 whether they
    differ or not.
    """
    from diffsynth.batch.why import compare_images, explain, side_of
    from diffsynth.batch.why_folders import compare_folders

    folders = [run is None and Path(each).is_dir() for each in (first, second)]
    if any(folders):
        if not all(folders):
            raise InvalidRequest("a folder can be compared with a folder only; name two images, or two folders.")
        findings = compare_folders(first, second)
        print(
            json.dumps({name: _plain(each) for name, each in findings.pairs.items()}, indent=1) if as_json else findings
        )
        return
    if run is None:
        found = compare_images(Path(first), Path(second))
    else:
        from diffsynth.batch.records import Folder

        folder = Folder.read(run)
        found = explain(*(side_of(folder, folder.find(each)) for each in (first, second)))
    print(json.dumps(_plain(found), indent=1) if as_json else found)


def _plain(found: Explanation) -> dict[str, Any]:
    differences = [{**asdict(each), "effect": each.effect.name.lower()} for each in found.differences]
    comparison = {**asdict(found.comparison), "equal": found.comparison.equal, "small": found.comparison.small}
    return {**asdict(found), "differences": differences, "comparison": comparison}

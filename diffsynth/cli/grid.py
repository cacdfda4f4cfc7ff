"""``diffsynth grid``: images as a contact sheet, or as a plot with a setting on each axis."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffsynth.cli.choice import OPTIONS, choose, with_options
from diffsynth.cli.options import Debug, Verbose, check_file, named_once
from diffsynth.cli.pipelines import kind_named
from diffsynth.cli.stopping import stopping
from diffsynth.errors import InvalidRequest, printable

if TYPE_CHECKING:
    from diffsynth.batch.grid import Plot
    from diffsynth.batch.records import Folder

NAMES = "{seed}-{key:.16}.png"  # of what is drawn for a plot


def grid(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files, or one folder of images.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture to write; of several pages, numbered.")],
    x: Annotated[
        str | None, typer.Option(metavar="NAME[=VALUES]", help="Setting that differs from column to column.")
    ] = None,
    y: Annotated[
        str | None, typer.Option(metavar="NAME[=VALUES]", help="From row to row; such as cfg_scale=2,5,8 or seed=0..3.")
    ] = None,
    pages: Annotated[str | None, typer.Option(metavar="NAME[=VALUES]", help="From page to page.")] = None,
    where: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Show only images with this value; repeat for each.")
    ] = None,
    columns: Annotated[int | None, typer.Option(min=1, help="Images in a row, without --x.")] = None,
    cell: Annotated[int | None, typer.Option(help="Pixels of an image's longer side; its own, at most 256.")] = None,
    caption: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="What captions show; usually all that differs.")
    ] = None,
    font: Annotated[Path | None, typer.Option(help="Font file to write with.")] = None,
    draw: Annotated[bool, typer.Option("--draw", help="Draw missing images, with the networks of the others.")] = False,
    verbose: Verbose = False,
    debug: Debug = False,
    **more: Any,
) -> None:
    """Lay images out with captions from their recipes; with --x and --y, one setting from left to right, one downwards.

    An axis may also be model, lora, conventions or dtype. What is not drawn stays hatched, unless --draw or --model is
    given: then it is drawn into the folder, and used from there the next time.
    """
    from diffsynth.batch.grid import contact_sheet, make_plot
    from diffsynth.batch.records import Folder

    drawing = draw or any(more[name] not in (None, False) for name in OPTIONS)
    _check_output(output)
    _check(x, {"--y": y, "--pages": pages, "--draw or an option of drawing": drawing})
    if x is not None and (columns or caption):
        raise InvalidRequest("--columns and --caption are for contact sheets; a plot has the columns of --x.")
    chosen = named_once("--where", map(_where, where or []))
    alone = len(images) == 1 and images[0].is_dir()
    if not alone and (folders := [path for path in images if path.is_dir()]):
        raise InvalidRequest(f"{printable(folders[0], 300)} is a folder; name one folder alone, or files.")
    folder = Folder.read(images[0]) if alone else Folder.of_files(images)
    _check_other(output, folder)
    if x is None:
        sheet = contact_sheet(
            folder, columns=columns or 6, cell=cell, captions=caption, where=chosen, font=font
        )  # fmt: skip
        _write(sheet.draw(), output)
        return
    plot = make_plot(folder, x, y, pages, chosen, empty=drawing)
    if drawing:
        if not alone:
            raise InvalidRequest("what is missing is drawn into a folder: name the folder of the images.")
        _draw(plot, more)
        plot = make_plot(Folder.read(images[0]), x, y, pages, chosen)
    sheets = list(plot.sheets(cell, font))
    for number, sheet in enumerate(sheets, 1):
        path = output if len(sheets) == 1 else output.with_stem(f"{output.stem}-{number:04d}")
        _write(sheet.draw(), path)


with_options(grid, list(OPTIONS.values()))


def _check(x: str | None, others: dict[str, Any]) -> None:
    for name, value in others.items():
        if value and x is None:
            raise InvalidRequest(f"{name} goes with --x, the setting that differs from column to column.")


def _where(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InvalidRequest(f"--where is NAME=VALUE, such as cfg_scale=5, not {printable(text)!r}.")
    return name, value


def _draw(plot: Plot, options: dict[str, Any]) -> None:
    """Draw what is missing into the folder of a plot, like the images that are there."""
    from diffsynth.batch.run import run_batch

    rows = list(plot.missing())
    if not rows:
        return
    recipe, settings = _like(plot)
    choice = choose(recipe, plot.folder.path, [], **{name: options[name] for name in OPTIONS})
    choice.check(tuple(settings))
    pipe = choice.pipeline()
    with stopping() as stop:
        progress = run_batch(
            pipe, [{**settings, **row} for row in rows], plot.folder.path, names=NAMES, wildcards=False, on_step=stop
        )
    print(f"drawn: {progress.drawn} of {len(rows)} missing images", file=sys.stderr)


def _like(plot: Plot) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the recipe of an image of a plot, and its settings as a job has them.

    Raises:
        InvalidRequest: the images do not say how the missing ones are to be drawn.
    """
    from diffsynth.batch.grid import OF_RECIPES
    from diffsynth.pipelines.recipe import check_recipe, request_from

    axes = [axis.name for axis in (plot.across, plot.down, plot.pages)]
    if fixed := [name for name in axes if name in OF_RECIPES]:
        raise InvalidRequest(f"{fixed[0]} is no setting of an image, so what is missing cannot be drawn by itself.")
    if plot.others:
        raise InvalidRequest(
            f"what is missing cannot be drawn: {', '.join(plot.others)} differ from image to image too. "
            f"Choose with --where {plot.others[0]}=VALUE."
        )
    drawn = (each for each in (*plot.places.values(), *plot.kept) if each.failure is None)
    record = next(drawn, None)
    recipe = plot.folder.recipe(record) if record else None
    if record is None or recipe is None:
        raise InvalidRequest("no image that is there has a recipe to draw the missing ones by.")
    try:
        check_recipe(recipe)
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(f"{record.name} holds a recipe that this version cannot read: {error}.") from error
    settings = request_from(recipe, kind_named(recipe["pipeline"], plot.folder.path / record.name).request)
    return recipe, {name: value for name, value in settings.items() if value is not None}


def _check_output(path: Path) -> None:
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise InvalidRequest(f"--output {printable(path, 300)} must end in .png, .jpg or .webp.")
    check_file(path)


def _check_other(path: Path, folder: Folder) -> None:
    """Refuse to write a sheet over one of its images."""
    names = (name for record in folder.drawn if record.request for name in (record.name, *record.names))
    if path.absolute() in {(folder.path / name).absolute() for name in names}:
        raise InvalidRequest(f"--output {printable(path, 300)} is one of the images; choose another name.")


def _write(page: Any, path: Path) -> None:
    from diffsynth.core.files import replacing

    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        page.save(temporary, format={".png": "PNG", ".webp": "WEBP"}.get(path.suffix.lower(), "JPEG"))
    print(path)

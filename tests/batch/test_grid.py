"""Contact sheets and plots of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diffsynth.batch.grid import contact_sheet, make_plot
from diffsynth.batch.records import Folder
from diffsynth.batch.sheet import Cell, Sheet
from diffsynth.errors import InvalidRequest
from tests.batch.folders import SETTINGS, Written, write_image

COLORS = ("red", "green", "blue", "yellow")


@pytest.fixture
def run(out: Path) -> Written:
    """A run over two guidance weights and two seeds, of which one image is missing."""
    written = Written(out)
    combinations = [(scale, seed) for scale in (2.5, 10.0) for seed in (1, 2)]
    for number, (scale, seed) in enumerate(combinations[:3]):
        written.drawn(f"{number}.png", color=COLORS[number], cfg_scale=scale, seed=seed)
    return written


def colors(image: Image.Image) -> set[Any]:
    return {color for count, color in image.getcolors(1 << 20) or () if count > 300}


def test_a_plot_has_a_column_and_a_row_for_each_value_in_order(run: Written) -> None:
    plot = make_plot(Folder.read(run.folder), "cfg_scale", "seed")

    assert (plot.across.values, plot.down.values) == ((2.5, 10.0), (1, 2))
    assert {place: record.name for place, record in plot.places.items()} == {
        (0, 0, 0): "0.png", (0, 1, 0): "1.png", (0, 0, 1): "2.png"
    }  # fmt: skip
    assert list(plot.missing()) == [{"seed": 2, "cfg_scale": 10.0}]
    (sheet,) = plot.sheets(cell=48)
    assert (sheet.columns, sheet.sides, sheet.title) == (["2.5", "10"], ["1", "2"], "a fox")
    assert sheet.note == "1 of 4 are not drawn."


def test_a_sheet_shows_every_picture_once_and_hatches_what_is_missing(run: Written) -> None:
    (sheet,) = make_plot(Folder.read(run.folder), "cfg_scale", "seed").sheets(cell=48)

    page = sheet.draw()

    assert {(255, 0, 0), (0, 128, 0), (0, 0, 255)} <= colors(page)
    assert (255, 255, 0) not in colors(page)
    assert page.width > 2 * 48
    assert page.height > 2 * 32


def test_values_can_be_chosen_and_new_ones_are_missing(run: Written) -> None:
    plot = make_plot(Folder.read(run.folder), "cfg-scale=10,2.5,7", "seed=1..2")

    assert plot.across.values == (10.0, 2.5, 7.0)
    assert len(list(plot.missing())) == 3


def test_a_failure_is_shown_with_its_reason_until_the_image_is_drawn(run: Written) -> None:
    run.failed("3.png", "out of memory", cfg_scale=10.0, seed=2)
    (sheet,) = make_plot(Folder.read(run.folder), "cfg_scale", "seed").sheets()

    assert sheet.rows[1][1].open is None
    assert sheet.rows[1][1].caption == "out of memory"
    run.drawn("3.png", cfg_scale=10.0, seed=2)
    assert list(make_plot(Folder.read(run.folder), "cfg_scale", "seed").missing()) == []


def test_what_differs_besides_the_axes_must_be_chosen_or_becomes_pages(run: Written) -> None:
    run.drawn("4.png", cfg_scale=2.5, seed=1, scheduler="unipc")
    folder = Folder.read(run.folder)

    with pytest.raises(
        InvalidRequest, match=r"0\.png and 4\.png both have seed 1 and cfg_scale 2\.5: they differ in sched"
    ):
        make_plot(folder, "cfg_scale", "seed")
    pages = list(make_plot(folder, "cfg_scale", "seed", "scheduler").sheets())
    assert [page.title for page in pages] == ["scheduler: ddim", "scheduler: unipc"]
    assert len(make_plot(folder, "cfg_scale", "seed", where={"scheduler": "unipc"}).places) == 1


def test_networks_can_be_an_axis_and_two_of_them_in_one_place_are_refused(tmp_path: Path) -> None:
    other = {
        "family": "hunyuan_dit",
        "path": "/models/new.pt",
        "files": [{"path": "/models/new.pt", "sha256": "3" * 64}],
    }
    write_image(tmp_path / "a.png", SETTINGS)
    write_image(tmp_path / "b.png", SETTINGS, models=[other])
    write_image(tmp_path / "c.png", SETTINGS)  # the same as the first
    folder = Folder.of_files(sorted(tmp_path.glob("*.png")))

    assert make_plot(folder, "model").across.values == ("dit.pt", "new.pt")
    with pytest.raises(
        InvalidRequest, match=r"a\.png and .*b\.png both have seed 1: they differ in hunyuan_dit, its file"
    ):
        make_plot(folder, "seed")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cgf_scale",), "no image has a setting 'cgf_scale'; there are: cfg_scale, height"),
        (("seed", "seed"), "seed is on two axes"),
        (("seed=7",), "no image has one of the values that are to be shown"),
        (("seed", None, None, {"prompt": "a wolf"}), "has a recipe and fits prompt=a wolf"),
    ],
)
def test_what_cannot_be_plotted_is_one_clear_error(arguments: Any, message: str, run: Written) -> None:
    with pytest.raises(InvalidRequest, match=message):
        make_plot(Folder.read(run.folder), *arguments)


def test_captions_tell_what_differs(run: Written) -> None:
    sheet = contact_sheet(Folder.read(run.folder), columns=2)

    captions = [cell.caption for row in sheet.rows for cell in row]
    assert captions == ["seed 1, cfg_scale 2.5", "seed 2, cfg_scale 2.5", "seed 1, cfg_scale 10"]
    assert [len(row) for row in sheet.rows] == [2, 1]
    assert sheet.title == "a fox"
    chosen = contact_sheet(Folder.read(run.folder), captions=["seed"], where={"seed": "2"})
    assert [cell.caption for row in chosen.rows for cell in row] == ["2"]


def test_a_sheet_that_is_too_large_is_refused_before_it_is_drawn() -> None:
    def refuse() -> Image.Image:
        raise AssertionError("a picture was opened")

    cells = [[Cell(refuse) for _ in range(100)] for _ in range(100)]

    with pytest.raises(InvalidRequest, match=r"the sheet would have \d+ x \d+ pixels; at most 64,000,000 are drawn"):
        Sheet(cells, cell=(256, 256)).draw()


def test_a_folder_knows_images_of_its_ledger_and_others_by_name_and_key(run: Written) -> None:
    key = run.drawn("5.png", seed=5)
    run.failed("6.png", "out of memory", seed=6)
    write_image(run.folder / "beside.png", {**SETTINGS, "seed": 9})
    Image.new("RGB", (8, 8)).save(run.folder / "plot.png")  # no recipe, so no image of the run
    folder = Folder.read(run.folder)

    assert [record.name for record in folder.drawn] == ["0.png", "1.png", "2.png", "5.png", "beside.png"]
    assert [record.failure for record in folder.failed] == ["out of memory"]
    assert folder.find(key) is folder.find("5.png")
    with pytest.raises(InvalidRequest, match=r"6\.png could not be drawn: out of memory"):
        folder.find("6.png")
    with pytest.raises(InvalidRequest, match="fits 5 images"):
        folder.find("000000")
    with pytest.raises(InvalidRequest, match="is not a folder of images"):
        Folder.read(run.folder / "5.png")


def test_settings_that_no_image_has_are_named(run: Written) -> None:
    folder = Folder.read(run.folder)

    for call in (
        lambda: make_plot(folder, "nope"),
        lambda: make_plot(folder, ""),
        lambda: make_plot(folder, "seed", where={"nope": "1"}),
        lambda: contact_sheet(folder, where={"nope": "1"}),
        lambda: contact_sheet(folder, captions=["seed", "nope"]),
    ):
        with pytest.raises(InvalidRequest, match=r"no image has a setting '(nope|)'; there are: cfg_scale, height"):
            call()
    with pytest.raises(InvalidRequest, match="no image has a value of conventions"):
        make_plot(folder, "conventions")


def test_a_plot_of_values_that_nobody_has_may_be_drawn(run: Written) -> None:
    folder = Folder.read(run.folder)

    plot = make_plot(folder, "cfg_scale=3,4", where={"seed": "2"}, empty=True)

    assert list(plot.missing()) == [{"cfg_scale": 3}, {"cfg_scale": 4}]
    assert ([record.name for record in plot.kept], plot.others) == (["1.png"], ())
    with pytest.raises(InvalidRequest, match="no image has one of the values"):
        make_plot(folder, "cfg_scale=3,4", where={"seed": "2"})


def test_an_image_whose_file_was_removed_is_missing(run: Written) -> None:
    (run.folder / "1.png").unlink()

    plot = make_plot(Folder.read(run.folder), "cfg_scale", "seed")

    assert {(each["cfg_scale"], each["seed"]) for each in plot.missing()} == {(2.5, 2), (10.0, 2)}
    assert len(Folder.read(run.folder).drawn) == 2
    next(plot.sheets()).draw()

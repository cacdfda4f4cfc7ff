"""``diffsynth grid`` and ``diffsynth report``, run as a user does."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from diffsynth.cli import run

SMALL = ["--height", "64", "--width", "64", "--steps", "1"]


@pytest.fixture(scope="module")
def drawn(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    (folder / "job.txt").write_text("a cat\n", "utf-8")
    job = [str(folder / "job.txt"), "-o", str(folder / "out"), "--model", str(models)]
    report = ["--report", str(folder / "report.html")]
    assert run(["batch", *job, *SMALL, *report, "--sweep", "cfg_scale=1,2", "--seed", "1"]) == 0
    return folder / "out"


def test_what_is_missing_is_drawn_once_into_the_folder(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = [str(drawn), "--x", "cfg_scale=1,2,3", "--y", "seed", "-o", str(tmp_path / "plot.png")]
    assert run(["grid", *plot]) == 0
    assert len(list(drawn.glob("*.png"))) == 2
    hatched = (tmp_path / "plot.png").read_bytes()

    assert run(["grid", *plot, "--draw"]) == 0
    assert "drawn: 1 of 1 missing images" in capsys.readouterr().err
    assert run(["grid", *plot, "--draw"]) == 0

    assert "drawn" not in capsys.readouterr().err
    assert len(list(drawn.glob("*.png"))) == 3
    assert (tmp_path / "plot.png").read_bytes() != hatched


def test_a_batch_writes_its_page_when_it_is_asked_for(drawn: Path) -> None:
    page = (drawn.parent / "report.html").read_text("utf-8")

    assert page.count("<figure>") == 2
    assert 'src="out/000000-1.png"' in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--report", "a.pdf"], "a.pdf must end in .html"),
        (["--report", "a.html", "--dry-run"], "--report has no effect here: --dry-run draws nothing"),
        (["--report", "a.html", "-o", "s3://bucket/run"], "a report is written about a folder on this machine"),
    ],
)
def test_a_report_that_cannot_be_written_is_refused_before_anything_is_drawn(
    arguments: list[str], message: str, drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(["batch", str(drawn.parent / "job.txt"), "-o", str(drawn), *arguments])

    assert code == 1
    assert message in capsys.readouterr().err


def test_a_sheet_is_not_written_over_one_of_its_images(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = next(drawn.glob("*.png"))
    before = image.read_bytes()

    for images in ([drawn], [image]):
        assert run(["grid", *map(str, images), "-o", str(image)]) == 1
        assert "is one of the images; choose another name" in capsys.readouterr().err

    assert image.read_bytes() == before


def test_files_become_a_contact_sheet_and_a_folder_a_page(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(path) for path in sorted(drawn.glob("*.png"))]

    assert run(["grid", *files, "--columns", "1", "--cell", "32", "-o", str(tmp_path / "sheet.webp")]) == 0
    assert run(["report", str(drawn), "--embed", "-o", str(tmp_path / "report.html")]) == 0

    with Image.open(tmp_path / "sheet.webp") as sheet:
        assert sheet.height > 2 * 32 > sheet.width - 32
    assert "data:image/webp" in (tmp_path / "report.html").read_text("utf-8")
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "sheet.webp"), str(tmp_path / "report.html")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--y", "seed"], "--y goes with --x"),
        (["--draw"], "--draw or an option of drawing goes with --x"),
        (["--x", "seed", "--columns", "3"], "--columns and --caption are for contact sheets"),
        (
            ["--x", "dtype=float32,float16", "--y", "cfg_scale", "--draw"],
            "dtype is no setting of an image, so what is missing cannot be drawn",
        ),
        (["--where", "seed"], "--where is NAME=VALUE, such as cfg_scale=5, not 'seed'"),
        (["-o", "sheet.gif"], "--output sheet.gif must end in .png, .jpg or .webp"),
        (["-o", "."], "--output . must end in .png"),
        (["--where", "seed=1", "--where", "seed=2"], "--where names seed twice"),
        (["."], "is a folder; name one folder alone, or files"),
    ],
)
def test_what_cannot_be_laid_out_is_one_line(
    arguments: list[str], message: str, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)

    code = run(["grid", str(drawn), "-o", "sheet.png", *arguments])

    err = capsys.readouterr().err
    assert code == 1
    assert message in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.glob("sheet*")) == []

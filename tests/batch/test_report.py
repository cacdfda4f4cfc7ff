"""The page about a run."""

from __future__ import annotations

import re
from collections import Counter
from datetime import datetime, timedelta, timezone
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from PIL import Image

from diffsynth import HunyuanDiTImagePipeline
from diffsynth.batch import run_batch
from diffsynth.batch.report import write_report
from diffsynth.batch.throughput import Throughput, plot, told_rate, told_time
from diffsynth.errors import InvalidRequest
from tests.batch.folders import Written

NASTY = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)> \"quoted\" 'too' {{title}} & \u202eevil\n\x00 line"
)


class Page(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def values(self, tag: str, name: str) -> list[str]:
        return [value for here, attribute, value in self.attributes if (here, attribute) == (tag, name)]

    @property
    def text(self) -> str:
        return "\n".join(self.texts)


@pytest.fixture
def run(out: Path) -> Written:
    written = Written(out)
    for number in range(6):
        written.drawn(f"{number} ä#.png", seed=number, second=10 + number)
    written.failed("6.png", f"NonFiniteResult: {NASTY}", seed=6)
    return written


def test_it_tells_of_images_settings_failures_networks_and_speed(run: Written, tmp_path: Path) -> None:
    page = Page(write_report(run.folder, tmp_path / "report.html", title="My run"))

    assert page.tags["figure"] == 6
    assert page.values("section", "data-names") == ['["seed"]']
    for expected in (
        "My run",
        "a fox",
        "24×16",
        "dit.pt",
        "1111111111111111",
        "float32, cpu",
        "2.13.0",
        "NonFiniteResult",
    ):
        assert expected in page.text
    assert page.tags["svg"] == 1
    assert set(page.values("img", "loading")) == {"lazy"}


def test_images_are_linked_relative_to_the_page_wherever_it_lies(run: Written, tmp_path: Path) -> None:
    home = tmp_path / "pages"
    home.mkdir()

    page = Page(write_report(run.folder, home / "report.html"))

    links = page.values("a", "href")
    assert links[0] == "../out/0%20%C3%A4%23.png"
    assert all((home / unquote(link)).is_file() for link in links)
    assert not [value for _, name, value in page.attributes if name in ("src", "href") and "//" in value]


def test_what_users_wrote_is_text_and_nothing_else(run: Written, tmp_path: Path) -> None:
    plain = Page(write_report(run.folder, tmp_path / "plain.html")).tags
    run.drawn("7.png", prompt=NASTY, negative_prompt=NASTY)

    path = write_report(run.folder, tmp_path / "report.html", title=NASTY)

    page = Page(path)
    assert (page.tags["script"], page.tags["h1"]) == (plain["script"], plain["h1"])
    assert page.tags["img"] == plain["img"] + 1
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert NASTY.replace("\0", "\ufffd") in page.texts
    assert "\0" not in path.read_text("utf-8")
    assert "script-src 'sha256-" in page.values("meta", "content")[3]


def test_without_a_ledger_the_recipes_tell(run: Written, tmp_path: Path) -> None:
    (run.folder / "ledger.jsonl").unlink()

    page = Page(write_report(run.folder, tmp_path / "report.html"))

    assert page.tags["figure"] == 6
    assert page.tags["svg"] == 0


def test_embedded_images_need_no_file_and_archives_are_shown_so(
    pipe: HunyuanDiTImagePipeline, out: Path, tmp_path: Path
) -> None:
    small: dict[str, Any] = {"height": 32, "width": 32, "num_inference_steps": 1, "cfg_scale": 1.0}
    run_batch(pipe, [{"prompt": "a cat", "seed": seed, **small} for seed in range(2)], out, format="tar")

    linked, embedded = (Page(write_report(out, tmp_path / f"{embed}.html", embed=embed)) for embed in (False, True))

    assert linked.tags["figure"] == embedded.tags["figure"] == 2
    assert len(linked.values("img", "src")) == 0
    assert [source[:23] for source in embedded.values("img", "src")] == ["data:image/webp;base64,"] * 2
    assert "pytorch_model_ema.pt" in embedded.text


def test_a_page_of_many_images_stays_small(run: Written, tmp_path: Path) -> None:
    before = write_report(run.folder, tmp_path / "report.html").stat().st_size
    for number in range(7, 57):
        run.drawn(f"{number}.png", seed=number)

    each = (write_report(run.folder, tmp_path / "report.html").stat().st_size - before) / 50

    assert each < 500  # bytes, so that ten thousand images make five megabytes


def test_what_cannot_be_reported_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="has no images, and no ledger"):
        write_report(tmp_path, tmp_path / "report.html")
    with pytest.raises(InvalidRequest, match=r"must end in \.html"):
        write_report(tmp_path, tmp_path / "report.pdf")


def times(*seconds: float) -> list[datetime]:
    start = datetime(2026, 1, 1, tzinfo=timezone.utc)
    return [start + timedelta(seconds=each) for each in seconds]


def test_the_clock_stands_still_while_nobody_draws() -> None:
    one_night = 8 * 3600
    found = Throughput.of(times(1, 2, 3, 4, one_night + 1, one_night + 2), times(5), times(0, one_night))

    assert found.length == 8
    assert found.pauses == ((5.0, one_night - 5.0),)
    assert found.rate == 6 / 8
    assert sum(found.counts()) == 6


def test_a_plot_has_bars_pauses_and_failures() -> None:
    found = Throughput.of(times(*range(1, 50), *range(20_000, 20_050)), times(7), times(0))

    drawn = plot(found)

    assert drawn.count('class="pause"') == drawn.count('class="fail"') == 1
    assert "no work for 5 h 33 min" in drawn
    assert not re.search(r"nan|inf", drawn)
    assert plot(Throughput.of(times(1), [])) == ""


def test_rates_and_times_are_told_in_fitting_units() -> None:
    assert told_rate(2.0) == (2.0, "second")
    assert told_rate(0.1) == (6.0, "minute")
    assert told_rate(0.001) == (3.6, "hour")
    assert [told_time(each) for each in (45, 600, 7200, 9000, 200_000)] == [
        "45 s",
        "10 min",
        "2 h",
        "2 h 30 min",
        "2 days 7 h",
    ]


def test_the_parts_of_the_page_are_in_the_package() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8")

    assert '"diffsynth.batch" = ["report.html", "report.js"]' in text


def test_pictures_keep_their_shape_in_small_copies(run: Written, tmp_path: Path) -> None:
    with Image.open(run.folder / "0 ä#.png") as image:
        assert image.size == (24, 16)

    page = Page(write_report(run.folder, tmp_path / "report.html", embed=True))

    assert page.values("img", "width")[0] == "24"
    assert page.values("img", "height")[0] == "16"


@pytest.mark.parametrize(
    "line",
    [
        {"key": 3, "sha256": "d"},
        {"key": "a", "sha256": "d", "files": "xyz"},
        {"key": "a", "sha256": "d", "files": ["../../secret.png"]},
        {"key": "a", "sha256": "d", "files": ["a.png"], "request": [1]},
        {"key": "a", "sha256": "d", "files": ["a.tar"], "member": 3},
        {"run": 5},
    ],
)
def test_lines_of_a_ledger_that_make_no_sense_are_left_out(run: Written, line: dict[str, Any]) -> None:
    run.line(line)

    page = Page(write_report(run.folder, run.folder / "report.html"))

    assert page.tags["figure"] == 6
    assert "secret" not in page.text


def test_images_whose_files_were_removed_are_told_of(run: Written) -> None:
    (run.folder / "0 ä#.png").unlink()

    page = Page(write_report(run.folder, run.folder / "report.html"))

    assert page.tags["figure"] == 5
    assert "it was drawn, but its file is not there any more" in page.text

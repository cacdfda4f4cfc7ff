"""Words on pictures: lines are broken where they may be, and no character is lost silently."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from diffsynth.errors import InvalidRequest
from diffsynth.pipelines import lettering
from diffsynth.pipelines.lettering import Lettering


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system without fonts, so that only the one inside Pillow is there."""
    monkeypatch.setattr(lettering, "_of_the_system", lambda size: [])
    monkeypatch.delenv("DIFFSYNTH_FONT", raising=False)
    lettering._warn.cache_clear()


def test_lines_are_broken_between_words_or_chinese_characters_and_inside_words_without_end(bare: None) -> None:
    letters = Lettering(14)

    for text in ("a penguin and a snowman", "一只熊猫，蓝色背景", "x" * 60, "a\nfox  on\ta hill"):
        rows = letters.lines(text, 40)
        assert len(rows) > 1
        assert all(letters.width(row) <= 40 for row in rows)
        assert "".join(rows).replace(" ", "") == "".join(text.split())


def test_what_has_no_room_becomes_an_ellipsis(bare: None) -> None:
    letters = Lettering(14)

    rows = letters.lines("one two three four five six seven eight nine ten", 60, 2)

    assert len(rows) == 2
    assert rows[1].endswith("...")
    assert letters.width(rows[1]) <= 60
    assert letters.lines("one", 60, 2) == ["one"]


def test_characters_that_no_font_has_are_told_of_once(bare: None, caplog: pytest.LogCaptureFixture) -> None:
    letters, pen = Lettering(14), ImageDraw.Draw(Image.new("RGB", (50, 20)))

    letters.write(pen, (0, 0), "a fox", "white")
    assert not caplog.text
    for _ in range(2):
        letters.write(pen, (0, 0), "熊猫", "white")

    assert not letters.can_show("熊猫")
    assert caplog.text.count("no font with 熊猫 was found, so boxes stand for it") == 1
    assert "DIFFSYNTH_FONT" in caplog.text


def test_a_file_that_is_no_font_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.ttf").write_text("no font")

    with pytest.raises(InvalidRequest, match=r"a\.ttf is not a font that can be read"):
        Lettering(14, tmp_path / "a.ttf")
    monkeypatch.setenv("DIFFSYNTH_FONT", str(tmp_path / "gone.ttf"))
    with pytest.raises(InvalidRequest, match=r"gone\.ttf is not a font"):
        Lettering(14)

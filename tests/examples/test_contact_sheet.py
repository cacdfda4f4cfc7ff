"""The sheet that `make image` draws."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

from diffsynth.hub import bundled
from diffsynth.pipelines import lettering
from examples import contact_sheet
from examples.contact_sheet import PROMPTS, SHOWN, SIDE, sheet


def test_half_of_the_prompts_are_chinese_and_can_be_told_without_a_chinese_font() -> None:
    chinese = [prompt for prompt in PROMPTS if not prompt.isascii()]

    assert len(PROMPTS) == 12
    assert len(chinese) == 6
    assert "一只獾轻轻嗅着一朵黄色玫瑰" in chinese
    assert [prompt for prompt, english in PROMPTS.items() if english] == chinese
    assert all(english.isascii() for english in PROMPTS.values())


def test_every_picture_is_on_the_sheet_over_its_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lettering, "_of_the_system", lambda size: [])
    pictures = [Image.new("RGB", (SIDE, SIDE), (20 * number, 0, 0)) for number in range(len(PROMPTS))]

    page = sheet(pictures)

    colors = {color for _, color in page.getcolors(1 << 20) or ()}
    assert {(20 * number, 0, 0) for number in range(len(PROMPTS))} <= colors
    assert page.width >= 4 * SHOWN
    assert page.height >= 3 * SHOWN


def test_without_the_model_it_says_so_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled, "_home", lambda: tmp_path / "empty")
    monkeypatch.setattr(sys, "argv", ["contact_sheet.py", "-o", "image.png"])
    monkeypatch.chdir(tmp_path)

    with pytest.raises(SystemExit, match=r"DownloadError: HunyuanDiT-Emoji comes with the package, but 6 of its files"):
        runpy.run_path(str(contact_sheet.__file__), run_name="__main__")

    assert list(tmp_path.iterdir()) == []

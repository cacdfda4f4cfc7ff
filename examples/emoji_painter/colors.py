"""The colours of the backgrounds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Color:
    """A colour with its names; every value of ``rgb`` is 0 to 255."""

    en: str
    zh: str
    rgb: tuple[int, int, int]


# Paler or deeper than the colours the emoji are drawn in, so that a red apple on red can be seen.
COLORS = (
    Color("red", "红色", (178, 34, 40)),
    Color("orange", "橙色", (255, 178, 102)),
    Color("yellow", "黄色", (255, 241, 140)),
    Color("green", "绿色", (150, 214, 150)),
    Color("blue", "蓝色", (120, 176, 240)),
    Color("purple", "紫色", (150, 110, 200)),
    Color("pink", "粉色", (250, 190, 212)),
    Color("white", "白色", (250, 250, 250)),
    Color("gray", "灰色", (150, 154, 160)),
    Color("black", "黑色", (14, 14, 18)),
)

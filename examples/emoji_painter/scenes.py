"""Scenes: one object, or two side by side, on a coloured background; drawn, and told in both languages."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from random import Random

from PIL import Image

from examples.emoji_painter.colors import COLORS, Color
from examples.emoji_painter.glyphs import sized
from examples.emoji_painter.objects import Thing, things, with_article

SIDE = 128
MARGIN = 2
CELL = 16  # objects stand on a grid of so many pixels, those of a patch of latents: a small network learns them sooner
SINGLE_SIZES = (72, 96)  # longer side in pixels
PAIR_SIZES = (56,)
ANY_SIZES = (48, 96)  # least and most, where an outline tells size and place
PAIR_RISE = 16  # pixels that an object of a pair may stand above or below the middle
LANGUAGES = ("en", "zh")
HELD_OUT_PERCENT = 15

Templates = dict[str, tuple[str, ...]]

# a, b: the objects, from left to right, with articles or measure words; A, B: the bare names;
# c: the colour; k: the same with its article.
ONE: Templates = {
    "en": (
        "{a} on {k} background",
        "{a}, {c} background",
        "{A} on {c}",
        "a picture of {a} on {k} background",
        "{k} background with {a}",
        "{c} background, {A}",
    ),
    "zh": (
        "{a}，{c}背景",
        "{a}在{c}背景上",
        "{c}背景上的{a}",
        "{A}，{c}背景",
        "画{a}，背景是{c}",
        "{c}的背景，{a}",
    ),
}
TWO: Templates = {
    "en": (
        "{a} and {b} on {k} background",
        "{a} on the left, {b} on the right, {c} background",
        "on the left {a}, on the right {b}, on {k} background",
        "{b} on the right, {a} on the left, {c} background",
        "{a} to the left of {b}, {c} background",
        "{b} to the right of {a} on {k} background",
        "{A} and {B}, {c} background",
    ),
    "zh": (
        "{a}和{b}，{c}背景",
        "左边{a}，右边{b}，{c}背景",
        "左边是{a}，右边是{b}，背景是{c}",
        "右边{b}，左边{a}，{c}背景",
        "{a}在{b}的左边，{c}背景",
        "{b}在{a}的右边，背景是{c}",
        "{A}和{B}，{c}背景",
    ),
}
# Said without a colour, which is then whatever it is.
ONE_SHORT: Templates = {"en": ("{A}", "{a}", "a picture of {a}"), "zh": ("{A}", "{a}", "画{a}")}
TWO_SHORT: Templates = {
    "en": ("{a} and {b}", "{A} and {B}", "{a} next to {b}", "{a} on the left, {b} on the right"),
    "zh": ("{a}和{b}", "{A}和{B}", "{a}旁边有{b}", "左边{a}，右边{b}"),
}
# An animal on the left and anything on the right, with or without a colour.
MEETING: Templates = {
    "en": ("{a} looking at {b}", "{a} gently sniffing {b}", "{a} sniffing {b}"),
    "zh": ("{a}看着{b}", "{a}轻轻嗅着{b}", "{a}嗅着{b}"),
}
WITH_COLOR = {"en": "{text}, {c} background", "zh": "{text}，{c}背景"}
SHORT_SHARE = 0.15
MEETING_SHARE = 0.25  # of the scenes that begin with an animal
MEETING_SHORT_SHARE = 0.4


@dataclass(frozen=True)
class Placed:
    """An object in a scene: its longer side and the middle of its picture, in pixels."""

    thing: Thing
    size: int
    x: int
    y: int


@dataclass(frozen=True)
class Scene:
    """One or two objects, from left to right, on a background."""

    placed: tuple[Placed, ...]
    color: Color

    @property
    def things(self) -> tuple[Thing, ...]:
        """The objects from left to right."""
        return tuple(each.thing for each in self.placed)

    def moved(self, rng: Random) -> Scene:
        """Return a scene of the same objects and colour with other sizes and positions."""
        return arrange(self.things, self.color, rng)

    def anywhere(self, rng: Random) -> Scene:
        """Return a scene of the same single object and colour, of any size that is seen well and at any place."""
        size = rng.randint(*ANY_SIZES)
        reach = (SIDE - size) // 2 - MARGIN
        x, y = (SIDE // 2 + rng.randint(-reach, reach) for _ in "xy")
        return Scene((Placed(self.things[0], size, x, y),), self.color)

    def draw(self) -> Image.Image:
        """Return the scene as a 128 x 128 RGB picture."""
        picture = Image.new("RGB", (SIDE, SIDE), self.color.rgb)
        for each in self.placed:
            image = sized(each.thing, each.size)
            picture.paste(image, (each.x - image.width // 2, each.y - image.height // 2), image)
        return picture


def arrange(objects: tuple[Thing, ...], color: Color, rng: Random) -> Scene:
    """Return a scene of one object, or of two side by side, each in its half; ``rng`` gives sizes and positions."""
    if len(objects) == 1:
        size = rng.choice(SINGLE_SIZES)
        reach = (SIDE - size) // 2 - MARGIN
        x, y = (SIDE // 2 + _on_grid(reach, rng) for _ in "xy")
        return Scene((Placed(objects[0], size, x, y),), color)
    placed = []
    for thing, middle in zip(objects, (SIDE // 4, SIDE - SIDE // 4), strict=True):
        size = rng.choice(PAIR_SIZES)
        x = middle + _on_grid((SIDE // 2 - size) // 2 - MARGIN, rng)
        placed.append(Placed(thing, size, x, SIDE // 2 + _on_grid(PAIR_RISE, rng)))
    return Scene(tuple(placed), color)


def _on_grid(reach: int, rng: Random) -> int:
    """Return a random step from the middle, of whole cells."""
    return CELL * rng.randint(-(reach // CELL), reach // CELL)


def is_held_out(objects: tuple[Thing, ...], color: Color) -> bool:
    """Tell whether a combination is kept for tests: an object with a colour, or two objects in either order."""
    names = sorted(each.en for each in objects)
    key = " and ".join(names) if len(names) > 1 else f"{names[0]} on {color.en}"
    return int.from_bytes(sha256(key.encode()).digest()[:8], "big") % 100 < HELD_OUT_PERCENT


def random_scene(rng: Random, *, objects: int | None = None, held_out: bool = False) -> Scene:
    """Return a scene of one or two (or ``objects``) objects, of those for training or of those held out."""
    count = objects or rng.choice((1, 2))
    while True:
        chosen, color = tuple(rng.sample(things(), count)), rng.choice(COLORS)
        if is_held_out(chosen, color) == held_out:
            return arrange(chosen, color, rng)


def caption(scene: Scene, language: str, rng: Random, *, complete: bool = False) -> str:
    """Tell a scene in ``en`` or ``zh`` in one of several ways; ``complete`` ones name the colour."""
    pair = len(scene.placed) == 2
    full, short = (TWO[language], TWO_SHORT[language]) if pair else (ONE[language], ONE_SHORT[language])
    brief_share = SHORT_SHARE
    if pair and scene.things[0].kind == "animal" and rng.random() < MEETING_SHARE:
        brief_share = MEETING_SHORT_SHARE
        short = MEETING[language]
        full = tuple(WITH_COLOR[language].replace("{text}", text) for text in short)
    brief = not complete and rng.random() < brief_share
    return fill(rng.choice(short if brief else full), scene, language)


def fill(template: str, scene: Scene, language: str) -> str:
    """Put the names of a scene's objects and of its colour into a template."""
    first, last, color = scene.things[0], scene.things[-1], scene.color
    counted = f"counted_{language}"
    return template.format(
        a=getattr(first, counted),
        b=getattr(last, counted),
        A=getattr(first, language),
        B=getattr(last, language),
        c=getattr(color, language),
        k=with_article(color.en),
    )

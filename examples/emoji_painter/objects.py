"""The things in the scenes: which emoji, what they are called in both languages, and how Chinese counts them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

# (kind, measure word, emoji). Chosen by eye: each is told from every other at 56 pixels.
TABLE = (
    ("animal", "只", "🐼 🦡 🦊 🐯 🐰 🐸 🐵 🐶 🐱 🐢 🦀 🐧 🐤 🦉 🦜 🦩 🦋 🐞 🐌"),
    ("animal", "头", "🦁 🐮 🐷 🐘"),
    ("animal", "匹", "🦓"),
    ("animal", "条", "🐠 🐬"),
    ("plant", "朵", "🌹 🌷 🌻 🌸 🍄"),
    ("plant", "棵", "🌵 🌲 🌴"),
    ("plant", "片", "🍁"),
    ("food", "个", "🍎 🍍 🍉 🍓 🍆 🍔 🍩 🎂 🍦"),
    ("food", "根", "🍌 🥕"),
    ("food", "串", "🍇"),
    ("food", "块", "🍕"),
    ("vehicle", "辆", "🚗 🚕 🚒 🚜"),
    ("vehicle", "架", "✈️"),
    ("vehicle", "枚", "🚀"),
    ("vehicle", "艘", "⛵"),
    ("thing", "个", "🎈 ⚽ ⏰ 🤖 🎃 ⛄"),
    ("thing", "把", "☂️"),
    ("thing", "份", "🎁"),
    ("thing", "顶", "👑"),
    ("thing", "座", "🏠"),
    ("thing", "颗", "⭐ 💎"),
    ("thing", "轮", "🌙"),
)
# Where the package describes the drawing ("tiger face", "deciduous tree") more closely than people do.
ENGLISH = {
    "🎂": "cake",
    "🐤": "chick",
    "🐞": "ladybug",
    "🍦": "ice cream",
    "🌲": "pine tree",
    "🍎": "apple",
    "🍕": "pizza",
    "🎁": "gift",
    "⛄": "snowman",
    "🚗": "car",
    "🎃": "pumpkin",
    "🌙": "moon",
    "💎": "diamond",
}
CHINESE = {
    "🐵": "猴子",
    "🐢": "乌龟",
    "🦀": "螃蟹",
    "🐞": "瓢虫",
    "🍎": "苹果",
    "🍦": "冰淇淋",
    "🎂": "蛋糕",
    "☂️": "雨伞",
    "🌙": "月亮",
    "🎃": "南瓜",
    "💎": "钻石",
    "🏠": "房子",
}
PLURALS = ("grapes",)


def with_article(name: str) -> str:
    """Return an English name with its article."""
    return f"{'some' if name in PLURALS else 'an' if name[0] in 'aeiou' else 'a'} {name}"


@dataclass(frozen=True)
class Thing:
    """An object that scenes are made of; ``en`` is its unique name.

    ``measure`` is the Chinese measure word, and ``tint`` a colour that the font does not have it in.
    """

    char: str
    en: str
    zh: str
    measure: str
    kind: str
    tint: str = ""

    @property
    def counted_en(self) -> str:
        """The name with its article."""
        return with_article(self.en)

    @property
    def counted_zh(self) -> str:
        """The name with "one" and the measure word."""
        return f"一{self.measure}{self.zh}"


@cache
def things() -> tuple[Thing, ...]:
    """Return all objects, with names from the ``emoji`` package.

    Raises:
        SystemExit: the package is not installed.
    """
    try:
        import emoji
    except ImportError:
        raise SystemExit('The names of the emoji are missing: pip install "diffsynth[painter]"') from None
    emoji.config.load_language("zh")

    def name(char: str, language: str, own: dict[str, str]) -> str:
        found = str(emoji.EMOJI_DATA[char][language]).strip(":").replace("_", " ")
        return own.get(char) or found.removesuffix(" face").removesuffix("头").removesuffix("脸")

    found = [
        Thing(char, name(char, "en", ENGLISH), name(char, "zh", CHINESE), measure, kind)
        for kind, measure, chars in TABLE
        for char in chars.split()
    ]
    return (*found, Thing("🌹", "yellow rose", "黄色玫瑰", "朵", "plant", tint="yellow"))


@cache
def thing(en: str) -> Thing:
    """Return the object of an English name."""
    return next(each for each in things() if each.en == en)

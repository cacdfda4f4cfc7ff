"""Wildcards of prompts: ``{red|green}`` is one of these words, ``__animals__`` a line of animals.txt beside the job.

One is chosen, not all are drawn. The number of the row and the seed of the image decide which, so it is the same in
every run and on every machine, and differs from seed to seed. To draw all, sweep over prompts.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

from diffsynth.errors import InvalidRequest, printable

CHOICE = re.compile(r"\{([^{}]*\|[^{}]*)\}|__([A-Za-z0-9][A-Za-z0-9-]*(?:_[A-Za-z0-9-]+)*)__")
DEEPEST = 10  # a line may hold wildcards again, but not for ever


class Wildcards:
    """Fills in the wildcards of prompts.

    Args:
        folder: where the lists of words are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lists: dict[str, list[str]] = {}

    def fill(self, text: str, row: int, seed: int) -> str:
        """Return a prompt with one choice for each wildcard.

        Args:
            text: the prompt.
            row: number of its row.
            seed: of the image.

        Raises:
            InvalidRequest: there is no such list of words, or lists name one another for ever.
        """
        if "|" not in text and "__" not in text:
            return text  # soon said, for a hundred thousand prompts
        for depth in range(DEEPEST):
            if not CHOICE.search(text):
                return text
            places = count()

            def chosen(found: re.Match[str], depth: int = depth, places: Iterator[int] = places) -> str:
                words = found[1].split("|") if found[1] is not None else self._words(found[2])
                return _one_of(words, f"{row} {seed} {depth} {next(places)}")

            text = CHOICE.sub(chosen, text)
        raise InvalidRequest(f"wildcards lead to one another: {printable(text)!r} is still to be filled in.")

    def _words(self, name: str) -> list[str]:
        if name not in self._lists:
            path = self._folder / f"{name}.txt"
            try:
                lines = path.read_text("utf-8-sig").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
                raise InvalidRequest(
                    f"__{name}__ stands for a line of {name}.txt beside the job, which cannot be read ({reason}); "
                    "wildcards=False (--no-wildcards) leaves such words as they are."
                ) from error
            self._lists[name] = [line.strip() for line in lines if line.strip()]
        if not self._lists[name]:
            raise InvalidRequest(f"{name}.txt, of which __{name}__ is a line, has none.")
        return self._lists[name]


def _one_of(words: Sequence[str], where: str) -> str:
    number = int.from_bytes(hashlib.sha256(where.encode()).digest()[:8], "big")
    return words[number % len(words)]

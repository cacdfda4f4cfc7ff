"""Scenes as the trainer takes them: pictures with captions in both languages.

In a training file::

    [data]
    source = "examples.emoji_painter.dataset:scenes"
    arguments = { count = 20000 }
"""

from __future__ import annotations

from random import Random

from diffsynth.training import Example
from examples.emoji_painter.scenes import LANGUAGES, Scene, caption, random_scene


class Scenes:
    """Scenes that are drawn as they are asked for.

    An index fixes the objects and the background; the random numbers fix sizes, positions and wording. Other
    numbers of scenes or seeds give other scenes.

    Args:
        count: number of scenes.
        objects: per scene, 1 or 2; None mixes both in equal parts.
        held_out: whether the combinations are those kept for tests, else those for training.
        wordings: captions per language, the languages by turns.
        seed: of the combinations.
        anywhere: one object of any size at any place, rather than of the usual sizes on the grid.
    """

    def __init__(
        self,
        count: int,
        *,
        objects: int | None = None,
        held_out: bool = False,
        wordings: int = 1,
        seed: int = 0,
        anywhere: bool = False,
    ) -> None:
        self.count, self.objects, self.held_out = count, 1 if anywhere else objects, held_out
        self.wordings, self.seed, self.anywhere = wordings, seed, anywhere

    def __len__(self) -> int:
        return self.count

    def scene(self, index: int, rng: Random) -> Scene:
        """Return the scene of an index; sizes and positions are drawn from ``rng``.

        Raises:
            IndexError: there are fewer scenes.
        """
        if not 0 <= index < self.count:
            raise IndexError(f"scene {index} of {self.count}")
        chosen = random_scene(Random(f"{self.seed} {index}"), objects=self.objects, held_out=self.held_out)
        return chosen.anywhere(rng) if self.anywhere else chosen.moved(rng)

    def __getitem__(self, index: int, rng: Random) -> Example:
        """Return the picture of a scene and its captions: English, Chinese, English, ..."""
        scene = self.scene(index, rng)
        texts = (caption(scene, language, rng) for _ in range(self.wordings) for language in LANGUAGES)
        return Example(scene.draw(), tuple(texts))


def scenes(
    count: int = 20_000,
    *,
    objects: int | None = None,
    held_out: bool = False,
    wordings: int = 1,
    seed: int = 0,
    anywhere: bool = False,
) -> Scenes:
    """Return the data set; the settings are those of `Scenes`."""
    return Scenes(count, objects=objects, held_out=held_out, wordings=wordings, seed=seed, anywhere=anywhere)

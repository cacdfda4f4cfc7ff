"""Why two images are not the same: what differs in recipes, what in pixels, and whether one explains the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image

from diffsynth.batch.images import recipe_of
from diffsynth.batch.records import Folder, Record, facts_beside
from diffsynth.errors import InvalidRequest, printable
from diffsynth.pipelines.comparison import Comparison, compare
from diffsynth.pipelines.differences import SIZES, Difference, Effect, differences
from diffsynth.pipelines.latent_image import LatentImage
from diffsynth.pipelines.recipe import check_recipe, recipe_json

Drawn: TypeAlias = "Image.Image | LatentImage | str | PathLike[str]"

RESIZES = {*SIZES, "input_image", "pipeline", "conventions", "resolution_binning", "hires_strength", "hires_upscale"}


@dataclass(frozen=True)
class Side:
    """One of two images that are compared.

    Args:
        name: for messages.
        image: its values.
        recipe: how it was drawn, or None if that is not known.
        content: the bytes of its file; None for an image in memory.
        lossy: whether its file does not hold the very values that were drawn.
        facts: what a ledger says besides, such as ``rows``, the images that were drawn together.
    """

    name: str
    image: Image.Image | LatentImage
    recipe: dict[str, Any] | None
    content: bytes | None = None
    lossy: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Explanation:
    """What was found out about two images.

    Args:
        names: of both.
        differences: of their recipes, the most important first.
        comparison: of their values.
        same_file: whether the files are equal byte for byte.
        verdict: whether the differences explain what is seen; a sentence or two.
        unknown: names of those that have no recipe.
    """

    names: tuple[str, str]
    differences: tuple[Difference, ...]
    comparison: Comparison
    same_file: bool
    verdict: str
    unknown: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join([f"A  {self.names[0]}", f"B  {self.names[1]}", *self.lines()])

    def lines(self) -> list[str]:
        """Return what was found out, without the names."""
        if self.unknown:
            heads = [f"no recipe in {printable(name, 300)}" for name in self.unknown]
        elif self.differences:
            heads = ["the same in all but:", *(f"  {each}" for each in self.differences)]
        else:
            heads = ["the same recipe"]
        seen = "equal byte for byte" if self.same_file else str(self.comparison)
        return [*heads, f"{'latents' if self.comparison.spread else 'pixels'}: {seen}", self.verdict]


def compare_images(first: Drawn, second: Drawn) -> Explanation:
    """Tell why two images are not the same.

    Args:
        first: an image that a pipeline drew, or the path of a PNG, JPEG, WebP, or of latents.
        second: likewise.

    Returns:
        An explanation; ``print`` shows it.

    Raises:
        InvalidRequest: a file is no picture and no latents, or one is a picture and one latents.
        OSError: a file cannot be read.
    """
    return explain(_side(first, "the first image"), _side(second, "the second image"))


def explain(first: Side, second: Side) -> Explanation:
    """Compare two images that were read already; see ``compare_images``."""
    unknown = tuple(each.name for each in (first, second) if each.recipe is None)
    found: list[Difference] = []
    if first.recipe is not None and second.recipe is not None:
        found = sorted(
            [*differences(first.recipe, second.recipe), *_company(first, second)], key=lambda each: each.effect
        )
    seen = compare(first.image, second.image)
    return Explanation(
        names=(first.name, second.name),
        differences=tuple(found),
        comparison=seen,
        same_file=first.content is not None and first.content == second.content,
        verdict=_verdict(found, seen, first, second),
        unknown=unknown,
    )


def _company(first: Side, second: Side) -> list[Difference]:
    """Compare what only ledgers know."""
    rows = [side.facts.get("rows") for side in (first, second)]
    if None in rows or rows[0] == rows[1]:
        return []
    return [Difference("images drawn together", str(rows[0]), str(rows[1]), Effect.ROUNDING)]


def _side(drawn: Drawn, unnamed: str) -> Side:
    if isinstance(drawn, (Image.Image, LatentImage)):
        return Side(unnamed, drawn, recipe_json(drawn))
    return read_side(Path(drawn))


def read_side(path: Path, name: str | None = None) -> Side:
    """Read an image, or latents, with its recipe and what a ledger beside it says.

    Args:
        path: the file.
        name: what to call it; its path by default.

    Raises:
        InvalidRequest: the file is neither, or has a recipe that this version cannot read.
        OSError: it cannot be read.
    """
    record = Record(path.name, facts=facts_beside(path))
    return side_of(Folder(path.parent, (record,)), record, name or printable(path, 300))


def side_of(folder: Folder, record: Record, name: str | None = None) -> Side:
    """Read an image of a folder; see ``read_side``."""
    name = name or printable(record.name, 300)
    content = folder.content(record)
    image: Any = folder.image(record)
    recipe = image.info.get("recipe") if isinstance(image, LatentImage) else recipe_of(image)
    if recipe is not None:
        try:
            check_recipe(recipe)
        except (ValueError, OverflowError) as error:
            raise InvalidRequest(f"{name} holds a recipe that this version cannot read: {error}.") from error
    form = getattr(image, "format", None)
    lossy = form == "JPEG" or (form == "WEBP" and b"VP8L" not in content[:4096])  # its chunk without loss
    return Side(name, image, recipe, content, lossy, record.facts)


def _verdict(found: Sequence[Difference], seen: Comparison, first: Side, second: Side) -> str:
    changed = [each.name for each in found if each.effect is Effect.IMAGE]
    rounded = [each.name for each in found if each.effect is Effect.ROUNDING]
    unknown = first.recipe is None or second.recipe is None
    if seen.equal:
        return _of_equal(changed or rounded, unknown)
    if unknown:
        return "without both recipes it cannot be said why they differ."
    if not seen.same_size:
        return _of_sizes(changed, first, second)
    if changed:
        return f"explained by {_joined(changed)}."
    return _of_rounding(rounded, seen, first, second)


def _of_equal(differing: Sequence[str], unknown: bool) -> str:
    if unknown:
        return "they are the same picture."
    if differing:
        return f"{_joined(differing)} had no effect on this image."
    return "they are the same image, drawn the same way."


def _of_sizes(changed: Sequence[str], first: Side, second: Side) -> str:
    if resizing := [name for name in changed if name in RESIZES]:
        return f"explained by {_joined(resizing)}."
    return f"no setting explains that: {_resized(first, second) or 'one was resized or cropped after it was drawn'}."


def _of_rounding(rounded: Sequence[str], seen: Comparison, first: Side, second: Side) -> str:
    """Explain different values of images whose recipes say that they are the same."""
    if seen.small:
        if rounded:
            return f"explained by {_joined(rounded)}: the same sums, rounded otherwise."
        rows = None not in (first.facts.get("rows"), second.facts.get("rows"))  # equal ones, or it were a difference
        company = "on another device" if rows else "in another batch size or on another device"
        return f"drawn {company}, most likely: sums in another order are rounded otherwise, which nobody sees."
    lossy = [side.name for side in (first, second) if side.lossy]
    if lossy and seen.spread is None and seen.only_details:
        return f"explained by the compression of {' and '.join(lossy)}, which does not keep the values that were drawn."
    if rounded and seen.only_details:
        return f"explained by {_joined(rounded)}: rounding that grows from step to step."
    also = f" {_joined(rounded)} only {'rounds' if len(rounded) == 1 else 'round'} otherwise." if rounded else ""
    resized = _resized(first, second)
    return (
        f"the recipes do not explain this.{also} Something that is not in them differs: "
        + (f"{resized}, or " if resized else "")
        + "a file was edited after it was drawn, weights were changed in memory, the code of the package was, or an "
        "option of torch (TF32, another attention) on this device."
    )


def _resized(first: Side, second: Side) -> str:
    """Return which images do not have the size that they were drawn in."""
    changed = [side.name for side in (first, second) if _drawn_size(side.recipe) not in (None, side.image.size)]
    return f"{' and '.join(changed)} {'were' if len(changed) > 1 else 'was'} resized or cropped" if changed else ""


def _drawn_size(recipe: Mapping[str, Any] | None) -> tuple[int, int] | None:
    request = (recipe or {}).get("request", {})
    sides = [request.get(f"hires_{name}") or request.get(name) for name in ("width", "height")]
    return (sides[0], sides[1]) if all(isinstance(side, int) for side in sides) else None


def _joined(names: Sequence[str]) -> str:
    unique = list(dict.fromkeys(names))
    if len(unique) > 4:
        return f"{', '.join(unique[:3])} and {len(unique) - 3} more"
    return " and ".join(filter(None, [", ".join(unique[:-1]), unique[-1]]))

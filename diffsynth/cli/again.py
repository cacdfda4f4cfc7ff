"""``diffsynth generate --like``: draw an image again from the recipe in its file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffsynth.cli.pipelines import kind_named
from diffsynth.errors import InvalidRequest, listed
from diffsynth.pipelines.request import HIRES, HIRES_SIZES

if TYPE_CHECKING:
    from diffsynth.core.loaded import LoadedModel
    from diffsynth.manager import ModelManager
    from diffsynth.pipelines.request import ImageRequest


def read_again(like: Path | None, given: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe of an image, with its ``settings`` as ``pipe(...)`` takes them; empty without an image.

    Its ``pictures`` are those of the image that are given anew, as sizes and hashes.

    Args:
        like: the image file, the JSON beside one in an archive, or the latents.
        given: settings that are given anew; the recipe need not have them.

    Raises:
        InvalidRequest: the file has no recipe, or one of another pipeline, or needs pictures that were not given.
    """
    if like is None:
        return {}
    from diffsynth.pipelines.latent_file import SUFFIX, open_latents
    from diffsynth.pipelines.recipe import read_recipe, request_from

    recipe = open_latents(like).info["recipe"] if like.suffix.lower() == SUFFIX else read_recipe(like)
    kind = kind_named(recipe["pipeline"], like)
    replaced: tuple[str, ...] = HIRES_SIZES if any(name in given for name in HIRES_SIZES) else ()  # by a factor, say
    if given.get("hires_scale") == 1:
        replaced = HIRES  # there is no second stage any more
    anew = {name: recipe["request"].pop(name, None) for name in (*given, *replaced)}
    settings = request_from(recipe, kind.request)
    pictures = {name: value for name, value in anew.items() if "sha256" in str(value)}
    return {**recipe, "prompt": settings.pop("prompt"), "settings": settings, "pictures": pictures}


def compare_pictures(request: ImageRequest, recipe: dict[str, Any]) -> None:
    """Say on standard error which pictures of a request are not those that the image was drawn with."""
    from diffsynth.pipelines.recipe import request_json

    given = request_json(request)
    for name, known in recipe.get("pictures", {}).items():
        if given[name] != known:
            print(f"{name}: not what the image was drawn with; it will differ.", file=sys.stderr)


def load_again(manager: ModelManager, recipe: dict[str, Any], dtype: str | None) -> None:
    """Load the networks that a recipe names, each in its dtype unless one is given.

    Raises:
        InvalidRequest: files are not where the recipe says.
        CheckpointError: a file cannot be used.
    """
    import torch

    _check_there(recipe["models"], "--model")
    for model in recipe["models"]:
        files = [file["path"] for file in model["files"]]
        whole = len(files) == 1 or Path(model["path"]).is_dir() or model["path"] not in files
        kept = getattr(torch, dtype or model["dtype"])
        loaded = manager.load_model(model["path"] if whole else files, kind=model["family"], torch_dtype=kept)
        for entry in loaded:
            if not _took_part(entry, recipe["models"]):
                family = [each for each in manager if each.family is entry.family]
                manager.release(entry.family.name, family.index(entry))


def _took_part(entry: LoadedModel[Any], models: list[dict[str, Any]]) -> bool:
    """Whether a recipe names this very network of its file, which may hold others of the kind."""
    known = (entry.family.name, str(entry.path.absolute()), entry.found.prefix)
    return known in {(model["family"], model["path"], model.get("prefix", entry.found.prefix)) for model in models}


def inversions_of(recipe: dict[str, Any]) -> list[tuple[Path, str | None]]:
    """Return the textual inversions that a recipe names, each with its word.

    Raises:
        InvalidRequest: one is not where the recipe says.
    """
    found = [each for each in recipe.get("vocabularies", []) if each["family"] == "textual_inversion"]
    if gone := [each["path"] for each in found if not Path(each["path"]).is_file()]:
        raise InvalidRequest(
            f"textual inversions that the recipe names are not there: {listed(gone)}. "
            "Say where they all are with --textual-inversion WORD=FILE."
        )
    for each in found:
        _compare(Path(each["path"]), {file["sha256"] for file in each["files"]})
    return [(Path(each["path"]), each.get("word")) for each in found]


def vocabulary_of(recipe: dict[str, Any], role: str) -> Path | None:
    """Return the vocabulary that a recipe names, or None if it names none that is still there."""
    for vocabulary in recipe.get("vocabularies", []):
        path = Path(vocabulary["path"])
        if vocabulary["family"] == role and path.is_file():
            _compare(path, {file["sha256"] for file in vocabulary["files"]})
            return path
    return None


def check_adapters(recipe: dict[str, Any]) -> None:
    """Raise InvalidRequest if LoRAs are not where a recipe says."""
    _check_there(recipe.get("adapters", []), "--lora")


def _check_there(sources: list[dict[str, Any]], option: str) -> None:
    named = [Path(file["path"]) for source in sources for file in source["files"]]
    if gone := [path for path in named if not path.exists()]:
        raise InvalidRequest(
            f"files that the recipe names are not there: {listed(gone)}. Say where they are with {option}."
        )


def compare_files(manager: ModelManager, recipe: dict[str, Any]) -> None:
    """Say on standard error which weight files are not those that the image was drawn with."""
    for role, checkpoints in (
        ("models", [entry.checkpoint for entry in manager]),
        ("adapters", [lora.checkpoint for lora in manager.loras]),
    ):
        known = {file["sha256"] for source in recipe.get(role, []) for file in source["files"]}
        for file in (file for checkpoint in checkpoints for file in checkpoint.files):
            _compare(file, known)


def _compare(file: Path, known: set[str | None]) -> None:
    from diffsynth.core.digest import sha256_of

    if known and sha256_of(file) not in known:
        print(f"{file} is not the file that the image was drawn with; it will differ.", file=sys.stderr)

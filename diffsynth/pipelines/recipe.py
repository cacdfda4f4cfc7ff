"""The recipe of an image, written into its PNG: all that is needed to draw it again.

Two text chunks: ``parameters`` in the wording of AUTOMATIC1111's web page, which many programs read, and
``diffsynth`` as JSON.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from diffsynth import __version__
from diffsynth.core.digest import sha256_of
from diffsynth.core.files import replacing
from diffsynth.core.formats.content import FileStamp
from diffsynth.core.loaded import LoadedModel
from diffsynth.errors import InvalidRequest, printable
from diffsynth.pipelines.request import ImageRequest

logger = logging.getLogger(__name__)

JSON_CHUNK, TEXT_CHUNK = "diffsynth", "parameters"
PICTURES = ("input_image", "masks")


@dataclass(frozen=True)
class Source:
    """Files that an image was made with: of a network, or a vocabulary. Plain values that hold no network.

    Args:
        role: a network's family, or what a vocabulary is for.
        path: what the user named.
        files: the files as they were when they were opened.
        facts: more that is known, such as layout and dtype.
    """

    role: str
    path: Path
    files: tuple[FileStamp, ...]
    facts: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of_model(cls, model: LoadedModel[Any]) -> Source:
        """Describe a loaded network."""
        facts = {
            "layout": model.found.layout.name,
            "prefix": model.found.prefix,
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": model.device.type,
        }
        return cls(model.family.name, model.path, model.checkpoint.stamps, tuple(facts.items()))

    @classmethod
    def of_file(cls, role: str, path: Path) -> Source:
        """Describe a file that is not a checkpoint.

        Raises:
            OSError: there is no such file.
        """
        return cls(role, path, (FileStamp.of(path, path.stat()),))

    def as_json(self) -> dict[str, Any]:
        """Return plain values, with the sha256 of every file that is still what it was, else null."""
        files = [{"path": str(file.path), "sha256": _sha256(file)} for file in self.files]
        return {"family": self.role, "path": str(self.path), **dict(self.facts), "files": files}


def _sha256(file: FileStamp) -> str | None:
    try:
        if FileStamp.of(file.path, file.path.stat()) == file:
            return sha256_of(file.path)
        reason = "it was changed"
    except OSError as error:
        reason = error.strerror or type(error).__name__
    logger.warning("the recipe has no hash of %s: %s since the image was drawn", file.path, reason)
    return None


@dataclass(frozen=True)
class Recipe:
    """What an image was made of.

    Args:
        pipeline: the name of the pipeline's class.
        settings: of the pipeline, such as its conventions.
        request: the complete request.
        models: the networks that took part, the denoiser first.
        vocabularies: of the tokenizers, where they are files of their own.
    """

    pipeline: str
    settings: dict[str, Any]
    request: ImageRequest
    models: tuple[Source, ...]
    vocabularies: tuple[Source, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the recipe as plain values; files are hashed now, unless their hash is remembered."""
        return {
            "version": 1,
            "diffsynth": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "pipeline": self.pipeline,
            **self.settings,
            "request": {name: _plain(getattr(self.request, name)) for name in self.request.settings()},
            "models": [model.as_json() for model in self.models],
            "vocabularies": [vocabulary.as_json() for vocabulary in self.vocabularies],
        }

    def as_text(self) -> str:
        """Return the recipe in the wording of AUTOMATIC1111's web page."""
        request = self.request
        lines = [request.prompt]
        if request.negative_prompt:
            lines.append(f"Negative prompt: {request.negative_prompt}")
        facts: dict[str, Any] = {
            "Steps": request.num_inference_steps,
            "Sampler": request.scheduler,
            "CFG scale": request.cfg_scale,
            "Seed": request.seed,
            "Size": f"{request.width}x{request.height}",
        }
        if self.models:
            first = self.models[0]
            if digest := _sha256(first.files[0]):
                facts["Model hash"] = digest[:10]
            facts["Model"] = first.path.stem
        if request.input_image is not None:
            facts["Denoising strength"] = request.denoising_strength
        facts["Version"] = f"diffsynth {__version__}"
        lines.append(", ".join(f"{name}: {value}" for name, value in facts.items()))
        return "\n".join(lines)


def _plain(value: Any) -> Any:
    """Return a value as JSON can hold it; a picture becomes its size and the hash of its pixels."""
    if isinstance(value, Image.Image):
        digest = hashlib.sha256(value.convert("RGBA").tobytes()).hexdigest()
        return {"size": list(value.size), "sha256": digest}
    if isinstance(value, (tuple, list)):
        return [_plain(each) for each in value]
    return value


def attach(image: Image.Image, recipe: Recipe) -> None:
    """Give an image its recipe and its seed, as ``image.info["recipe"]`` and ``image.info["seed"]``."""
    image.info["recipe"] = recipe
    image.info["seed"] = recipe.request.seed


def save_image(image: Image.Image, path: str | PathLike[str]) -> Path:
    """Write an image with its recipe as a PNG file.

    The file appears under its name only when it is whole and on the disk.

    Args:
        image: one that a pipeline drew; any other is written without a recipe.
        path: the file, ending in .png; replaced if it exists.

    Returns:
        The path.

    Raises:
        InvalidRequest: the path does not end in .png.
        OSError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise InvalidRequest(f"{printable(path)} must end in .png: the recipe is kept in that format.")
    chunks = PngInfo()
    recipe = image.info.get("recipe")
    if isinstance(recipe, Recipe):
        chunks.add_itxt(TEXT_CHUNK, recipe.as_text())
        chunks.add_itxt(JSON_CHUNK, json.dumps(recipe.as_json(), ensure_ascii=False))
    with replacing(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=chunks)
    return path


def read_recipe(path: str | PathLike[str]) -> dict[str, Any]:
    """Return the JSON recipe inside a PNG file.

    Raises:
        InvalidRequest: the file is no image, or has no recipe of ours.
        OSError: the file cannot be read.
    """
    try:
        with Image.open(path) as image:
            recipe = json.loads(image.info[JSON_CHUNK])
    except (KeyError, ValueError, TypeError, UnidentifiedImageError) as error:
        raise InvalidRequest(
            f"{printable(path, 300)} holds no diffsynth recipe; only PNG files that diffsynth wrote have one."
        ) from error
    if not isinstance(recipe, dict) or recipe.get("version") != 1 or not isinstance(recipe.get("request"), dict):
        raise InvalidRequest(f"{printable(path, 300)} holds a recipe that this version cannot read.")
    return recipe


def request_from(recipe: dict[str, Any], request_type: type[ImageRequest]) -> dict[str, Any]:
    """Return every setting of a recipe, as ``pipe(...)`` takes them.

    Raises:
        InvalidRequest: the image was made from pictures, which a recipe does not hold.
    """
    known = request_type.settings()
    settings = {name: value for name, value in recipe["request"].items() if name in known}
    pictures = [name for name in PICTURES if settings.get(name)]
    if pictures:
        raise InvalidRequest(f"the image was made from other pictures ({', '.join(pictures)}); give them again.")
    return {name: value for name, value in settings.items() if name not in PICTURES}

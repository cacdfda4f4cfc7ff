"""The recipe of an image, written into its PNG: all that is needed to draw it again.

Two text chunks: ``parameters`` in the wording of AUTOMATIC1111's web page, which many programs read, and
``diffsynth`` as JSON.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile, PngInfo
from PIL.WebPImagePlugin import WebPImageFile

from diffsynth import __version__
from diffsynth.core.checkpoint import Checkpoint
from diffsynth.core.digest import sha256_of
from diffsynth.core.files import replacing
from diffsynth.core.formats.content import FileStamp
from diffsynth.core.loaded import LoadedModel
from diffsynth.errors import InvalidRequest, listed, printable
from diffsynth.pipelines.latent_image import LatentImage
from diffsynth.pipelines.pictures import DAMAGED, eight_bits, open_file
from diffsynth.pipelines.request import ImageRequest

logger = logging.getLogger(__name__)

JSON_CHUNK, TEXT_CHUNK = "diffsynth", "parameters"
DESCRIPTION = 0x010E  # the tag of EXIF, in JPEG and WebP
IMAGES: Mapping[bytes, Callable[[BinaryIO], Image.Image]] = {  # by their first bytes
    b"\x89PN": PngImageFile,
    b"\xff\xd8\xff": JpegImageFile,
    b"RIF": WebPImageFile,
}
PICTURES = ("input_image", "mask_image", "masks", "controlnet_images", "ipadapter_images")


@dataclass(frozen=True)
class Source:
    """Files that an image was made with: of a network, a vocabulary or a LoRA. Plain values that hold no network.

    Args:
        role: a network's family, what a vocabulary is for, or what changes networks.
        path: what the user named, made absolute.
        files: the files as they were when they were opened.
        facts: more that is known, such as layout and dtype.
    """

    role: str
    path: Path
    files: tuple[FileStamp, ...]
    facts: tuple[tuple[str, str | float | bool], ...] = ()

    @classmethod
    def of_model(cls, model: LoadedModel[Any]) -> Source:
        """Describe a loaded network."""
        facts: dict[str, str | float | bool] = {
            "layout": model.found.layout.name,
            "prefix": model.found.prefix,
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": model.device.type,
        }
        return cls._of_checkpoint(model.family.name, model.checkpoint, facts)

    @classmethod
    def of_adapters(cls, models: Iterable[LoadedModel[Any]]) -> tuple[Source, ...]:
        """Describe what changes loaded networks, such as LoRAs, each once, as it is now."""
        adapters = dict.fromkeys(adapter for model in models for adapter in model.adapters)
        found = ((adapter.checkpoint, adapter.describe()) for adapter in adapters)
        return tuple(cls._of_checkpoint(str(facts.pop("kind")), checkpoint, facts) for checkpoint, facts in found)

    @classmethod
    def _of_checkpoint(cls, role: str, checkpoint: Checkpoint, facts: Mapping[str, str | float | bool]) -> Source:
        stamps = tuple(replace(stamp, path=stamp.path.absolute()) for stamp in checkpoint.stamps)
        return cls(role, checkpoint.path.absolute(), stamps, tuple(facts.items()))

    @classmethod
    def of_file(cls, role: str, path: Path, **facts: str) -> Source:
        """Describe a file that is no network; ``facts`` are more that is known.

        Raises:
            OSError: there is no such file.
        """
        path = path.absolute()
        return cls(role, path, (FileStamp.of(path, path.stat()),), tuple(facts.items()))

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
        adapters: what changed the networks, such as LoRAs, in the order in which that came.
    """

    pipeline: str
    settings: dict[str, Any]
    request: ImageRequest
    models: tuple[Source, ...]
    vocabularies: tuple[Source, ...] = ()
    adapters: tuple[Source, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the recipe as plain values; files are hashed now, unless their hash is remembered."""
        return {
            "version": 1,
            "diffsynth": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "pipeline": self.pipeline,
            **self.settings,
            "request": request_json(self.request),
            "models": [model.as_json() for model in self.models],
            "vocabularies": [vocabulary.as_json() for vocabulary in self.vocabularies],
            "adapters": [adapter.as_json() for adapter in self.adapters],
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
            facts["Model"] = printable(first.path.stem, 200)
        if request.enlarges:
            facts["Hires resize"] = f"{request.hires_width}x{request.hires_height}"
            facts["Hires steps"] = request.hires_steps
            facts["Hires upscaler"] = "Latent" if request.hires_upscale == "latent" else "Lanczos"
            facts["Denoising strength"] = request.hires_strength
        elif request.input_image is not None:
            facts["Denoising strength"] = request.denoising_strength
        facts["Version"] = f"diffsynth {__version__}"
        lines.append(", ".join(f"{name}: {value}" for name, value in facts.items()))
        return "\n".join(lines).encode("utf-8", "backslashreplace").decode()


def request_json(request: ImageRequest) -> dict[str, Any]:
    """Return every setting of a request as plain values; a picture becomes its size and the hash of its pixels."""
    return {name: _plain(getattr(request, name)) for name in request.settings()}


def _plain(value: Any) -> Any:
    """Return a value as JSON can hold it; a picture becomes its size and the hash of its pixels.

    Latents become the same, and the recipe that they were drawn with.
    """
    if isinstance(value, LatentImage):
        digest = hashlib.sha256(value.values.float().cpu().contiguous().numpy().tobytes()).hexdigest()
        return {"size": list(value.size), "latents_sha256": digest, "recipe": recipe_json(value)}
    if isinstance(value, Image.Image):
        digest = hashlib.sha256(eight_bits(value).convert("RGBA").tobytes()).hexdigest()
        return {"size": list(value.size), "sha256": digest}
    if isinstance(value, (tuple, list)):
        return [_plain(each) for each in value]
    return value


def recipe_json(image: Image.Image | LatentImage) -> dict[str, Any] | None:
    """Return the recipe of an image that a pipeline drew, as plain values; None for any other image."""
    recipe = image.info.get("recipe")
    return recipe.as_json() if isinstance(recipe, Recipe) else recipe


def drawn_with(image: Image.Image | LatentImage, sources: Sequence[Source]) -> bool:
    """Whether an image's recipe names the files of one of the sources, which are hashed for it."""
    recipe = image.info.get("recipe")
    if isinstance(recipe, Recipe) and any(source.files == each.files for source in sources for each in recipe.models):
        return True
    found = recipe_json(image)
    known = [_hashes(model) for model in found["models"]] if found else []
    return any(None not in hashes and hashes in known for hashes in (_hashes(each.as_json()) for each in sources))


def _hashes(source: Mapping[str, Any]) -> list[str | None]:
    return [file["sha256"] for file in source["files"]]


def attach(image: Image.Image | LatentImage, recipe: Recipe) -> None:
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
    recipe = image.info.get("recipe")
    chunks = png_chunks(recipe) if isinstance(recipe, Recipe) else PngInfo()
    with replacing(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=chunks)
    return path


def png_chunks(recipe: Recipe, **more: str) -> PngInfo:
    """Return the text chunks that keep a recipe in a PNG file; ``more`` is added to its JSON."""
    chunks = PngInfo()
    chunks.add_itxt(TEXT_CHUNK, recipe.as_text())
    chunks.add_itxt(JSON_CHUNK, json.dumps({**recipe.as_json(), **more}))  # ASCII: a path need not be UTF-8
    return chunks


def read_recipe(path: str | PathLike[str]) -> dict[str, Any]:
    """Return the JSON recipe inside an image file, or beside it; everything but the values of its request was checked.

    Raises:
        InvalidRequest: the file has no recipe of ours, or one that was changed by hand.
        OSError: the file cannot be read.
    """
    name = printable(path, 300)
    with open_file(path) as stream:
        try:
            recipe = json.loads(_recipe_text(stream))
        except (OSError, *DAMAGED) as error:
            raise InvalidRequest(
                f"{name} holds no diffsynth recipe; only files that diffsynth wrote have one: PNG, JPEG, WebP, "
                "and the JSON beside an image of an archive."
            ) from error
    try:
        check_recipe(recipe)
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(f"{name} holds a recipe that this version cannot read: {error}.") from error
    return dict(recipe)


def _recipe_text(stream: BinaryIO) -> str | bytes:
    start = stream.read(4)
    stream.seek(0)
    if start.startswith(b"{"):
        return stream.read()
    with IMAGES[start[:3]](stream) as image:  # not Image.open, which refuses large images; no pixel is decoded
        return str(image.info.get(JSON_CHUNK) or image.getexif()[DESCRIPTION])


def check_recipe(recipe: Any) -> None:
    """Raise ValueError, with the reason, unless a recipe has the form that ``Recipe.as_json`` gives it."""
    recipe = _of_kind(recipe, dict, "it")
    if recipe.get("version") != 1:
        raise ValueError(f"its version is {printable(recipe.get('version'))}, not 1")
    _of_kind(recipe.get("pipeline"), str, "pipeline")
    for name in ("conventions", "prediction"):
        _of_kind(recipe.get(name, ""), str, name)
    for name in ("zero_terminal_snr", "refined"):
        if not isinstance(recipe.get(name, False), bool):
            raise ValueError(f"{name} is {printable(repr(recipe[name]))}")
    for name in ("beta_end", "latent_scale"):
        if not math.isfinite(_of_kind(recipe.get(name, 1.0), (int, float), name)):
            raise ValueError(f"its {name} is not finite")
    request = _of_kind(recipe.get("request"), dict, "request")
    _of_kind(request.get("prompt"), str, "prompt")
    _of_kind(request.get("seed"), int, "seed")
    for model in _of_kind(recipe.get("models"), list, "models"):
        _check_source(model, "models")
        dtype = _of_kind(model.get("dtype"), str, "models: dtype")
        if not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise ValueError(f"torch has no dtype {printable(dtype)!r}")
    for vocabulary in _of_kind(recipe.get("vocabularies", []), list, "vocabularies"):
        _check_source(vocabulary, "vocabularies")
    for adapter in _of_kind(recipe.get("adapters", []), list, "adapters"):
        _check_source(adapter, "adapters")
        if adapter["family"] != "lora":
            raise ValueError(f"adapters: {printable(adapter['family'])} is not known")
        if not math.isfinite(_of_kind(adapter.get("scale"), (int, float), "adapters: scale")):
            raise ValueError("its adapters: scale is not finite")


def _check_source(source: Any, where: str) -> None:
    source = _of_kind(source, dict, where)
    for name in ("family", "path"):
        _of_kind(source.get(name), str, f"{where}: {name}")
    files = _of_kind(source.get("files"), list, f"{where}: files")
    if not files:
        raise ValueError(f"its {where}: files is empty")
    for file in files:
        file = _of_kind(file, dict, f"{where}: files")
        _of_kind(file.get("path"), str, f"{where}: files: path")
        _of_kind(file.get("sha256"), (str, type(None)), f"{where}: files: sha256")


def _of_kind(value: Any, kinds: type | tuple[type, ...], name: str) -> Any:
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise ValueError(f"{name} is {'missing' if value is None else printable(repr(value))}")
    return value


def request_from(recipe: Mapping[str, Any], request_type: type[ImageRequest]) -> dict[str, Any]:
    """Return every setting of a recipe, as ``pipe(...)`` takes them.

    Raises:
        InvalidRequest: the image was made from pictures, which a recipe does not hold, or with settings that the
            request does not have.
    """
    settings = recipe["request"]
    if unknown := [name for name in settings if name not in request_type.settings()]:
        raise InvalidRequest(f"the recipe has settings that this version does not know: {listed(unknown)}.")
    pictures = [name for name in PICTURES if settings.get(name)]
    if pictures:
        raise InvalidRequest(f"the image was made from other pictures ({', '.join(pictures)}); give them again.")
    return {name: value for name, value in settings.items() if name not in PICTURES}

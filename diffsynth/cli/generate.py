"""``diffsynth generate``: draw images from a prompt, or draw one again from its own recipe.

The options for settings are made from the fields of the request, so a new setting needs no line here.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffsynth.cli.again import check_adapters, compare_files, inversions_of, load_again, read_again, vocabulary_of
from diffsynth.cli.networks import (
    T5,
    Clip,
    Clip2,
    Controlnets,
    Denoiser,
    Inversions,
    Lora,
    LoraPartly,
    Loras,
    Prediction,
    Refiner,
    RefinerName,
    Vae,
    ZeroTerminalSnr,
    chosen_networks,
    chosen_refiner,
    index_or_name,
    inversions_named,
    loras_named,
    loras_of,
)
from diffsynth.cli.options import Debug, Dtype, Kinds, Verbose, dtype_named, expanded
from diffsynth.cli.pipelines import USUAL, Kind, all_settings, kind_named, kind_of
from diffsynth.cli.stopping import stopping
from diffsynth.errors import InvalidRequest, printable

if TYPE_CHECKING:
    from PIL.Image import Image

    from diffsynth.manager import ModelManager
    from diffsynth.pipelines.request import ImageRequest

OUTPUTS = (".png", ".safetensors")

# Types of request fields → types that the command line can read; pictures are given as files.
OPTION_TYPES: dict[str, Any] = {
    "str | None": str | None,
    "int | None": int | None,
    "float | None": float | None,
    "bool | None": bool | None,
    "int": int | None,
    "float": float | None,
    "bool": bool | None,
    "Image | None": Path | None,
    "Image | LatentImage | None": Path | None,
    "tuple[str, ...]": list[str] | None,
    "tuple[float, ...]": list[float] | None,
    "tuple[int, ...]": tuple[int, int] | None,
    "tuple[Image, ...]": list[Path] | None,
}
SHORT = {
    "num_inference_steps": "--steps",
    "local_prompts": "--local-prompt",
    "masks": "--mask",
    "mask_scales": "--mask-scale",
    "controlnet_images": "--controlnet-image",
    "controlnet_scales": "--controlnet-scale",
    "controlnet_starts": "--controlnet-start",
    "controlnet_ends": "--controlnet-end",
    "controlnet_processors": "--controlnet-processor",
    "controlnet_types": "--controlnet-type",
}


def generate(
    files: Annotated[list[Path] | None, typer.Argument(metavar="[FILE...]", help="More checkpoint files.")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="What to draw; repeat for several images.")] = None,
    model: Annotated[list[Path] | None, typer.Option(help="Checkpoint file or folder; repeat for each.")] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A .png file, or .safetensors for latents; several get numbers.")
    ] = Path("image.png"),
    like: Annotated[
        Path | None, typer.Option(help="Draw a PNG, or latents, of ours again; other options change it.")
    ] = None,
    num_images: Annotated[int, typer.Option(min=1, help="Images of each prompt.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Images that are drawn together.")] = 1,
    conventions: Annotated[str | None, typer.Option(help="diffsynth, diffusers, original, sgm or turbo.")] = None,
    beta_end: Annotated[float | None, typer.Option(help="Last beta of the noise schedule.")] = None,
    denoiser: Denoiser = None,
    clip: Clip = None,
    clip_2: Clip2 = None,
    t5: T5 = None,
    vae: Vae = None,
    controlnets: Controlnets = None,
    refiner: Refiner = None,
    refiner_name: RefinerName = None,
    prediction: Prediction = None,
    zero_terminal_snr: ZeroTerminalSnr = None,
    textual_inversion: Inversions = None,
    lora: Loras = None,
    lora_partly: LoraPartly = False,
    clip_tokenizer: Annotated[Path | None, typer.Option(help="vocab.txt, vocab.json, or its folder.")] = None,
    t5_tokenizer: Annotated[Path | None, typer.Option(help="spiece.model or its folder.")] = None,
    device: Annotated[str | None, typer.Option(help="cuda, mps, cpu; the best there is by default.")] = None,
    dtype: Dtype = None,
    kinds: Kinds = None,
    verbose: Verbose = False,
    debug: Debug = False,
    **settings: Any,
) -> None:
    """Draw images with HunyuanDiT, Stable Diffusion or SDXL, whichever the files hold.

    Without --model the files that download_models(["HunyuanDiT"]) puts under models/ are taken.
    """
    if like is None and not prompt:
        raise InvalidRequest("give a --prompt, or an image to draw again with --like.")
    if output.suffix.lower() not in OUTPUTS:
        raise InvalidRequest(
            f"--output {printable(output, 300)} must end in .png: the recipe is kept in that format; "
            "or in .safetensors, for latents that another pipeline goes on with."
        )
    given = _given(settings)
    recipe = read_again(like, given)
    conventions = conventions or recipe.get("conventions", "diffsynth")
    beta_end = recipe.get("beta_end") if beta_end is None else beta_end
    call = {**recipe.get("settings", {}), **given}
    call.setdefault("seed", secrets.randbelow(2**32))
    paths = [*(model or []), *(files or [])]
    named = chosen_networks({"denoiser": denoiser, "clip": clip, "clip_2": clip_2, "t5": t5, "vae": vae})
    kind = (
        kind_named(recipe["pipeline"], like)
        if recipe
        else kind_of(expanded(paths, kinds), named["denoiser"])
        if paths
        else USUAL
    )
    options: dict[str, Any] = {**named, "beta_end": beta_end, "prediction": prediction or recipe.get("prediction")}
    options["controlnets"] = [index_or_name(name) for name in controlnets] if controlnets else None
    wanted = chosen_refiner(refiner, refiner_name)
    options["refiner"] = recipe.get("refined") if wanted is None else wanted
    options["zero_terminal_snr"] = recipe.get("zero_terminal_snr") if zero_terminal_snr is None else zero_terminal_snr
    options |= {"clip_tokenizer": clip_tokenizer, "t5_tokenizer": t5_tokenizer}
    inversions = inversions_named(textual_inversion) if textual_inversion else inversions_of(recipe)
    if lora_partly and not lora:
        raise InvalidRequest("--lora-partly goes with --lora.")
    if not lora:
        check_adapters(recipe)
    loras = loras_named(lora, strict=not lora_partly) if lora else loras_of(recipe)
    kind.check_options(options, inversions, tuple(given))
    requests = _requests(kind, prompt or [recipe["prompt"]], num_images, call, conventions, options)
    outputs = [output]
    if len(requests) > 1:
        outputs = [output.with_stem(f"{output.stem}-{number + 1:04d}") for number in range(len(requests))]
    for path in outputs:
        _check_output(path)
    from diffsynth.pipelines.latent_file import save_latents
    from diffsynth.pipelines.recipe import save_image

    latent = output.suffix.lower() != ".png"
    save: Callable[[Any, Path], Path] = save_latents if latent else save_image
    call["output_type"] = "latent" if latent else "pil"
    manager = _load(paths, recipe, device, dtype, kinds, loras)
    for role in ("clip_tokenizer", "t5_tokenizer"):
        options[role] = options[role] or vocabulary_of(recipe, role)
    pipe = kind.make(manager, conventions, options, inversions)
    pipe.latent_scale = recipe.get("latent_scale", pipe.latent_scale)
    with stopping() as callback:
        for start in range(0, len(requests), batch_size):
            part = requests[start : start + batch_size]
            call["seed"] = [request.seed for request in part]
            images = pipe([request.prompt for request in part], batch_size=batch_size, callback=callback, **call)
            for path, image in zip(outputs[start : start + batch_size], images, strict=True):
                print(f"{save(image, path)}  {_summary(image)}")


def _requests(
    kind: Kind,
    prompts: list[str],
    count: int,
    settings: dict[str, Any],
    conventions: str,
    options: dict[str, Any],
) -> list[ImageRequest]:
    """Return a request per image; every setting that needs no network is checked here, before any is loaded."""
    from diffsynth.pipelines import hires
    from diffsynth.pipelines.calls import make_requests
    from diffsynth.pipelines.hires import no_noise
    from diffsynth.schedulers.catalog import make_scheduler

    chosen = kind.conventions(conventions)
    requests: list[ImageRequest] = make_requests(kind.request, prompts, count, {**settings})
    name = requests[0].scheduler or chosen.scheduler
    beta_end, prediction = options["beta_end"], options["prediction"]
    scheduler = make_scheduler(
        chosen.samplers.get(name, name),
        beta_start=0.00085,  # any schedule does, unless one is asked for
        beta_end=0.012 if beta_end is None else beta_end,
        prediction=prediction or "velocity",
        spacing=requests[0].spacing,
        zero_terminal_snr=bool(options["zero_terminal_snr"]),
    )
    steps = requests[0].num_inference_steps or chosen.num_inference_steps
    scheduler.start(steps, denoising_strength=requests[0].denoising_strength, draw_noise=no_noise)
    hires.check(replace(requests[0], num_inference_steps=steps), scheduler)
    return requests


def _check_output(path: Path) -> None:
    """Make sure, before anything is loaded, that an image can be written.

    Raises:
        InvalidRequest: it cannot.
        OSError: it cannot, for a reason that the system gives, such as a name that is too long.
    """
    name = printable(path, 300)
    with suppress(FileNotFoundError, NotADirectoryError):
        if not stat.S_ISREG(path.stat().st_mode):
            raise InvalidRequest(f"--output {name} is a folder or no regular file; name a PNG file.")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise InvalidRequest(f"--output {name} cannot be written: {printable(folder, 300)} is not a folder.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InvalidRequest(
            f"--output {name} cannot be written: no permission to write into {printable(folder, 300)}."
        )


def _summary(image: Image) -> str:
    """Return what was chosen for an image, in one line."""
    recipe = image.info["recipe"]
    request = recipe.request
    facts = [f"seed {request.seed}", f"{image.width}x{image.height}"]
    facts += [f"{request.scheduler}, {request.num_inference_steps} steps", f"cfg_scale {request.cfg_scale}"]
    facts += [f"{name} {value}" for name, value in recipe.settings.items()]
    return ", ".join(facts)


def _with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option for each field of the request but the prompt."""
    own = signature(command, eval_str=True)
    fixed = [each for each in own.parameters.values() if each.kind is not each.VAR_KEYWORD]
    options = []
    for name, field in all_settings().items():
        if name == "prompt":
            continue
        names = [SHORT[name]] if name in SHORT else []
        names.append("--" + name.replace("_", "-"))
        if str(field.type).startswith("bool"):
            names = [f"{names[-1]}/--no-{names[-1][2:]}"]
        usual = "" if field.default in (None, (), False) else f" Usually {field.default}."
        option = typer.Option(*names, help=field.metadata["help"] + usual, show_default=False)
        kind: Any = Annotated[OPTION_TYPES[str(field.type)], option]
        options.append(Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=kind))
    command.__signature__ = own.replace(parameters=[*fixed, *options])  # type: ignore[attr-defined]
    return command


_with_settings(generate)


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that were given, pictures opened."""
    fields = all_settings()
    return {
        name: _opened(value) if "Image" in str(fields[name].type) else value
        for name, value in settings.items()
        if value is not None and value != []
    }


def _opened(value: Path | list[Path]) -> Any:
    from diffsynth.pipelines.latent_file import SUFFIX, open_latents
    from diffsynth.pipelines.pictures import open_picture

    if isinstance(value, Path) and value.suffix.lower() == SUFFIX:
        return open_latents(value)
    return [open_picture(path) for path in value] if isinstance(value, list) else open_picture(value)


def _load(
    paths: list[Path],
    recipe: dict[str, Any],
    device: str | None,
    dtype: str | None,
    kinds: list[str] | None,
    loras: list[Lora],
) -> ModelManager:
    """Load the files that were named, those of a recipe, or those of the catalogue."""
    import torch

    from diffsynth.hub.download import download_models
    from diffsynth.manager import ModelManager

    wanted = dtype_named(dtype)
    manager = ModelManager(device=device)
    manager.torch_dtype = wanted or (torch.float32 if manager.device.type == "cpu" else torch.float16)
    if recipe and not paths:
        if kinds:
            raise InvalidRequest("--as says what a file holds; with --like, name the files with --model too.")
        load_again(manager, recipe, dtype)
    else:
        parts = expanded(paths or download_models(["HunyuanDiT"]), kinds)
        for path, kind in parts:
            manager.load_model(path, kind=kind)
    for lora in loras:
        lora.load(manager)
    compare_files(manager, recipe)
    return manager

"""``diffsynth generate``: draw images from a prompt, or draw one again from its own recipe.

The options for settings are made from the fields of the request, so a new setting needs no line here.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffsynth.cli.again import compare_pictures, read_again
from diffsynth.cli.choice import OPTIONS, Choice, choose, with_options
from diffsynth.cli.options import Debug, Verbose, check_file
from diffsynth.cli.settings import given_settings, setting_options
from diffsynth.cli.stopping import stopping
from diffsynth.errors import InvalidRequest, printable

if TYPE_CHECKING:
    from PIL.Image import Image

    from diffsynth.pipelines.request import ImageRequest

OUTPUTS = (".png", ".safetensors")


def generate(
    files: Annotated[list[Path] | None, typer.Argument(metavar="[FILE...]", help="More checkpoint files.")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="What to draw; repeat for several images.")] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A .png file, or .safetensors for latents; several get numbers.")
    ] = Path("image.png"),
    like: Annotated[
        Path | None, typer.Option(help="Draw an image, or latents, of ours again; other options change it.")
    ] = None,
    num_images: Annotated[int, typer.Option(min=1, help="Images of each prompt.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Images that are drawn together.")] = 1,
    verbose: Verbose = False,
    debug: Debug = False,
    **more: Any,
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
    given = given_settings(more)
    recipe = read_again(like, given)
    choice = choose(recipe, like, files or [], **{name: more[name] for name in OPTIONS})
    choice.check(tuple(given))
    call = {**recipe.get("settings", {}), **given}
    call.setdefault("seed", secrets.randbelow(2**32))
    requests = _requests(choice, prompt or [recipe["prompt"]], num_images, call)
    compare_pictures(requests[0], recipe)
    outputs = [output]
    if len(requests) > 1:
        outputs = [output.with_stem(f"{output.stem}-{number + 1:04d}") for number in range(len(requests))]
    for path in outputs:
        check_file(path)
    from diffsynth.pipelines.latent_file import save_latents
    from diffsynth.pipelines.recipe import save_image

    latent = output.suffix.lower() != ".png"
    save: Callable[[Any, Path], Path] = save_latents if latent else save_image
    call["output_type"] = "latent" if latent else "pil"
    pipe = choice.pipeline()
    with stopping() as callback:
        for start in range(0, len(requests), batch_size):
            part = requests[start : start + batch_size]
            call["seed"] = [request.seed for request in part]
            images = pipe([request.prompt for request in part], batch_size=batch_size, callback=callback, **call)
            for path, image in zip(outputs[start : start + batch_size], images, strict=True):
                print(f"{save(image, path)}  {_summary(image)}")


def _requests(choice: Choice, prompts: list[str], count: int, settings: dict[str, Any]) -> list[ImageRequest]:
    """Return a request per image; every setting that needs no network is checked here, before any is loaded."""
    from diffsynth.pipelines.calls import make_requests

    requests: list[ImageRequest] = make_requests(choice.kind.request, prompts, count, {**settings})
    choice.check_request(requests[0])
    return requests


def _summary(image: Image) -> str:
    """Return what was chosen for an image, in one line."""
    recipe = image.info["recipe"]
    request = recipe.request
    facts = [f"seed {request.seed}", f"{image.width}x{image.height}"]
    facts += [f"{request.scheduler}, {request.num_inference_steps} steps", f"cfg_scale {request.cfg_scale}"]
    facts += [f"{name} {value}" for name, value in recipe.settings.items()]
    return ", ".join(facts)


with_options(generate, [*OPTIONS.values(), *setting_options()])

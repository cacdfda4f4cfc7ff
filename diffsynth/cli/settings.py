"""Settings of a request as options of a command, made from its fields, so that a new setting needs no line here."""

from __future__ import annotations

from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any

import typer

from diffsynth.cli.pipelines import all_settings

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
    "ipadapter_images": "--ipadapter-image",
    "controlnet_images": "--controlnet-image",
    "controlnet_scales": "--controlnet-scale",
    "controlnet_starts": "--controlnet-start",
    "controlnet_ends": "--controlnet-end",
    "controlnet_processors": "--controlnet-processor",
    "controlnet_types": "--controlnet-type",
}


def setting_options() -> list[Parameter]:
    """Return one option for each field of the request but the prompt."""
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
    return options


def given_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings among options that were given, pictures opened."""
    fields = all_settings()
    return {
        name: _opened(value) if "Image" in str(fields[name].type) else value
        for name, value in settings.items()
        if name in fields and value is not None and value != []
    }


def _opened(value: Path | list[Path]) -> Any:
    from diffsynth.pipelines.latent_file import SUFFIX, open_latents
    from diffsynth.pipelines.pictures import open_picture

    if isinstance(value, Path) and value.suffix.lower() == SUFFIX:
        return open_latents(value)
    return [open_picture(path) for path in value] if isinstance(value, list) else open_picture(value)

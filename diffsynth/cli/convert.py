"""``diffsynth convert lora``: a LoRA of one format in another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diffsynth.cli.options import Debug, Verbose

group = typer.Typer(help="Write what a file holds in another format.", no_args_is_help=True, rich_markup_mode=None)


def lora(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A LoRA of any format: a file, or the folder of one.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="A safetensors file; for peft, a folder.")],
    to: Annotated[
        str,
        typer.Option(
            metavar="FORMAT", help="peft, diffusers, diffusers-old, kohya, diffsynth, comfyui or original (HunyuanDiT)."
        ),
    ],
    model: Annotated[
        Path | None,
        typer.Option(help="A model like the one it was made for, if that is no release; only headers are read."),
    ] = None,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Write a LoRA in another format: the same change of the same layers, under other names.

    Layers that are one in a format and several in another are taken apart or put together without rounding. Alpha is
    kept where the format has a place for it, and multiplied in where it has none.
    """
    from diffsynth.converting import convert_lora

    made = convert_lora(source, output, to=to, model=model)
    print(f"changes {', '.join(f'{count} weights of {name}' for name, count in made.layers.items())}")
    print(made.path)

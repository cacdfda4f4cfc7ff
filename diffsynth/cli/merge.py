"""``diffsynth merge``: two or three files into a new one."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from diffsynth.cli.options import Debug, Dtype, Verbose, dtype_named
from diffsynth.errors import InvalidRequest, listed


def merge(
    first: Annotated[Path, typer.Argument(metavar="A", help="The file whose names and other tensors are kept.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="The file it is merged with.")],
    weight: Annotated[float, typer.Option("--weight", "-w", help="How much of B: 0 is A, 1 is B.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The safetensors file to write.")],
    difference: Annotated[
        Path | None, typer.Option(metavar="C", help="Write A + weight * (B - C), not A * (1 - weight) + B * weight.")
    ] = None,
    blocks: Annotated[
        list[str] | None,
        typer.Option("--block", metavar="PATTERN=WEIGHT", help="Another weight for a block, such as mid_block=0.7."),
    ] = None,
    dtype: Dtype = None,
    kind: Annotated[
        str | None, typer.Option("--as", metavar="KIND", help="Merge only networks of this kind, such as unet.")
    ] = None,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Merge the networks that all files hold; what else A holds stays as it is.

    A pattern names a block or a tensor of our modules, also under its kind (unet.mid_block, or clip for all of it); *
    stands for anything, and of several patterns that fit, the last counts. The recipe goes into the file's header.
    """
    from diffsynth.merging import merge_models

    made = merge_models(
        first,
        second,
        output,
        weight=weight,
        difference=difference,
        blocks=dict(map(_block, blocks or [])),
        torch_dtype=dtype_named(dtype),
        kind=kind,
    )
    print(f"merged: {', '.join(made.merged)}")
    if made.kept:
        print(f"kept from {first}: {', '.join(made.kept)}")
    if made.beside:
        print(f"kept from {first}: {len(made.beside)} tensors beside these: {listed(made.beside)}")
    print(made.path)


def _block(text: str) -> tuple[str, float]:
    pattern, _, weight = text.rpartition("=")
    with suppress(ValueError):
        if pattern:
            return pattern, float(weight)
    raise InvalidRequest(f"--block is PATTERN=WEIGHT, such as mid_block=0.7, not {text!r}.")

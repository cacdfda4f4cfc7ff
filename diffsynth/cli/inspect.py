"""``diffsynth inspect``: what files hold, and what is wrong with them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffsynth.cli.options import Debug, Kinds, Verbose, expanded
from diffsynth.errors import DiffSynthError, listed, printable

if TYPE_CHECKING:
    from diffsynth.core.checkpoint import Checkpoint
    from diffsynth.core.registry import Identified, Registry


def inspect(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Checkpoint files or folders.")],
    kinds: Kinds = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read every tensor and report NaN and infinity.")] = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> int:
    """Tell what checkpoint files hold: networks, versions, sizes, dtypes, what is missing or unknown."""
    from diffsynth import models
    from diffsynth.core.registry import Registry

    registry = Registry.collect(models)
    rows = [_describe(registry, part, kind, verify=verify) for part, kind in expanded(paths, kinds)]
    missing = _missing(rows)
    if as_json:
        print(json.dumps({"files": rows, "missing": missing}, indent=1))
    else:
        for row in rows:
            _show(row)
        for pipeline, names in missing.items():
            print(f"{pipeline} " + (f"still needs: {', '.join(names)}" if names else "has every network it needs"))
    return 1 if any(row["error"] for row in rows) else 0


def _describe(registry: Registry, path: Path, kind: str | None, *, verify: bool) -> dict[str, Any]:
    """Return what is known of one file, as plain values."""
    from diffsynth.core.checkpoint import open_checkpoint

    row: dict[str, Any] = {"path": str(path), "bytes": None, "networks": [], "metadata": {}, "unclaimed": []}
    row |= {"on_request": [], "nearly": [], "error": None}
    try:
        checkpoint = open_checkpoint(path)
        row |= {"bytes": checkpoint.nbytes, "format": checkpoint.format, "tensors": len(checkpoint)}
        row["metadata"] = {name: text for name, text in checkpoint.metadata.items() if name != "format"}
        row["unclaimed"] = list(checkpoint.header)
        identification = registry.identify(checkpoint, kind)
        row["networks"] = [_network(found, checkpoint) for found in identification.networks]
        row["unclaimed"] = list(identification.unclaimed)
        row["on_request"] = [_network(found, checkpoint) for found in identification.on_request]
        row["nearly"] = list(identification.nearly)
        for found in identification.networks:
            _check(found, checkpoint)
        if verify and (bad := checkpoint.nonfinite()):
            counts = listed(f"{key} ({count} values)" for key, count in bad.items())
            row["error"] = f"{path}: NaN or infinity in {len(bad)} tensors: {counts}. Download the file again."
    except (DiffSynthError, OSError) as error:
        row["error"] = str(error)
        if "format" in row and not row["networks"]:
            row["layers"] = _folded(checkpoint)
    return row


UNET_NEEDS = ("unet", "clip", "autoencoder_kl")


def _missing(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Return, for each pipeline that one of the networks is for, the networks that it still needs."""
    from diffsynth.pipelines.hunyuan_dit.parts import NEEDS

    have = {network["family"] for row in rows for network in row["networks"] if not _is_kolors(network)}
    pipelines = {"HunyuanDiTImagePipeline": NEEDS, "SDImagePipeline or SDXLImagePipeline": UNET_NEEDS}
    shared = {*NEEDS} & {*UNET_NEEDS}  # says nothing about which of them is meant
    return {
        name: [family for family in families if family not in have]
        for name, families in pipelines.items()
        if have & {*families} - shared
    }


def _is_kolors(network: dict[str, Any]) -> bool:
    """Whether a network is a UNet that no pipeline draws with."""
    return network["family"] == "unet" and bool(network["config"]["text_size"])


def _check(found: Identified, checkpoint: Checkpoint) -> None:
    from diffsynth.core.loading import check_header

    check_header(found, checkpoint, found.family.build_on_meta(found.config).state_dict())


def _network(found: Identified, checkpoint: Checkpoint) -> dict[str, Any]:
    from diffsynth.core.convert import Converter

    converter = Converter(found.layout.rules(found.config))
    inside = found.keys - found.beside
    used = [key for key in inside if not converter.drops(key[len(found.prefix) :])]
    specs = [checkpoint.header[key] for key in used]
    dtypes = {str(spec.dtype).removeprefix("torch.") for spec in specs}
    return {
        "family": found.family.name,
        "layout": found.layout.name,
        "prefix": found.prefix,
        "version": found.family.version(found.config),
        "dtype": " and ".join(sorted(dtypes)),
        "parameters": sum(spec.numel for spec in specs),
        "left_out": len(inside) - len(used),
        "config": asdict(found.config),
    }


def _folded(checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    """Return the header with repeated layers folded: pattern → how many keys, and the shape of the first."""
    from diffsynth.core.patterns import fold_numbers

    lines: dict[str, dict[str, Any]] = {}
    for key, spec in checkpoint.header.items():
        line = lines.setdefault(fold_numbers(key), {"count": 0, "shape": list(spec.shape)})
        line["count"] += 1
    return lines


def _show(row: dict[str, Any]) -> None:
    facts = [printable(row["path"], 400)]
    if row["bytes"] is not None:
        facts.append(f"{row['bytes'] / 1e6:,.1f} MB, {row['format']}, {row['tensors']} tensors")
    print("  ".join(facts))
    for network in row["networks"]:
        version = f" {network['version']}" if network["version"] else ""
        prefix = f", under {network['prefix']!r}" if network["prefix"] else ""
        print(
            f"  {network['family']}{version}: layout {network['layout']}{prefix}, {network['dtype']}, "
            f"{network['parameters'] / 1e6:,.1f} M values"
        )
        print("    " + ", ".join(f"{name}={value}" for name, value in network["config"].items()))
        if _is_kolors(network):
            from diffsynth.pipelines.unet_parts import KOLORS

            print(f"    {KOLORS[0].upper()}{KOLORS[1:]}")
        if network["left_out"]:
            print(f"    {network['left_out']} tensors of it are not needed and stay unread")
    for name, text in row["metadata"].items():
        print(f"  {printable(name)}: {printable(text, 2000)}")
    for pattern, line in row.get("layers", {}).items():
        print(f"  {line['count']:>5} x {printable(pattern, 120)} {tuple(line['shape'])}")
    if row["unclaimed"] and row["networks"]:
        print(f"  stays unread: {len(row['unclaimed'])} tensors: {listed(row['unclaimed'])}")
    for network in row["on_request"]:
        version = f" {network['version']}" if network["version"] else ""
        print(f"  among them {network['family']}{version}, which is loaded with --as {network['family']}")
    for text in row["nearly"]:
        print(f"  damaged or incomplete: {text}")
    if row["error"]:
        print(f"  error: {row['error']}")

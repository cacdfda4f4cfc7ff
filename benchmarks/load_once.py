"""Load a release in this process once, and measure it; ``benchmarks.load`` runs this many times.

    python -m benchmarks.load_once LIBRARY DTYPE PATH...

LIBRARY is ``diffsynth`` or ``diffusers``; DTYPE is ``kept`` or that of PyTorch to convert to. PATH is a Diffusers
folder, or for ``diffsynth`` also files. The last line of output is JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.components import COMPONENTS
from benchmarks.measure import Recorder, memory_mb


def import_ours() -> Callable[[Sequence[str], str], tuple[list[Any], float]]:
    """Import what loading needs, and return the function that loads."""
    import torch
    from transformers import BertModel, T5EncoderModel  # imported while the networks are built otherwise

    from diffsynth.core.checkpoint import open_checkpoint
    from diffsynth.core.folder import component_folders
    from diffsynth.manager import ModelManager

    assert BertModel
    assert T5EncoderModel

    def load(paths: Sequence[str], dtype: str) -> tuple[list[Any], float]:
        manager = ModelManager(torch_dtype=None if dtype == "kept" else getattr(torch, dtype), device="cpu")
        entries = manager.load_models(paths)
        started = time.perf_counter()  # once more, alone
        for path in paths:
            for part in component_folders(Path(path)) or [Path(path)]:
                manager.registry.identify(open_checkpoint(part))
        return [entry.module for entry in entries], time.perf_counter() - started

    return load


def import_theirs() -> Callable[[Sequence[str], str], tuple[list[Any], float]]:
    """Import what loading needs, and return the function that loads."""
    import diffusers
    import torch
    import transformers

    libraries = {"transformers": transformers, "diffusers": diffusers}
    classes = {name: getattr(libraries[library], kind) for name, (library, kind, _) in COMPONENTS.items()}
    options: dict[str, Any] = {"text_encoder": {"add_pooling_layer": False}}

    def load(paths: Sequence[str], dtype: str) -> tuple[list[Any], float]:
        networks = []
        for name, kind in classes.items():
            # what diffsynth does too: the autoencoder stays in float32
            wanted = getattr(torch, COMPONENTS[name][2] if dtype == "kept" or name == "vae" else dtype)
            part = str(Path(paths[0]) / name)
            networks.append(kind.from_pretrained(part, torch_dtype=wanted, **options.get(name, {})))
        return networks, 0.0

    return load


def look_at(networks: Sequence[Any]) -> float:
    """Look at every page of every weight, as the first use does; return a number that depends on them."""
    seen = {weight.data_ptr(): weight for network in networks for weight in network.parameters()}
    return float(sum(float(weight.reshape(-1)[::1024].sum()) for weight in seen.values()))


def run(library: str, dtype: str, paths: Sequence[str]) -> dict[str, Any]:
    """Import, load, look at every weight; return the times in seconds and memory in MB."""
    recorder = Recorder()
    with recorder.stage("import"):
        load = import_ours() if library == "diffsynth" else import_theirs()
    before = memory_mb("VmRSS")
    with recorder.stage("load"):
        networks, detecting = load(paths, dtype)
    with recorder.stage("first use"):
        checksum = look_at(networks)
    importing, loading, using = recorder.stages
    weights = {weight.data_ptr(): weight for network in networks for weight in network.parameters()}
    return {
        "import_s": importing.seconds,
        "detect_s": detecting,
        "load_s": loading.seconds - detecting,
        "first_use_s": using.seconds,
        "peak_mb": max(loading.rss_mb, using.rss_mb) - before,
        "anonymous_mb": max(loading.anonymous_mb, using.anonymous_mb) - importing.anonymous_mb,
        "weights_mb": sum(weight.nbytes for weight in weights.values()) / 1e6,
        "values": sum(weight.numel() for weight in weights.values()),
        "checksum": checksum,
    }


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], sys.argv[2], sys.argv[3:])))

"""Run the program of the README in this process, and measure its stages.

    python -m benchmarks.full_size_ours SIDE RESULT

The working directory must hold ``models/HunyuanDiT``. RESULT gets what was computed on the way.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import REPOSITORY, Recorder, environment

STEPS = 2
README = REPOSITORY / "README.md"


def readme_program(side: int) -> str:
    """Return the first program of the README, word for word apart from dtype, device, steps and size.

    Args:
        side: of the picture, in pixels.

    Raises:
        ValueError: the README does not begin with such a program any more.
    """
    found = re.search(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    program = found[1] if found else ""
    changes = {
        "torch_dtype=torch.float16": "torch_dtype=torch.float32",
        'device="cuda"': 'device="cpu"',
        "num_inference_steps=50": f"num_inference_steps={STEPS}",
        "height=1024, width=1024": f"height={side}, width={side}",
    }
    for old, new in changes.items():
        if program.count(old) != 1:
            raise ValueError(f"the first program of {README.name} has {old!r} {program.count(old)} times, not once")
        program = program.replace(old, new)
    return program


def quoted(program: str, before: str) -> str:
    """Return the text in quotes that stands in a program after some other text."""
    return program.split(f'{before}"', 1)[1].split('"', 1)[0]


def run(side: int, result: Path) -> dict[str, Any]:
    """Run the program and write features and latents to ``result``.

    Args:
        side: of the picture, in pixels.
        result: the file for the tensors.

    Returns:
        The program, its prompt, the seed it chose and the picture it saved; seconds and stages.
    """
    recorder = Recorder()
    with recorder.stage("import"):
        import torch
        from transformers import BertModel, T5EncoderModel  # the program would import them while it loads

        from diffsynth import manager
        from diffsynth.core.registry import Registry
        from diffsynth.models.autoencoder_kl.model import AutoencoderKL
        from diffsynth.models.hunyuan_dit.condition import TextFeatures
        from diffsynth.models.hunyuan_dit.model import HunyuanDiT
        from diffsynth.pipelines.hunyuan_dit import pipeline
        from diffsynth.pipelines.hunyuan_dit.prompt import HunyuanDiTPromptEncoder
    assert BertModel
    assert T5EncoderModel
    kept: dict[str, Any] = {}
    texts: list[TextFeatures] = []  # one after the other, as they are encoded
    opening = "open and identify {}".format
    recorder.watch(manager, "open_checkpoint", lambda path: opening(Path(path).parent.name))
    recorder.watch(Registry, "identify", lambda _, checkpoint, kind: opening(checkpoint.path.parent.name))
    recorder.watch(manager, "load_network", lambda found, _: f"load {found.family.name}")
    recorder.watch(HunyuanDiTPromptEncoder, "__call__", lambda *_: "encode prompts", texts.append)
    recorder.watch(HunyuanDiT, "encode_condition", lambda *_: "plan")
    recorder.watch(HunyuanDiT, "plan", lambda *_: "plan")
    recorder.watch(pipeline, "denoise", lambda *_: "denoise", lambda found: kept.update(latents=found[0]))
    recorder.watch(AutoencoderKL, "decode", lambda *_: "decode")

    program, names = readme_program(side), dict[str, Any]()
    started = time.perf_counter()
    exec(compile(program, "<program>", "exec"), names)
    seconds = time.perf_counter() - started
    torch.save({**vars(TextFeatures.cat(texts)), **kept}, result)
    return {
        "program": program,
        "prompt": quoted(program, "prompt="),
        "seed": int(names["image"].info["seed"]),
        "picture": quoted(program, "image.save("),
        "seconds": seconds,
        "stages": recorder.summary(),
        "environment": environment(),
    }


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]), Path(sys.argv[2]))))

"""What a pipeline gives back: memory that is measured, but no network that another pipeline draws with."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from diffsynth import HunyuanDiTImagePipeline, ModelManager, SDImagePipeline, SDXLImagePipeline
from diffsynth.errors import InvalidRequest

from .conftest import Release
from .toy import PROMPT, write_toy
from .unet.toy import load

SMALL: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 1, "seed": 7}

MEASURE = """
import gc, json, os, sys
import torch
from diffsynth import HunyuanDiTImagePipeline, ModelManager

def resident():
    gc.collect()
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

found = {}
for name in ("float32", "float64"):  # views of the mapped file, and memory of their own
    manager = ModelManager(torch_dtype=getattr(torch, name), device="cpu", file_path_list=sys.argv[1:])
    pipe = HunyuanDiTImagePipeline.from_model_manager(manager)
    weights = manager.find("hunyuan_dit").nbytes
    sum(float(weight.sum()) for weight in pipe.denoiser.parameters())  # so that every page is there
    before = resident()
    pipe.release()
    found[name] = {"weights": weights, "freed": before - resident(), "left": len(manager)}
print(json.dumps(found))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not tell a process's memory")
def test_the_memory_of_the_weights_is_given_back(tmp_path: Path) -> None:
    paths = write_toy(tmp_path, mlp_size=50_000)

    command = [sys.executable, "-c", MEASURE, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    for found in json.loads(done.stdout).values():
        assert found["weights"] > 100e6
        assert found["freed"] > 0.9 * found["weights"]
        assert found["left"] == 0


def test_every_network_of_a_released_pipeline_is_gone(v1_2: list[Path]) -> None:
    manager = ModelManager(torch_dtype=torch.float32, device="cpu", file_path_list=v1_2)
    pipe = HunyuanDiTImagePipeline.from_model_manager(manager)
    image = pipe(PROMPT, **SMALL)
    networks = [weakref.ref(entry.module) for entry in manager]

    pipe.release()

    assert [network() for network in networks] == [None] * 4
    assert len(manager) == 0
    assert image.info["recipe"].models  # an image keeps its recipe, and no network


@pytest.mark.parametrize(("name", "kind"), [("sd15", SDImagePipeline), ("sdxl", SDXLImagePipeline)])
def test_so_are_those_of_a_unet_pipeline(release: Release, name: str, kind: Any) -> None:
    pipe = load([release(name)], kind)
    networks = [weakref.ref(entry.module) for entry in pipe.models]

    pipe.release()

    assert {network() for network in networks} == {None}


def test_networks_that_another_pipeline_draws_with_stay(v1_2: list[Path], release: Release) -> None:
    manager = ModelManager(torch_dtype=torch.float32, device="cpu", file_path_list=v1_2)
    for kind in ("unet", "clip"):
        manager.load_model(release("sdxl"), kind=kind)
    first = HunyuanDiTImagePipeline.from_model_manager(manager)
    second = SDXLImagePipeline.from_model_manager(manager)
    expected = second(PROMPT, **SMALL)
    gone = weakref.ref(first.denoiser)

    first.release()

    assert gone() is None
    assert {entry.family.name for entry in manager} == {"unet", "clip", "autoencoder_kl"}
    assert second(PROMPT, **SMALL).tobytes() == expected.tobytes()
    second.release()
    assert len(manager) == 0


def test_a_pipeline_that_is_deleted_is_no_user(v1_2: list[Path]) -> None:
    manager = ModelManager(torch_dtype=torch.float32, device="cpu", file_path_list=v1_2)
    first, second = (HunyuanDiTImagePipeline.from_model_manager(manager, name) for name in ("diffsynth", "original"))

    del first
    second.release()

    assert len(manager) == 0


def test_what_the_caller_holds_stays(v1_2: list[Path]) -> None:
    manager = ModelManager(torch_dtype=torch.float32, device="cpu", file_path_list=v1_2)
    pipe = HunyuanDiTImagePipeline.from_model_manager(manager)
    vae = pipe.vae

    pipe.release()
    gc.collect()

    assert next(vae.parameters()).isfinite().all()
    assert len(manager) == 0


def test_a_released_pipeline_says_so(v1_2: list[Path], release: Release) -> None:
    manager = ModelManager(torch_dtype=torch.float32, device="cpu", file_path_list=v1_2)
    pipe = HunyuanDiTImagePipeline.from_model_manager(manager)
    unet = load([release("sd15")], SDImagePipeline)

    pipe.release()
    pipe.release()
    unet.release()

    with pytest.raises(InvalidRequest, match="this pipeline was released and has no networks; make another"):
        pipe(PROMPT, **SMALL)
    with pytest.raises(InvalidRequest, match="this pipeline was released"):
        unet.load_textual_inversion("word.pt")
    manager.load_models(v1_2)
    assert HunyuanDiTImagePipeline.from_model_manager(manager)(PROMPT, **SMALL).size == (64, 64)


def test_a_pipeline_can_be_released_after_its_manager_is_gone(v1_2: list[Path]) -> None:
    manager = ModelManager(torch_dtype=torch.float32, device="cpu", file_path_list=v1_2)
    pipe = HunyuanDiTImagePipeline.from_model_manager(manager)
    network = weakref.ref(pipe.denoiser)

    del manager
    pipe.release()

    assert network() is None

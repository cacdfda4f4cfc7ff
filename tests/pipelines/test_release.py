"""What a pipeline gives back: memory that is measured, but no network that another pipeline draws with."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from diffsynth import HunyuanDiTImagePipeline, ModelManager, SDImagePipeline, SDXLImagePipeline
from diffsynth.core.saving import to_layout
from diffsynth.errors import CorruptCheckpoint, InvalidRequest
from diffsynth.models import mt5
from diffsynth.pipelines.recipe import recipe_json
from tests.lora import files

from .conftest import Release
from .toy import PROMPT, load_toy, write_toy
from .unet.toy import load

SMALL: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 1, "seed": 7}

LOAD = """
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
"""

MEASURE = """\
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

    command = [sys.executable, "-c", LOAD + MEASURE, *map(str, paths)]
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


MEASURE_TEXT = """\
    requests = pipe.prepare([pipe.request_type(prompt="a", height=32, width=32, num_inference_steps=1, seed=1)])
    texts = pipe.encode_texts(requests)
    weights = sum(manager.find(kind).nbytes for kind in ("mt5", "bert_clip"))
    before = resident()
    pipe.release_text_encoders()
    found[name] = {"weights": weights, "freed": before - resident(), "left": [each.family.name for each in manager]}
    (image,) = pipe.decode(requests, pipe.draw_latents(requests, texts))
    pipe.release()
print(json.dumps(found))
"""


def encoded(pipe: Any, **settings: Any) -> tuple[list[Any], Any]:
    """Return a request that is ready to be drawn, and its texts."""
    requests = pipe.prepare([pipe.request_type(prompt=PROMPT, **{**SMALL, **settings})])
    return requests, pipe.encode_texts(requests)


def text_encoders(pipe: Any) -> list[weakref.ref[Any]]:
    return [weakref.ref(network) for network in pipe.text_encoders]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not tell a process's memory")
def test_the_memory_of_the_text_encoders_is_given_back(tmp_path: Path) -> None:
    paths = write_toy(tmp_path, text_len=7, t5_len=9)
    before = torch.load(paths[1], weights_only=True)
    config = replace(mt5.FAMILY.tiny(), vocab_size=len(before["shared.weight"]), d_ff=6000, num_layers=24)
    torch.save(to_layout(mt5.FAMILY.build(config), mt5.FAMILY.layouts[0], config), paths[1])

    command = [sys.executable, "-c", LOAD + MEASURE_TEXT, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    for found in json.loads(done.stdout).values():
        assert found["weights"] > 60e6
        assert found["freed"] > 0.9 * found["weights"]
        assert found["left"] == ["hunyuan_dit", "autoencoder_kl"]


def test_without_its_text_encoders_a_pipeline_draws_the_same_image_with_the_same_recipe(v1_2: list[Path]) -> None:
    manager = ModelManager(torch_dtype=torch.float32, device="cpu", file_path_list=v1_2)
    pipe = HunyuanDiTImagePipeline.from_model_manager(manager)
    expected = pipe(PROMPT, **SMALL)
    requests, texts = encoded(pipe)
    networks = text_encoders(pipe)

    pipe.release_text_encoders()
    pipe.release_text_encoders()

    assert [network() for network in networks] == [None, None]
    assert {entry.family.name for entry in manager} == {"hunyuan_dit", "autoencoder_kl"}
    (image,) = pipe.decode(requests, pipe.draw_latents(requests, texts))
    assert image.tobytes() == expected.tobytes()
    assert recipe_json(image) == recipe_json(expected)
    assert sum(model.nbytes for model in pipe.models) == sum(entry.nbytes for entry in manager)
    pipe.release()
    assert len(manager) == 0


@pytest.mark.parametrize(("name", "kind"), [("sd15", SDImagePipeline), ("sdxl", SDXLImagePipeline)])
def test_so_does_a_unet_pipeline(release: Release, name: str, kind: Any) -> None:
    pipe = load([release(name)], kind)
    hires = {"hires_scale": 2.0, "hires_steps": 2}
    expected = pipe(PROMPT, **SMALL, **hires)
    requests, texts = encoded(pipe, **hires)
    networks = text_encoders(pipe)

    pipe.release_text_encoders()

    assert {network() for network in networks} == {None}
    (image,) = pipe.decode(requests, pipe.draw_latents(requests, texts))
    assert image.tobytes() == expected.tobytes()
    assert recipe_json(image) == recipe_json(expected)


def test_text_encoders_that_another_pipeline_or_the_caller_uses_stay(v1_2: list[Path]) -> None:
    manager = ModelManager(torch_dtype=torch.float32, device="cpu", file_path_list=v1_2)
    first, second = (HunyuanDiTImagePipeline.from_model_manager(manager, name) for name in ("diffsynth", "original"))
    expected = second(PROMPT, **SMALL)
    held = first.prompt_encoder

    first.release_text_encoders()

    assert len(manager) == 4
    assert second(PROMPT, **SMALL).tobytes() == expected.tobytes()
    second.release_text_encoders()
    assert len(manager) == 2
    assert held([PROMPT]).t5.isfinite().all()


def test_a_text_that_was_not_encoded_is_refused_in_words(v1_2: list[Path], release: Release) -> None:
    manager = ModelManager(torch_dtype=torch.float32, device="cpu", file_path_list=v1_2)
    pipe = HunyuanDiTImagePipeline.from_model_manager(manager)
    unet = load([release("sd15")], SDImagePipeline)

    pipe.release_text_encoders()
    unet.release_text_encoders()

    for draw in (pipe, unet):
        with pytest.raises(InvalidRequest, match=r"text encoders of this pipeline were given back.*make another"):
            draw(PROMPT, **SMALL)
    with pytest.raises(InvalidRequest, match="were given back"):
        unet.load_textual_inversion("word.pt")
    with pytest.raises(InvalidRequest, match=r"bert_clip from .* has given its weights back.*load it again"):
        pipe.prompt_encoder([PROMPT])


def test_a_file_that_changed_while_texts_were_encoded_is_noticed(tmp_path: Path) -> None:
    paths = write_toy(tmp_path)
    pipe = load_toy(paths)
    encoded(pipe)
    os.utime(paths[1], ns=(0, 0))

    with pytest.raises(CorruptCheckpoint, match="changed while it was in use"):
        pipe.release_text_encoders()


def test_a_lora_on_a_text_encoder_stays_in_the_recipe(v1_2: list[Path], tmp_path: Path) -> None:
    state = torch.load(v1_2[0], weights_only=True)
    layers = {key: each for key, each in files.layers_of(state).items() if "bert." in key}
    path = files.write(tmp_path / "words.safetensors", files.peft(layers))
    manager = ModelManager(torch_dtype=torch.float32, device="cpu", file_path_list=v1_2)
    lora = manager.load_lora(path)
    pipe = HunyuanDiTImagePipeline.from_model_manager(manager)
    expected = pipe(PROMPT, **SMALL)
    requests, texts = encoded(pipe)

    pipe.release_text_encoders()

    assert list(lora.layers) == [pipe.models[1].label]
    (image,) = pipe.decode(requests, pipe.draw_latents(requests, texts))
    assert image.tobytes() == expected.tobytes()
    assert recipe_json(image) == recipe_json(expected)
    assert len(image.info["recipe"].adapters) == 1

"""Pipelines draw with LoRAs: strength at will, several at once, taken off, merged, and told in the recipe."""

from __future__ import annotations

import gc
import json
import math
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from diffsynth import HunyuanDiTImagePipeline, ModelManager, SDImagePipeline, SDXLImagePipeline, save_image
from diffsynth.errors import AdapterMismatch, AmbiguousModel, InvalidRequest, ModelNotLoaded, NonFiniteResult
from diffsynth.pipelines.recipe import read_recipe
from diffsynth.types import StateDict
from tests.lora import files
from tests.pipelines.toy import write_toy
from tests.pipelines.unet.toy import write_release

SMALL: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 2, "seed": 3, "output_type": "latent"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFSYNTH_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The files of a small HunyuanDiT."""
    return write_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def loras(toy: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two LoRAs on every layer of that denoiser."""
    state = torch.load(toy[2], weights_only=True)
    folder = tmp_path_factory.mktemp("loras")
    return [
        files.write(folder / f"{seed}.safetensors", files.peft(files.layers_of(state, seed, strength=0.3)))
        for seed in range(2)
    ]


def hunyuan_dit(toy: list[Path], dtype: torch.dtype = torch.float32) -> tuple[ModelManager, Any]:
    manager = ModelManager(torch_dtype=dtype, device="cpu", file_path_list=toy)
    return manager, HunyuanDiTImagePipeline.from_model_manager(manager)


def draw(pipe: Any, prompt: str = "a cat", **settings: Any) -> Tensor:
    values: Tensor = pipe(prompt, **{**SMALL, **settings}).values
    return values


def assert_same(found: Tensor, expected: Tensor) -> None:
    """Fail if latents differ by more than 1e-5 of their largest value."""
    difference = float((found - expected).abs().max() / expected.abs().max())
    assert difference < 1e-5, difference


def far(one: Tensor, other: Tensor) -> bool:
    return float((one - other).abs().max()) > 1e-2


def test_scale_is_live_and_none_is_left_when_it_is_taken_off(toy: list[Path], loras: list[Path]) -> None:
    manager, pipe = hunyuan_dit(toy)
    plain = draw(pipe)

    lora = manager.load_lora(loras[0], lora_alpha=1.0)
    full = draw(pipe)
    lora.scale = 0.5
    half = draw(pipe)
    lora.scale = 0
    none = draw(pipe)
    lora.scale = 1
    again = draw(pipe)
    lora.detach()

    assert torch.equal(none, plain)
    assert torch.equal(again, full)
    assert torch.equal(draw(pipe), plain)
    assert far(full, plain)
    assert far(half, plain)
    assert far(half, full)


def test_merged_equals_attached_and_two_add_up(toy: list[Path], loras: list[Path]) -> None:
    manager, pipe = hunyuan_dit(toy)
    first = manager.load_lora(loras[0], 0.8)
    one = draw(pipe)
    second = manager.load_lora(loras[1], -0.6)
    both = draw(pipe)

    assert manager.loras == (first, second)
    assert far(one, both)
    first.merge()
    assert_same(draw(pipe), both)
    second.merge()
    assert_same(draw(pipe), both)
    assert not any(layer._forward_hooks for entry in manager for layer in entry.module.modules())
    for act in (first.detach, first.merge, lambda: setattr(first, "scale", 0.1)):
        with pytest.raises(InvalidRequest, match="is merged into the weights, so"):
            act()


def single_lora(name: str, file: Path, folder: Path) -> Path:
    """Write a LoRA for every network of a release as kohya names them, the UNet of SDXL in its file's own names."""
    state = load_file(file)
    encoders = {"sd15": {"lora_te_": "cond_stage_model.transformer."}}
    encoders["sdxl"] = {"lora_te1_": "conditioner.embedders.0.transformer."}
    spelt: StateDict = {}
    for outer, prefix in {"lora_unet_": "model.diffusion_model.", **encoders[name]}.items():
        own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        spelt |= files.kohya(files.layers_of(own, strength=0.3), outer, alpha=float(files.RANK))
    if name == "sdxl":  # the second encoder is stored as OpenCLIP has it, and trained under other names
        width = len(state["conditioner.embedders.1.model.ln_final.weight"])
        for part in ("self_attn_q_proj", "self_attn_v_proj", "self_attn_out_proj"):
            weight = {f"text_model.encoder.layers.1.{part.replace('attn_', 'attn.')}.weight": torch.zeros(width, width)}
            spelt |= files.kohya(files.layers_of(weight, 7), "lora_te2_", alpha=1.0)
    return files.write(folder / "lora.safetensors", spelt)


@pytest.mark.parametrize(("name", "kind", "networks"), [("sd15", SDImagePipeline, 2), ("sdxl", SDXLImagePipeline, 3)])
def test_stable_diffusion_draws_with_a_lora_of_all_its_networks(
    tmp_path: Path, name: str, kind: Any, networks: int
) -> None:
    file = write_release(tmp_path, name)
    manager = ModelManager(torch_dtype=torch.float32, device="cpu", file_path_list=[file])
    pipe = kind.from_model_manager(manager)
    plain = draw(pipe)

    lora = manager.load_lora(single_lora(name, file, tmp_path), 0.5)
    attached = draw(pipe)
    lora.merge()
    merged = draw(pipe)

    assert len(lora.layers) == networks
    assert far(attached, plain)
    assert_same(merged, attached)


def test_it_costs_its_own_size_and_keeps_no_network_alive(toy: list[Path], loras: list[Path]) -> None:
    manager, pipe = hunyuan_dit(toy)
    weights = sum(tensor.nbytes for tensor in load_file(loras[0]).values())

    lora = manager.load_lora(loras[0])
    network = weakref.ref(manager.fetch_model("hunyuan_dit"))

    assert lora.nbytes == weights
    assert [entry.nbytes for entry in manager] == [entry.nbytes for entry in hunyuan_dit(toy)[0]]
    pipe.release()
    gc.collect()
    assert network() is None
    lora.detach()
    assert lora.nbytes == 0
    assert "detached" in repr(lora)


def test_split_projections_share_what_they_have_in_common(tmp_path: Path) -> None:
    file = write_release(tmp_path, "sdxl")
    manager = ModelManager(torch_dtype=torch.float16, device="cpu", file_path_list=[file])
    name = "transformer.resblocks.0.attn.in_proj"
    weight = load_file(file)[f"conditioner.embedders.1.model.{name}_weight"]
    layers = files.layers_of({f"{name}_weight": weight})

    lora = manager.load_lora(files.write(tmp_path / "l.safetensors", files.peft(layers, "text_encoder_2.")))

    assert list(lora.layers.values()) == [3]
    assert lora.nbytes == sum(half.nbytes for half in layers[name]) // 2


def test_in_half_precision_it_is_kept_so_and_draws(toy: list[Path], loras: list[Path]) -> None:
    manager, pipe = hunyuan_dit(toy, torch.bfloat16)
    plain = draw(pipe)

    lora = manager.load_lora(loras[0])

    assert lora.nbytes == sum(tensor.nbytes for tensor in load_file(loras[0]).values()) // 2
    assert far(draw(pipe), plain)
    manager.fetch_model("hunyuan_dit").to(torch.float32)
    assert far(draw(pipe), plain)


def test_a_merge_that_would_overflow_changes_nothing(toy: list[Path], loras: list[Path]) -> None:
    manager, _ = hunyuan_dit(toy, torch.float16)
    lora = manager.load_lora(loras[0], 1e7)
    module = manager.fetch_model("hunyuan_dit")
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}

    with pytest.raises(NonFiniteResult, match="too large for float16"):
        lora.merge()

    assert all(torch.equal(tensor, before[key]) for key, tensor in module.state_dict().items())
    assert lora.attached


def test_the_recipe_names_it_with_its_scale_of_that_moment(toy: list[Path], loras: list[Path], tmp_path: Path) -> None:
    manager, pipe = hunyuan_dit(toy)
    lora = manager.load_lora(loras[0], 0.8)
    manager.load_lora(loras[1], 0.1).merge()
    image = pipe("a cat", **{**SMALL, "output_type": "pil"})
    lora.detach()
    bare = pipe("a cat", **{**SMALL, "output_type": "pil"})

    one, other = (read_recipe(save_image(each, tmp_path / "i.png"))["adapters"] for each in (image, bare))

    assert [(each["family"], each["path"], each["scale"], each["merged"]) for each in one] == [
        ("lora", str(loras[0]), 0.8, False),
        ("lora", str(loras[1]), 0.1, True),
    ]
    assert all(len(each["files"][0]["sha256"]) == 64 for each in one)
    assert [each["path"] for each in other] == [str(loras[1])]
    assert json.dumps(one)


def test_of_several_networks_that_fit_one_is_named(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    paths = [write_release(tmp_path / name, "sd15") for name in "ab"]
    paths = [path.rename(path.with_stem(path.parent.name)) for path in paths]
    manager = ModelManager(torch_dtype=torch.float32, device="cpu", file_path_list=paths)
    path = single_lora("sd15", paths[0], tmp_path)

    with pytest.raises(AmbiguousModel, match=r"lora\.safetensors \(its keys lora_"):
        manager.load_lora(path)
    one = manager.load_lora(path, 0.5, variant="a")
    other = manager.load_lora(path, 0.7, variant="b.safetensors")

    assert manager.loras == (one, other)
    assert all(str(paths[1]) in label for label in other.layers)
    with pytest.raises(InvalidRequest, match=f"changes .* from {paths[0]}.* already"):
        manager.load_lora(path, variant="a")


def test_what_fits_a_denoiser_and_its_control_network_is_meant_for_the_denoiser(tmp_path: Path) -> None:
    paths = [write_release(tmp_path, name) for name in ("sd15", "sd15-controlnet")]
    prefix = "model.diffusion_model."
    own = {key.removeprefix(prefix): value for key, value in load_file(paths[0]).items() if "middle_block.1" in key}
    files.write(tmp_path / "lora.safetensors", files.kohya(files.layers_of(own), "lora_unet_", alpha=1.0))
    manager = ModelManager(torch_dtype=torch.float32, device="cpu", file_path_list=paths)

    lora = manager.load_lora(tmp_path / "lora.safetensors")

    (label,) = lora.layers
    assert label.startswith("unet from ")


@pytest.mark.parametrize("scale", [math.nan, math.inf, "0.5", True, None])
def test_settings_that_make_no_sense_are_refused(toy: list[Path], loras: list[Path], scale: Any) -> None:
    manager, _ = hunyuan_dit(toy)
    lora = manager.load_lora(loras[0])

    with pytest.raises(InvalidRequest, match="the scale of a LoRA is a finite number"):
        lora.scale = scale
    with pytest.raises(InvalidRequest, match="not both"):
        manager.load_lora(loras[1], 1.0, lora_alpha=1.0)
    with pytest.raises(ModelNotLoaded, match="not loaded: c"):
        manager.load_lora(loras[1], variant="c")
    with pytest.raises(ModelNotLoaded, match="nothing is loaded"):
        ModelManager(device="cpu").load_lora(loras[1])
    lora.detach()
    with pytest.raises(InvalidRequest, match="was detached; load it again"):
        lora.merge()


def test_a_text_encoder_that_is_not_loaded_is_missed(tmp_path: Path) -> None:
    file = write_release(tmp_path, "sd15")
    manager = ModelManager(torch_dtype=torch.float32, device="cpu")
    manager.load_model(file, kind="unet")

    with pytest.raises(AdapterMismatch, match=r"lora_te_text_model.*Load the networks that it was made for\."):
        manager.load_lora(single_lora("sd15", file, tmp_path))

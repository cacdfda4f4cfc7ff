"""The names that DiffSynth 1.x has for Stable Diffusion, SDXL and what goes with them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from diffsynth import ModelManager, SDImagePipeline, download_models
from diffsynth.errors import DownloadError
from diffsynth.hub.catalog import CATALOG
from examples.random_stable_diffusion import write_single_file
from tests.hub.standin import Hub

HUBS = ("ModelScope", "HuggingFace")


class Preset(NamedTuple):
    """Where DiffSynth 1.1.9 finds a model, by hub, and where it puts the files."""

    repositories: tuple[str, str | None]
    places: Sequence[str]
    inside: Sequence[str] = ()  # names in the repository where they are not those on disk


SD, XL, CONTROL = "stable_diffusion", "stable_diffusion_xl", "ControlNet"
PRESETS = {
    "StableDiffusion_v15": Preset(
        ("AI-ModelScope/stable-diffusion-v1-5", "benjamin-paine/stable-diffusion-v1-5"),
        [f"{SD}/v1-5-pruned-emaonly.safetensors"],
    ),
    "DreamShaper_8": Preset(("sd_lora/dreamshaper_8", "Yntec/Dreamshaper8"), [f"{SD}/dreamshaper_8.safetensors"]),
    "AingDiffusion_v12": Preset(("sd_lora/aingdiffusion_v12", None), [f"{SD}/aingdiffusion_v12.safetensors"]),
    "Flat2DAnimerge_v45Sharp": Preset(
        ("sd_lora/Flat-2D-Animerge", None), [f"{SD}/flat2DAnimerge_v45Sharp.safetensors"]
    ),
    "TextualInversion_VeryBadImageNegative_v1.3": Preset(
        ("sd_lora/verybadimagenegative_v1.3", "gemasai/verybadimagenegative_v1.3"),
        ["textual_inversion/verybadimagenegative_v1.3.pt"],
    ),
    "StableDiffusionXL_v1": Preset(
        ("AI-ModelScope/stable-diffusion-xl-base-1.0", "stabilityai/stable-diffusion-xl-base-1.0"),
        [f"{XL}/sd_xl_base_1.0.safetensors"],
    ),
    "BluePencilXL_v200": Preset(
        ("sd_lora/bluePencilXL_v200", "frankjoshua/bluePencilXL_v200"), [f"{XL}/bluePencilXL_v200.safetensors"]
    ),
    "StableDiffusionXL_Turbo": Preset(
        ("AI-ModelScope/sdxl-turbo", "stabilityai/sdxl-turbo"), [f"{XL}_turbo/sd_xl_turbo_1.0_fp16.safetensors"]
    ),
    "SDXL-vae-fp16-fix": Preset(
        ("AI-ModelScope/sdxl-vae-fp16-fix", "madebyollin/sdxl-vae-fp16-fix"),
        ["sdxl-vae-fp16-fix/diffusion_pytorch_model.safetensors"],
    ),
    "SDXL_lora_zyd232_ChineseInkStyle_SDXL_v1_0": Preset(
        ("sd_lora/zyd232_ChineseInkStyle_SDXL_v1_0", None), ["lora/zyd232_ChineseInkStyle_SDXL_v1_0.safetensors"]
    ),
    **{
        f"ControlNet_{name}": Preset(
            ("AI-ModelScope/ControlNet-v1-1", "lllyasviel/ControlNet-v1-1"), [f"{CONTROL}/control_{name}.pth"]
        )
        for name in ("v11f1p_sd15_depth", "v11p_sd15_softedge", "v11f1e_sd15_tile", "v11p_sd15_lineart")
    },
    "ControlNet_union_sdxl_promax": Preset(
        ("AI-ModelScope/controlnet-union-sdxl-1.0", "xinsir/controlnet-union-sdxl-1.0"),
        [f"{CONTROL}/controlnet_union/diffusion_pytorch_model_promax.safetensors"],
    ),
    "IP-Adapter-SD": Preset(
        ("AI-ModelScope/IP-Adapter", "h94/IP-Adapter"),
        [f"IpAdapter/{SD}/image_encoder/model.safetensors", f"IpAdapter/{SD}/ip-adapter_sd15.bin"],
        ["models/image_encoder/model.safetensors", "models/ip-adapter_sd15.bin"],
    ),
    "IP-Adapter-SDXL": Preset(
        ("AI-ModelScope/IP-Adapter", "h94/IP-Adapter"),
        [f"IpAdapter/{XL}/image_encoder/model.safetensors", f"IpAdapter/{XL}/ip-adapter_sdxl.bin"],
        ["sdxl_models/image_encoder/model.safetensors", "sdxl_models/ip-adapter_sdxl.bin"],
    ),
}
ANNOTATORS = {
    "ControlNet_v11f1p_sd15_depth": {"dpt_hybrid-midas-501f0c75.pt"},
    "ControlNet_v11p_sd15_softedge": {"ControlNetHED.pth"},
    "ControlNet_v11f1e_sd15_tile": set(),
    "ControlNet_v11p_sd15_lineart": {"sk_model.pth", "sk_model2.pth"},
    "ControlNet_union_sdxl_promax": {"dpt_hybrid-midas-501f0c75.pt"},
}
CLIP = ("AI-ModelScope/clip-vit-large-patch14", "openai/clip-vit-large-patch14")
VOCABULARY = ("vocab.json", "merges.txt")


def publish(hub: Hub, on: str, preset: Preset) -> dict[str, bytes]:
    """Put a model on one hub alone, with what goes with it; return the content of its own files by place."""
    hub.repositories.clear()
    repository = preset.repositories[HUBS.index(on)]
    assert repository is not None
    names = preset.inside or [place.rpartition("/")[2] for place in preset.places]
    files = {name: f"{on} {name}".encode() for name in names}
    hub.repositories[repository] = {**files}
    hub.repositories[CLIP[HUBS.index(on)]] = dict.fromkeys(VOCABULARY, b"words")
    annotators = ("sd_lora/Annotators", "lllyasviel/Annotators")[HUBS.index(on)]
    hub.repositories[annotators] = {name: name.encode() for names in ANNOTATORS.values() for name in names}
    return {place: files[name] for place, name in zip(preset.places, names, strict=True)}


@pytest.mark.parametrize("on", HUBS)
@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_comes_from_its_repository_and_goes_to_its_folder(
    name: str, on: str, hub: Hub, tmp_path: Path
) -> None:
    preset = PRESETS[name]
    if preset.repositories[HUBS.index(on)] is None:
        with pytest.raises(DownloadError, match=f"{on} has no repository of it"):
            download_models(name, on, local_dir=tmp_path)
        return
    content = publish(hub, on, preset)

    found = download_models(name, on, local_dir=tmp_path)

    assert {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in found} == content


@pytest.mark.parametrize("name", ANNOTATORS)
def test_what_makes_hints_out_of_pictures_comes_along_and_is_not_loaded(name: str, hub: Hub, tmp_path: Path) -> None:
    publish(hub, "ModelScope", PRESETS[name])

    found = download_models(name, "ModelScope", local_dir=tmp_path)

    assert {path.name for path in tmp_path.glob("Annotators/*")} == ANNOTATORS[name]
    assert not any("Annotators" in path.parts for path in found)


@pytest.mark.parametrize("name", [name for name in PRESETS if PRESETS[name].places[0].startswith(SD)])
def test_the_vocabulary_of_a_whole_model_comes_along(name: str, hub: Hub, tmp_path: Path) -> None:
    publish(hub, "ModelScope", PRESETS[name])

    (model,) = download_models(name, "ModelScope", local_dir=tmp_path)

    assert {path.name for path in (model.parent / "tokenizer").iterdir()} == set(VOCABULARY)


def test_models_of_one_folder_share_their_vocabulary() -> None:
    names = ("StableDiffusion_v15", "DreamShaper_8", "AingDiffusion_v12", "Flat2DAnimerge_v45Sharp")

    assert all(CATALOG[name].lines[1:] == CATALOG[names[0]].lines[1:] for name in names)


def test_a_fetched_model_draws_without_further_ado(hub: Hub, tmp_path: Path) -> None:
    preset = PRESETS["StableDiffusion_v15"]
    release = write_single_file(tmp_path / "release", "sd15")
    publish(hub, "HuggingFace", preset)
    hub.repositories["benjamin-paine/stable-diffusion-v1-5"]["v1-5-pruned-emaonly.safetensors"] = release.read_bytes()
    vocabulary = {path.name: path.read_bytes() for path in release.parent.rglob("*") if path.name in VOCABULARY}
    assert set(vocabulary) == set(VOCABULARY)
    assert json.loads(vocabulary["vocab.json"])
    hub.repositories[CLIP[1]] |= vocabulary

    manager = ModelManager(torch.float32, "cpu")
    manager.load_models(download_models(["StableDiffusion_v15"], ["HuggingFace"], local_dir=tmp_path / "models"))
    pipe = SDImagePipeline.from_model_manager(manager)

    image = pipe("a cat", height=64, width=64, num_inference_steps=1, seed=1)
    assert image.size == (64, 64)


@pytest.mark.parametrize(
    ("name", "toy"),
    [("ControlNet_v11f1e_sd15_tile", "sd15-controlnet"), ("ControlNet_union_sdxl_promax", "sdxl-union")],
)
def test_a_fetched_control_network_is_loaded(name: str, toy: str, hub: Hub, tmp_path: Path) -> None:
    preset = PRESETS[name]
    publish(hub, "HuggingFace", preset)
    file = write_single_file(tmp_path / "toy", toy)
    if preset.places[0].endswith(".pth"):
        pickled = file.with_suffix(".pth")
        torch.save(load_file(file), pickled)
        file = pickled
    repository = hub.repositories[str(preset.repositories[1])]
    repository[preset.places[0].rpartition("/")[2]] = file.read_bytes()

    manager = ModelManager(torch.float32, "cpu")
    manager.load_models(download_models([name], ["HuggingFace"], local_dir=tmp_path / "models"))

    (entry,) = manager
    assert entry.family.name == "unet_controlnet"
    assert bool(entry.config.types) == ("union" in name)

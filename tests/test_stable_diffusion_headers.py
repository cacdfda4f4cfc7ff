"""Released files of Stable Diffusion and its kin, by keys and shapes alone: recognised whole and written back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diffsynth import models
from diffsynth.core.checkpoint import open_checkpoint
from diffsynth.core.loading import check_header
from diffsynth.core.registry import Identification, Registry
from diffsynth.errors import UnknownCheckpoint
from diffsynth.models.autoencoder_kl.config import AutoencoderKLConfig
from diffsynth.models.clip.config import ClipTextConfig
from diffsynth.models.clip_vision.config import ClipVisionConfig
from diffsynth.models.ip_adapter.config import IPAdapterConfig
from diffsynth.models.unet.config import UNetConfig
from diffsynth.models.unet.control_config import ControlNetConfig
from tests import released

REGISTRY = Registry.collect(models)
NAMES = sorted(path.stem for path in (released.FOLDER / "stable_diffusion").glob("*.json"))

SD, XL, REFINER = UNetConfig(), UNetConfig.sdxl(), UNetConfig.sdxl_refiner()
CONTROL, XL_CONTROL = ControlNetConfig(), ControlNetConfig.sdxl()
CLIP_L, BIG_G = ClipTextConfig(), ClipTextConfig.big_g()

Found = tuple[str, str, str, Any, str]  # prefix, family, layout, config, version

VAE: Found = ("first_stage_model.", "autoencoder_kl", "ldm", AutoencoderKLConfig(), "")


def denoiser(config: UNetConfig, version: str) -> Found:
    return ("model.diffusion_model.", "unet", "ldm", config, version)


def union(types: int) -> ControlNetConfig:
    return replace(XL_CONTROL, types=types)


CLIP_OF_XL: Found = ("conditioner.embedders.0.transformer.", "clip", "transformers", CLIP_L, "CLIP-L")
BIG_G_OF_XL: Found = ("conditioner.embedders.1.model.", "clip", "open_clip", BIG_G, "OpenCLIP bigG")
EXPECTED: dict[str, tuple[Found, ...]] = {
    "sd15": (
        ("cond_stage_model.transformer.", "clip", "transformers", CLIP_L, "CLIP-L"),
        VAE,
        denoiser(SD, "SD 1.5"),
    ),
    "sdxl_base": (CLIP_OF_XL, BIG_G_OF_XL, VAE, denoiser(XL, "SDXL")),
    "sdxl_turbo": (CLIP_OF_XL, BIG_G_OF_XL, VAE, denoiser(XL, "SDXL")),
    "sdxl_refiner": (
        ("conditioner.embedders.0.model.", "clip", "open_clip", BIG_G, "OpenCLIP bigG"),
        VAE,
        denoiser(REFINER, "SDXL refiner"),
    ),
    "sd15_unet": (("", "unet", "diffusers", SD, "SD 1.5"),),
    "sd15_inpaint_unet": (("", "unet", "diffusers", replace(SD, in_channels=9), "SD 1.5 inpaint"),),
    "sdxl_unet": (("", "unet", "diffusers", XL, "SDXL"),),
    "sdxl_refiner_unet": (("", "unet", "diffusers", REFINER, "SDXL refiner"),),
    "kolors_unet": (("", "unet", "diffusers", replace(XL, text_size=4096, label_size=5632), "Kolors"),),
    "sd15_controlnet": (("control_model.", "unet_controlnet", "ldm", CONTROL, "SD 1.5"),),
    "sd15_controlnet_diffusers": (("", "unet_controlnet", "diffusers", CONTROL, "SD 1.5"),),
    "sdxl_controlnet": (("", "unet_controlnet", "diffusers", XL_CONTROL, "SDXL"),),
    "sdxl_controlnet_union": (("", "unet_controlnet", "diffusers", union(8), "SDXL union promax"),),
    "sdxl_controlnet_union_6": (("", "unet_controlnet", "diffusers", union(6), "SDXL union"),),
    "clip_l": (("", "clip", "transformers", CLIP_L, "CLIP-L"),),
    "clip_big_g": (("", "clip", "transformers", BIG_G, "OpenCLIP bigG"),),
    "vae": (("", "autoencoder_kl", "diffusers", AutoencoderKLConfig(), ""),),
    "sd15_image_encoder": (("", "clip_vision", "transformers", ClipVisionConfig(), "OpenCLIP ViT-H"),),
    "sdxl_image_encoder": (("", "clip_vision", "transformers", ClipVisionConfig.big_g(), "OpenCLIP ViT-bigG"),),
    "sd15_ip_adapter": (("", "ip_adapter", "original", IPAdapterConfig(), "SD 1.5"),),
    "sdxl_ip_adapter": (("", "ip_adapter", "original", IPAdapterConfig.sdxl(), "SDXL"),),
}
BUFFERS = ("position_ids", "logit_scale", "denoiser.sigmas")
GROUPS = {  # published signatures of the parts of a single file
    ("sd15", "model"): "3926bf373b39a67eeafd7901478a47a7",
    ("sd15", "first_stage_model"): "d0c89e55c5a57cf3981def0cb1c9e65a",
    ("sd15", "cond_stage_model"): "d4ba77a7ece070679b4a987f58f201e9",
    ("sdxl_base", "model"): "298997b403a4245c04102c9f36aac348",
    ("sdxl_base", "conditioner"): "025bb7452e531a3853d951d77c63f032",
}


def read(name: str) -> released.Released:
    return released.read(f"stable_diffusion/{name}")


def flat(shapes: released.Shapes) -> released.Shapes:
    """Join the dicts of a file of dicts by dots, as safetensors files of the same weights do."""
    return {key.replace("|", "."): shape for key, shape in shapes.items()}


def identify(name: str, folder: Path) -> Identification:
    path = released.write_hollow(flat(read(name).shapes), folder / f"{name}.safetensors")
    return REGISTRY.identify(open_checkpoint(path))


def nested_signature(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return the md5 of a file of dicts, whose keys a bar joins to those inside."""
    groups: dict[str, list[str]] = {}
    for key, shape in shapes.items():
        outer, _, inner = key.partition("|")
        groups.setdefault(outer, []).extend((f"{inner}:{'_'.join(map(str, shape))}", inner))
    texts = sorted(f"{outer}|{','.join(sorted(keys))}" for outer, keys in groups.items())
    return hashlib.md5(",".join(texts).encode()).hexdigest()


@pytest.mark.parametrize("name", NAMES)
def test_a_folded_header_unfolds_to_the_file_it_was_made_from(name: str) -> None:
    facts = released.LAYOUTS / f"{read(name).facts}.tsv"
    if not facts.is_file():
        pytest.skip(f"{facts} is not at hand")

    rows = [line.split("\t") for line in facts.read_text("utf-8").splitlines()]
    shapes = {key: tuple(int(size) for size in text.split(",") if size) for key, text in rows}

    assert read(name).shapes == shapes


@pytest.mark.parametrize("name", NAMES)
def test_a_folded_header_has_the_published_signature(name: str) -> None:
    shapes = read(name).shapes
    nested = any("|" in key for key in shapes)

    assert (nested_signature if nested else released.signature)(shapes) == read(name).signature


@pytest.mark.parametrize(("name", "group"), GROUPS)
def test_a_part_of_a_single_file_has_the_published_signature(name: str, group: str) -> None:
    part = {key: shape for key, shape in read(name).shapes.items() if key.startswith(f"{group}.")}

    assert released.signature(part) == GROUPS[name, group]


@pytest.mark.parametrize("name", EXPECTED)
def test_a_released_file_is_recognised_whole(name: str, tmp_path: Path) -> None:
    identification = identify(name, tmp_path)

    assert identification.unclaimed == ()
    assert EXPECTED[name] == tuple(
        (each.prefix, each.family.name, each.layout.name, each.config, each.family.version(each.config))
        for each in identification.networks
    )


@pytest.mark.parametrize("name", EXPECTED)
def test_our_tables_write_every_key_of_a_released_file_back(name: str, tmp_path: Path) -> None:
    shapes = flat(read(name).shapes)
    checkpoint = open_checkpoint(released.write_hollow(shapes, tmp_path / "file.safetensors"))

    written: released.Shapes = {}
    for found in REGISTRY.identify(checkpoint).networks:
        check_header(found, checkpoint, found.family.build_on_meta(found.config).state_dict())
        ours = {key: spec.shape for key, spec in found.family.header(found.config, found.layout).items()}
        written |= released.beneath(found.prefix, ours)

    unread = {key: shape for key, shape in shapes.items() if key not in written}
    if shapes != read(name).shapes:
        nested = {key.replace(".", "|", 1): shape for key, shape in (written | unread).items()}
        assert nested_signature(nested) == read(name).signature
    else:
        assert released.signature(written | unread) == read(name).signature
    assert all(key.endswith(BUFFERS) for key in unread)


def test_a_control_network_in_one_file_with_what_it_was_trained_on_is_found_beside_it(tmp_path: Path) -> None:
    shapes = read("sd15").shapes | read("sd15_controlnet").shapes
    path = released.write_hollow(shapes, tmp_path / "control_sd15_canny.safetensors")

    identification = REGISTRY.identify(open_checkpoint(path))

    assert identification.unclaimed == ()
    families = [each.family.name for each in identification.networks]
    assert sorted(families) == ["autoencoder_kl", "clip", "unet", "unet_controlnet"]


def test_a_control_network_without_transformer_blocks_is_recognised(tmp_path: Path) -> None:
    fewer = {key: shape for key, shape in read("sdxl_controlnet").shapes.items() if ".transformer_blocks." not in key}
    middle = {key: shape for key, shape in read("sdxl_controlnet").shapes.items()
              if ("blocks.2" in key and ".transformer_blocks.0." in key) or key in fewer}  # fmt: skip

    found = []
    for name, shapes in (("small", fewer), ("mid", middle)):
        path = released.write_hollow(shapes, tmp_path / f"{name}.safetensors")
        (network,) = REGISTRY.identify(open_checkpoint(path)).networks
        check_header(network, open_checkpoint(path), network.family.build_on_meta(network.config).state_dict())
        found.append((network.config, network.family.version(network.config)))

    small = replace(XL_CONTROL, depths=(0, 0, 0), mid_depth=0, context_size=0, bare_levels=(1, 2, 3))
    mid = replace(XL_CONTROL, depths=(0, 0, 1), mid_depth=0, bare_levels=(1, 3))
    assert found == [(small, "SDXL"), (mid, "SDXL")]


def test_a_full_file_of_openai_gives_its_text_encoder(tmp_path: Path) -> None:
    shapes = read("clip_l").shapes | {"text_projection.weight": (768, 768), "logit_scale": ()}
    image = read("sd15_image_encoder").shapes
    path = released.write_hollow(shapes | image, tmp_path / "model.safetensors")

    identification = REGISTRY.identify(open_checkpoint(path))

    (found,), (other,) = identification.networks, identification.on_request
    assert found.config == replace(CLIP_L, projection_size=768)
    assert (other.family.name, other.config) == ("clip_vision", ClipVisionConfig())
    assert set(identification.unclaimed) == image.keys()
    assert identification.nearly == ()


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        (("latents", "proj_in.weight", "layers.0.0.to_q.weight", "norm_out.weight"), "IP-Adapter Plus,"),
        (("proj.0.weight", "proj.2.weight", "norm.weight"), "IP-Adapter FaceID,"),
        (("proj.0.weight", "proj.2.weight", "norm.weight", "perceiver_resampler.proj_in.weight"), "FaceID Plus,"),
        (("proj.0.weight", "proj.2.weight", "proj.3.weight"), "IP-Adapter Full Face,"),
    ],
)
def test_other_versions_of_the_ip_adapter_are_refused_by_name(keys: tuple[str, ...], name: str, tmp_path: Path) -> None:
    layers = {key: shape for key, shape in flat(read("sd15_ip_adapter").shapes).items() if "ip_adapter" in key}
    path = released.write_hollow(
        layers | {f"image_proj.{key}": (5, 7) for key in keys}, tmp_path / "adapter.safetensors"
    )

    with pytest.raises(UnknownCheckpoint, match=rf"is an {'.*' if 'Face' in name else ''}{name} which reads|resamples"):
        REGISTRY.identify(open_checkpoint(path))


def test_the_safety_checker_is_not_taken_for_an_image_encoder(tmp_path: Path) -> None:
    shapes = read("sd15_image_encoder").shapes | {"concept_embeds": (17, 768), "concept_embeds_weights": (17,)}
    path = released.write_hollow(shapes, tmp_path / "model.safetensors")

    with pytest.raises(UnknownCheckpoint, match="concept_embeds belongs to another network"):
        REGISTRY.identify(open_checkpoint(path))

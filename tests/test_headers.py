"""Released files, by keys and shapes alone: each is recognised, and our tables write every key of it back."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from diffsynth import models
from diffsynth.core.checkpoint import open_checkpoint
from diffsynth.core.registry import Identified, Registry
from diffsynth.errors import UnknownCheckpoint
from diffsynth.models.autoencoder_kl.config import AutoencoderKLConfig
from diffsynth.models.bert_clip.config import BertClipConfig
from diffsynth.models.clip_vision.config import ClipVisionConfig
from diffsynth.models.hunyuan_dit.config import HunyuanDiTConfig
from diffsynth.models.hunyuan_dit_ip_adapter.config import HunyuanDiTIPAdapterConfig
from diffsynth.models.mt5.config import MT5Config
from tests import released

V1_2 = HunyuanDiTConfig()
V1_1 = replace(V1_2, size_conditioning=True)


@dataclass(frozen=True)
class Expected:
    """What a released file must be recognised as."""

    family: str
    layout: str
    config: Any
    version: str = ""
    prefix: str = ""


EXPECTED = {
    "original_dit_v1.1": Expected("hunyuan_dit", "original", V1_1, "v1.0/v1.1"),
    "original_dit_v1.2": Expected("hunyuan_dit", "original", V1_2, "v1.2"),
    "diffusers_dit_v1.1": Expected("hunyuan_dit", "diffusers", V1_1, "v1.0/v1.1"),
    "diffusers_dit_v1.2": Expected("hunyuan_dit", "diffusers", V1_2, "v1.2"),
    "diffsynth_dit_v1.1": Expected("hunyuan_dit", "diffsynth", V1_1, "v1.0/v1.1"),
    "original_controlnet_v1.2": Expected("hunyuan_dit_controlnet", "original", V1_2, "v1.2"),
    "diffusers_controlnet_v1.1": Expected("hunyuan_dit_controlnet", "diffusers", V1_1, "v1.0/v1.1"),
    "original_clip": Expected("bert_clip", "original", BertClipConfig(), prefix="bert."),
    "original_mt5": Expected("mt5", "transformers", MT5Config()),
    "sdxl_vae": Expected("autoencoder_kl", "diffusers", AutoencoderKLConfig()),
    "sd15_vae_old": Expected("autoencoder_kl", "diffusers-old", AutoencoderKLConfig()),
    "sdxl_vae_ldm": Expected("autoencoder_kl", "ldm", AutoencoderKLConfig(), prefix="first_stage_model."),
    "original_ip_adapter_v1.2": Expected("hunyuan_dit_ip_adapter", "original", HunyuanDiTIPAdapterConfig()),
}
UNKNOWN = sorted(set(released.names()) - EXPECTED.keys())

UNREAD = {"original_clip": ("visual.", "text_projection"), "original_mt5": ("decoder.", "encoder.embed_", "lm_head.")}

REGISTRY = Registry.collect(models)


def identify(name: str, folder: Path) -> tuple[Identified, ...]:
    path = released.write_hollow(released.read(name).shapes, folder / f"{name}.safetensors")
    return REGISTRY.identify(open_checkpoint(path)).networks


@pytest.mark.parametrize("name", released.names())
def test_a_folded_header_unfolds_to_the_file_it_was_made_from(name: str) -> None:
    header = released.read(name)
    facts = released.LAYOUTS / f"{header.facts}.tsv"
    if not facts.is_file():
        pytest.skip(f"{facts} is not at hand")

    rows = [line.split("\t") for line in facts.read_text("utf-8").splitlines()]
    shapes = {key: tuple(int(size) for size in text.split(",") if size) for key, text in rows}

    assert header.shapes == shapes


@pytest.mark.parametrize("name", released.names())
def test_a_folded_header_has_the_published_signature(name: str) -> None:
    header = released.read(name)

    assert released.signature(header.shapes) == header.signature


@pytest.mark.parametrize("name", EXPECTED)
def test_a_released_file_is_recognised(name: str, tmp_path: Path) -> None:
    expected = EXPECTED[name]

    (found,) = identify(name, tmp_path)

    assert (found.family.name, found.layout.name, found.prefix) == (expected.family, expected.layout, expected.prefix)
    assert found.config == expected.config
    assert found.family.version(found.config) == expected.version


@pytest.mark.parametrize("name", EXPECTED)
def test_our_tables_write_every_key_of_a_released_file_back(name: str, tmp_path: Path) -> None:
    header = released.read(name)
    (found,) = identify(name, tmp_path)

    ours = {key: spec.shape for key, spec in found.family.header(found.config, found.layout).items()}
    written = released.beneath(found.prefix, ours)
    unread = {key: shape for key, shape in header.shapes.items() if key not in written}

    assert released.signature(written | unread) == header.signature
    assert all(key.startswith(UNREAD.get(name, ())) or key == "logit_scale" for key in unread)


@pytest.mark.parametrize("name", EXPECTED)
def test_what_stays_unread_is_what_the_network_does_not_need(name: str, tmp_path: Path) -> None:
    path = released.write_hollow(released.read(name).shapes, tmp_path / "file.safetensors")

    unclaimed = REGISTRY.identify(open_checkpoint(path)).unclaimed

    assert len(unclaimed) == (393 if name == "original_clip" else 0)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_image_tower_of_the_bilingual_clip_is_left_where_there_is_more(prefix: str, tmp_path: Path) -> None:
    shapes = released.read("original_clip").shapes
    tower = {prefix + key: shape for key, shape in shapes.items() if key.startswith(("visual.", "logit_scale"))}
    whole = open_checkpoint(released.write_hollow(shapes, tmp_path / "pytorch_model.safetensors"))
    alone = open_checkpoint(released.write_hollow(tower, tmp_path / "clip_img_encoder.safetensors"))

    usual, asked, by_itself = (
        REGISTRY.identify(whole),
        REGISTRY.identify(whole, "clip_vision"),
        REGISTRY.identify(alone),
    )

    assert [each.family.name for each in usual.networks] == ["bert_clip"]
    assert usual.on_request == asked.networks
    assert usual.nearly == by_itself.unclaimed == ()
    for found, place in ((asked.networks[0], ""), (by_itself.networks[0], prefix)):
        assert (found.layout.name, found.prefix, found.config) == ("bilingual", place, ClipVisionConfig.bilingual())
        assert found.family.version(found.config) == "bilingual CLIP ViT-H"


def test_our_table_writes_every_key_of_the_image_tower_back(tmp_path: Path) -> None:
    header = released.read("original_clip")
    path = released.write_hollow(header.shapes, tmp_path / "file.safetensors")
    (found,) = REGISTRY.identify(open_checkpoint(path), "clip_vision").networks

    written = {key: spec.shape for key, spec in found.family.header(found.config, found.layout).items()}

    assert written == {key: shape for key, shape in header.shapes.items() if key.startswith("visual.")}


@pytest.mark.parametrize("name", UNKNOWN)
def test_adapters_are_not_taken_for_the_network_they_belong_to(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnknownCheckpoint) as raised:
        identify(name, tmp_path)

    message = str(raised.value)
    assert f"It holds {len(released.read(name).shapes)} tensors: {next(iter(released.read(name).shapes))}" in message
    assert "nearest: hunyuan_dit" not in message
    assert ("those of a LoRA" in message) == ("lora" in name)


@pytest.mark.parametrize(
    ("name", "lacks", "nearest"),
    [
        ("original_dit_v1.2", "final_layer.linear.weight", "hunyuan_dit (layout 'original')"),
        ("original_controlnet_v1.2", "before_proj.weight", "hunyuan_dit_controlnet (layout 'original')"),
        ("diffusers_controlnet_v1.1", "input_block.weight", "hunyuan_dit_controlnet (layout 'diffusers')"),
    ],
)
def test_a_denoiser_and_a_control_network_are_not_taken_for_each_other(
    name: str, lacks: str, nearest: str, tmp_path: Path
) -> None:
    shapes = {key: shape for key, shape in released.read(name).shapes.items() if key != lacks}
    path = released.write_hollow(shapes, tmp_path / "file.safetensors")

    with pytest.raises(UnknownCheckpoint) as raised:
        REGISTRY.identify(open_checkpoint(path))

    assert f"nearest: {nearest}: missing {lacks}" in str(raised.value)


def test_a_control_network_with_a_block_too_few_is_refused_with_a_reason(tmp_path: Path) -> None:
    shapes = released.read("original_controlnet_v1.2").shapes
    fewer = {key: shape for key, shape in shapes.items() if not key.startswith("blocks.18.")}
    path = released.write_hollow(fewer, tmp_path / "file.safetensors")

    with pytest.raises(UnknownCheckpoint, match="18 blocks have 19 outputs; each block has one"):
        REGISTRY.identify(open_checkpoint(path))


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        ("original_dit_v1.2", {"extra_embedder.0.weight": (5632, 1025)}, "1025 values; 1024 or 3968 were expected"),
        ("original_dit_v1.2", {"blocks.{0-39}.attn1.q_norm.weight": (89,)}, "1408 is not a multiple of the head size"),
        ("original_dit_v1.2", {"text_embedding_padding": (256, 1024)}, "has 256 tokens, fewer than the 257"),
        (
            "original_mt5",
            {"encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (32, 31)},
            "2048 attention features do not divide into 31 heads",
        ),
        ("sdxl_vae", {"encoder.down_blocks.0.resnets.{0-1}.conv2.weight": (100, 100, 3, 3)}, "width0 is 100"),
    ],
)
def test_sizes_that_no_network_has_are_refused_with_a_reason(
    name: str, changes: dict[str, tuple[int, ...]], sentence: str, tmp_path: Path
) -> None:
    changed = {key: shape for text, shape in changes.items() for key in released.expand(text)}
    path = released.write_hollow(released.read(name).shapes | changed, tmp_path / "changed.safetensors")

    with pytest.raises(UnknownCheckpoint) as raised:
        REGISTRY.identify(open_checkpoint(path))

    assert sentence in str(raised.value).splitlines()[1]


def test_full_size_files_are_recognised_without_reading_them(tmp_path: Path) -> None:
    names = ("original_dit_v1.2", "original_clip", "original_mt5", "sdxl_vae")
    paths = [released.write_hollow(released.read(name).shapes, tmp_path / name) for name in names]
    program = """
import resource, sys
from diffsynth import models, open_checkpoint
from diffsynth.core.registry import Registry
registry = Registry.collect(models)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = [registry.identify(open_checkpoint(path)).networks[0].family.name for path in sys.argv[1:]]
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, *found)
"""

    done = subprocess.run([sys.executable, "-c", program, *map(str, paths)], capture_output=True, text=True, check=True)

    kilobytes, *found = done.stdout.split()
    assert found == ["hunyuan_dit", "bert_clip", "mt5", "autoencoder_kl"]
    assert sum(path.stat().st_size for path in paths) > 10e9
    assert int(kilobytes) < 100_000

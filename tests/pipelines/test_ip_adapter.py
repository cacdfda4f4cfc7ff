"""Pictures as prompts of HunyuanDiT: whole images against the formula, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from diffsynth import HunyuanDiTImagePipeline, save_image
from diffsynth.errors import InvalidRequest
from diffsynth.models.hunyuan_dit.blocks import CrossAttention
from diffsynth.models.hunyuan_dit.rope import Rope
from diffsynth.pipelines.ip_adapter import MEAN, SPREAD
from tests.adapters import ENCODER, HUNYUAN_DIT, write_hunyuan_dit_ip_adapter, write_ip_adapter
from tests.naming import as_written

from .toy import OTHER_PROMPT, PROMPT, assert_same_latents, draw_ours, load_toy

SMALL: dict[str, Any] = {"height": 64, "width": 96, "num_inference_steps": 2, "seed": 7}
Make = Callable[..., HunyuanDiTImagePipeline]


def picture(seed: int, width: int = 70, height: int = 50) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


ONE, TWO = picture(1), picture(2, 48, 90)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_hunyuan_dit_ip_adapter(tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="module")
def drawing(v1_2: list[Path], adapter: list[Path]) -> Make:
    """Return conventions → a pipeline with an adapter; nobody changes it."""

    @cache
    def make(conventions: str = "diffsynth") -> HunyuanDiTImagePipeline:
        return load_toy([*v1_2, *adapter], conventions)

    return make


def tokens_of(pictures: list[Image.Image], pipe: HunyuanDiTImagePipeline, state: dict[str, Tensor]) -> Tensor:
    """Return the tokens of no picture and of pictures, (2, L, text_dim), by the formula and published names."""
    assert pipe.pictures.encoder is not None
    side, rows = (ENCODER.image_size, ENCODER.image_size), []
    for image in pictures:
        square = np.asarray(image.resize(side, Image.Resampling.BICUBIC), dtype=np.float64) / 255
        pixels = torch.from_numpy((square - MEAN) / SPREAD).float().permute(2, 0, 1)[None]
        embed = pipe.pictures.encoder.module(pixels)
        rows.append(torch.cat((torch.zeros_like(embed), embed / embed.norm(dim=-1, keepdim=True))))
    each = []
    for embed in rows:
        spread = F.linear(
            embed, state["ip_adapter_clip_len_trans_block.weight"], state["ip_adapter_clip_len_trans_block.bias"]
        )
        spread = spread.reshape(2, HUNYUAN_DIT.text_dim, HUNYUAN_DIT.tokens).transpose(1, 2)
        norm = state["ip_adapter_img_norm_cond.weight"], state["ip_adapter_img_norm_cond.bias"]
        each.append(F.layer_norm(spread, (HUNYUAN_DIT.text_dim,), *norm, eps=1e-5))
    return torch.cat(each, dim=1)


def by_formula(
    layer: CrossAttention,
    number: int,
    pictures: Tensor,
    state: dict[str, Tensor],
    scale: float,
    tokens: Tensor,
    keys: Tensor,
    values: Tensor,
    rope: Rope,
    attention: object = None,
) -> Tensor:
    """Cross-attention of one block to the text and, apart, to pictures: softmax of scaled products, then the sum."""
    names = f"blocks.{number}.attn2.kv_proj_ip_adapter", f"blocks.{number}.attn2.k_norm_ip_adapter"
    heads, size = HUNYUAN_DIT.num_heads, HUNYUAN_DIT.head_dim
    kv = F.linear(pictures, state[f"{names[0]}.weight"], state[f"{names[0]}.bias"])
    kv = kv.reshape(len(pictures), -1, 2, heads, size)
    own_keys = F.layer_norm(kv[:, :, 0], (size,), state[f"{names[1]}.weight"], state[f"{names[1]}.bias"], eps=1e-6)
    queries = rope.rotate(layer.q_norm(layer.q(tokens).unflatten(-1, (heads, size))))

    def mixed(keys: Tensor, values: Tensor) -> Tensor:
        logits = torch.einsum("bnhd,blhd->bhnl", queries, keys) / size**0.5
        return torch.einsum("bhnl,blhd->bnhd", logits.softmax(dim=-1), values).flatten(2)

    out: Tensor = layer.out(mixed(keys, values) + scale * mixed(own_keys, kv[:, :, 1]))
    return out


@pytest.mark.parametrize("conventions", ["diffsynth", "original"])
def test_an_image_follows_the_formula(
    drawing: Make, adapter: list[Path], conventions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, state = drawing(conventions), torch.load(adapter[0], weights_only=True)
    settings = {**SMALL, "cfg_scale": 3.0, "negative_prompt": OTHER_PROMPT}

    _, found = draw_ours(pipe, PROMPT, ipadapter_images=[ONE, TWO], ipadapter_scale=0.7, **settings)

    with torch.no_grad():
        pictures = tokens_of([ONE, TWO], pipe, state)  # rows: the negative prompt, the prompt
    for number, block in enumerate(pipe.denoiser.blocks):
        layer = cast(CrossAttention, block.cross_attn)
        monkeypatch.setattr(layer, "forward", partial(by_formula, layer, number, pictures, state, 0.7))
    _, expected = draw_ours(pipe, PROMPT, **settings)
    assert_same_latents(found, expected)


@pytest.mark.parametrize("conventions", ["diffsynth", "original", "diffusers"])
def test_no_pictures_and_a_weight_of_zero_are_an_image_without_an_adapter_to_the_last_bit(
    drawing: Make, v1_2: list[Path], conventions: str
) -> None:
    settings = {**SMALL, "resolution_binning": False}
    plain = load_toy(v1_2, conventions)(PROMPT, **settings)

    pipe = drawing(conventions)

    assert pipe(PROMPT, **settings).tobytes() == plain.tobytes()
    assert pipe(PROMPT, ipadapter_images=[ONE], ipadapter_scale=0, **settings).tobytes() == plain.tobytes()
    assert pipe(PROMPT, ipadapter_images=[ONE], **settings).tobytes() != plain.tobytes()


HALF = Image.new("RGB", (96, 64))
HALF.paste("white", (0, 0, 48, 64))


@pytest.mark.parametrize(
    "settings",
    [
        {"cfg_scale": 1.0},
        {"perturbed_attention_scale": 2.0},
        {"local_prompts": ["a rose"], "masks": [HALF]},
        {"tiled": True, "tile_size": 3, "tile_stride": 2},
        {"hires_scale": 1.5, "hires_strength": 1.0},
    ],
    ids=as_written,
)
def test_pictures_and_their_weight_show_beside_other_settings(drawing: Make, settings: dict[str, Any]) -> None:
    shown = [
        drawing()(PROMPT, ipadapter_images=[image], ipadapter_scale=scale, **SMALL, **settings).tobytes()
        for image, scale in ((ONE, 1.0), (TWO, 1.0), (ONE, 0.5))
    ]

    assert len(set(shown)) == 3


def test_images_drawn_together_see_the_same_pictures(drawing: Make) -> None:
    _, together = draw_ours(drawing(), [PROMPT, OTHER_PROMPT], ipadapter_images=[ONE], **SMALL)

    for row, text in enumerate((PROMPT, OTHER_PROMPT)):
        _, alone = draw_ours(drawing(), text, ipadapter_images=[ONE], **{**SMALL, "seed": 7 + row})
        assert_same_latents(together[row : row + 1], alone)


def test_half_precision_draws_with_pictures(v1_2: list[Path], adapter: list[Path]) -> None:
    pipe = load_toy([*v1_2, *adapter], dtype=torch.bfloat16)

    _, latents = draw_ours(pipe, PROMPT, ipadapter_images=[ONE], **SMALL)

    assert latents.isfinite().all()


def test_the_recipe_names_the_adapter_only_where_it_took_part(drawing: Make, tmp_path: Path) -> None:
    families = []
    cases: list[dict[str, Any]] = [{"ipadapter_images": [ONE]}, {}]
    for settings in cases:
        path = save_image(drawing()(PROMPT, **SMALL, **settings), tmp_path / "image.png")
        with Image.open(path) as saved:
            families.append({model["family"] for model in json.loads(saved.info["diffsynth"])["models"]})

    assert families[0] - families[1] == {"hunyuan_dit_ip_adapter", "clip_vision"}


def test_pictures_that_cannot_be_taken_are_refused_with_the_reason(
    v1_2: list[Path], adapter: list[Path], tmp_path: Path
) -> None:
    other = write_ip_adapter(tmp_path, "sd15")
    cases = {
        "this pipeline has no IP-Adapter": [],
        "this pipeline has no IP-Adapter.": other,
        r"no image encoder is loaded that .* kind=\"clip_vision\"": adapter[:1],
        "is not the image tower of HunyuanDiT's CLIP": [adapter[0], other[1]],
    }

    for message, files in cases.items():
        pipe = load_toy([*v1_2, *files])
        with pytest.raises(InvalidRequest, match=rf"(?s)ipadapter_images are given, but .*{message}"):
            pipe(PROMPT, ipadapter_images=[ONE], **SMALL)


def test_an_adapter_of_other_sizes_is_left_out_and_told_of(adapter: list[Path], tmp_path: Path) -> None:
    from .toy import write_toy

    pipe = load_toy([*write_toy(tmp_path, depth=8), *adapter])

    with pytest.raises(InvalidRequest, match="its depth is 6, the denoiser's 8"):
        pipe(PROMPT, ipadapter_images=[ONE], **SMALL)

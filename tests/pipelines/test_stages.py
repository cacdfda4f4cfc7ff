"""Texts first, for many images at once, then latents, then pixels: the same images as from one call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

from diffsynth import HunyuanDiTImagePipeline, SDImagePipeline, SDXLImagePipeline
from diffsynth.pipelines.texts import Texts

from .conftest import Release
from .toy import OTHER_PROMPT, PROMPT, quiet
from .unet.toy import load

SMALL: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 2, "cfg_scale": 3.0}


def in_stages(pipe: Any, settings: list[dict[str, Any]]) -> list[Image.Image]:
    """Draw each request alone, after the texts of all were encoded together."""
    requests = [pipe.prepare([pipe.request_type.from_settings(each)]) for each in settings]
    texts = pipe.encode_texts(request for (request,) in requests).to("cpu")
    latents = [pipe.draw_latents(request, texts, quiet()) for request in requests]
    return [pipe.decode(*pair)[0] for pair in zip(requests, latents, strict=True)]


def assert_drawn_as_by_a_call(pipe: Any, settings: list[dict[str, Any]]) -> None:
    for found, each in zip(in_stages(pipe, settings), settings, strict=True):
        expected = pipe(**each)
        assert found.tobytes() == expected.tobytes()
        assert found.info["recipe"] == expected.info["recipe"]


def test_hunyuan_dit_in_stages_is_one_call(pipe: HunyuanDiTImagePipeline) -> None:
    mask = Image.linear_gradient("L")
    mine: list[dict[str, Any]] = [
        {"prompt": PROMPT, "seed": 1, **SMALL},
        {"prompt": OTHER_PROMPT, "seed": 2, "negative_prompt": PROMPT, "clip_skip": 2, **SMALL},
        {"prompt": PROMPT, "seed": 3, "local_prompts": [OTHER_PROMPT], "masks": [mask], **SMALL},
        {"prompt": PROMPT, "seed": 4, "hires_scale": 2, "hires_upscale": "latent", **SMALL},
    ]

    assert_drawn_as_by_a_call(pipe, mine)


@pytest.mark.parametrize(("name", "kind"), [("sd15", SDImagePipeline), ("sdxl", SDXLImagePipeline)])
def test_unets_in_stages_are_one_call(release: Release, name: str, kind: type[Any]) -> None:
    mine: list[dict[str, Any]] = [
        {"prompt": "a photo of a cat", "seed": 1, **SMALL},
        {"prompt": "a (red:1.3) cat", "seed": 2, "negative_prompt": "a photo of a cat", **SMALL},
        {"prompt": "a cat " * 50, "seed": 3, "long_prompts": "chunks", **SMALL},
    ]

    assert_drawn_as_by_a_call(load([release(name)], kind), mine)


def test_every_distinct_text_is_encoded_once(pipe: HunyuanDiTImagePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    encode = pipe.encode

    def reading(text: Any) -> Any:
        read.append(text.prompt)
        return encode(text)

    monkeypatch.setattr(pipe, "encode", reading)
    requests = [
        pipe.prepare([pipe.request_type.from_settings({"prompt": prompt, "seed": seed, **SMALL})])[0]
        for prompt in (PROMPT, OTHER_PROMPT)
        for seed in range(3)
    ]

    texts = pipe.encode_texts(requests)

    assert sorted(read) == sorted(["", PROMPT, OTHER_PROMPT])
    assert len(texts) == 3
    assert texts.nbytes == 3 * pipe.encode_texts(requests[:1]).nbytes / 2
    assert len(Texts().with_more(texts)) == 3


def test_the_features_of_a_text_do_not_depend_on_those_beside_it(pipe: HunyuanDiTImagePipeline) -> None:
    first, second = (
        pipe.prepare([pipe.request_type.from_settings({"prompt": prompt, "seed": 0, "cfg_scale": 1.0})])[0]
        for prompt in (PROMPT, OTHER_PROMPT)
    )
    [text] = pipe.texts_of(second)

    together, alone = pipe.encode_texts([first, second])[text], pipe.encode_texts([second])[text]

    assert torch.equal(together.clip, alone.clip)
    assert torch.equal(together.t5, alone.t5)

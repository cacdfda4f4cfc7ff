"""The control network that comes with the package: small, and what it is shown decides where an object stands."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from diffsynth import HunyuanDiTImagePipeline, ModelManager, download_models, open_checkpoint
from diffsynth.hub.bundled import files_of
from diffsynth.hub.catalog import CATALOG
from examples.emoji_painter.measure import extent

BASE, MODEL_ID = "HunyuanDiT-Emoji", "HunyuanDiT-Emoji-ControlNet"
SIDE = 128
MOST_BYTES = 6_000_000
NEAR = 10  # pixels between the middle of what is shown and that of what is drawn

pytestmark = pytest.mark.skipif(not files_of(MODEL_ID), reason="the bundled control network is not in this checkout")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    download_models([BASE, MODEL_ID], local_dir=root)
    return root


@pytest.fixture(scope="module")
def pipe(models: Path) -> Any:
    paths = [models / name for model in (BASE, MODEL_ID) for name in CATALOG[model].weights]
    return HunyuanDiTImagePipeline.from_model_manager(ModelManager(torch.float32, "cpu", file_path_list=paths))


def middle_of(image: Image.Image) -> tuple[float, float]:
    box = extent(image)
    assert box is not None
    left, top, right, bottom = box
    return (left + right) / 2, (top + bottom) / 2


def test_it_is_small_and_in_half_precision_and_tells_how_it_was_trained(models: Path) -> None:
    (name,) = CATALOG[MODEL_ID].weights
    checkpoint = open_checkpoint(models / name)
    card = json.loads((models / MODEL_ID / "card.json").read_text("utf-8"))

    assert (models / name).stat().st_size <= MOST_BYTES
    assert {spec.dtype for spec in checkpoint.header.values()} == {torch.float16}
    assert "before_proj.weight" in checkpoint.header
    assert json.loads(checkpoint.metadata["training"]) == card["recipe"]
    assert card["figures"]["with control"]["place"] > card["figures"]["without"]["place"]
    assert '"/' not in json.dumps(card)


def test_the_edges_of_a_picture_decide_where_the_object_stands(pipe: Any) -> None:
    settings = {"height": SIDE, "width": SIDE, "num_inference_steps": 10, "cfg_scale": 2.5}
    first = pipe("an apple on a white background", seed=3, **settings)
    smaller, prompt = first.resize((100, 100)), "an apple on a blue background"
    without = middle_of(pipe(prompt, seed=1, **settings))

    for place in ((0, 0), (28, 28)):
        moved = Image.new("RGB", (SIDE, SIDE), first.getpixel((0, 0)))
        moved.paste(smaller, place)
        image = pipe(prompt, seed=1, controlnet_image=moved, controlnet_processors="canny", **settings)
        assert math.dist(middle_of(image), middle_of(moved)) < NEAR
        assert math.dist(without, middle_of(moved)) > NEAR

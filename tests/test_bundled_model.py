"""The model that comes with the package: complete, small, and drawing today what it drew before.

The images of eight prompts are kept as thumbnails in bundled_model.png. After new weights, or a change that is meant
to change images, look at them and write them again:

    python -m tests.test_bundled_model
"""

from __future__ import annotations

import json
import re
import socket
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from diffsynth import HunyuanDiTImagePipeline, ModelManager, download_models, open_checkpoint
from diffsynth.cli import run
from diffsynth.hub.bundled import files_of
from diffsynth.hub.catalog import CATALOG

Floats = npt.NDArray[np.float32]

MODEL_ID = "HunyuanDiT-Emoji"
REPO = Path(__file__).parents[1]
REFERENCE = Path(__file__).with_name("bundled_model.png")
MOST_BYTES = 40_000_000
SIDE, THUMBNAIL = 128, 32
PROMPTS = (
    "一只熊猫，蓝色背景",
    "a fox on a green background",
    "一只獾轻轻嗅着一朵黄色玫瑰",
    "a rocket, black background",
    "画一个苹果，背景是白色",
    "a penguin on the left, a snowman on the right, blue background",
    "左边一头狮子，右边一朵向日葵，紫色背景",
    "a doughnut on a pink background",
)
COLORS = {0: "blue", 1: "green", 3: "black", 4: "white", 5: "blue", 6: "purple", 7: "pink"}
# Mean difference of an image, of 255, that other processors and threads may make. Threads make none that is seen; a
# random 1e-4 of every weight makes 0.02, a guidance weight that is 5 % larger makes 1 to 2.
NEAR = 0.1

pytestmark = pytest.mark.skipif(not files_of(MODEL_ID), reason="the bundled model is not in this checkout")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder, with the model under models/."""
    root = tmp_path_factory.mktemp("bundled")
    download_models([MODEL_ID], local_dir=root / "models")
    return root


@pytest.fixture(scope="module")
def card(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "models" / MODEL_ID / "card.json").read_text("utf-8"))
    return found


@pytest.fixture(scope="module")
def manager(folder: Path) -> ModelManager:
    paths = [folder / "models" / name for name in CATALOG[MODEL_ID].weights]
    return ModelManager(torch.float32, device="cpu", file_path_list=paths)


@pytest.fixture(scope="module")
def usual(manager: ModelManager) -> Floats:
    """Thumbnails of the prompts as they are drawn today."""
    return draw(manager)


def draw(manager: ModelManager, beta_end: float = 0.018, seed: int = 0, **changes: Any) -> Floats:
    """Return thumbnails (8, 32, 32, 3), 0 to 255: half of them by the usual sampler, half by the recommended one."""
    pipe = HunyuanDiTImagePipeline.from_model_manager(manager, beta_end=beta_end)
    half, images = len(PROMPTS) // 2, []
    for start, scheduler in ((0, "ddim"), (half, "unipc")):
        settings = {"scheduler": scheduler, "num_inference_steps": 8, "cfg_scale": 5.0, **changes}
        prompts = list(PROMPTS[start : start + half])
        images += pipe(prompts, height=SIDE, width=SIDE, seed=seed + start, batch_size=half, **settings)
    small = [image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX) for image in images]
    return np.stack([np.asarray(image, np.float32) for image in small])


def difference(images: Floats, others: Floats) -> float:
    """Return the mean difference of the two images that differ most."""
    return float(np.abs(images - others).mean(axis=(1, 2, 3)).max())


def reference() -> Floats:
    with Image.open(REFERENCE) as strip:
        pixels = np.asarray(strip.convert("RGB"), np.float32)
    return np.stack(np.split(pixels, len(PROMPTS), axis=1))


def write_reference() -> None:
    """Keep the images as they are drawn today."""
    manager = ModelManager(torch.float32, device="cpu", file_path_list=download_models([MODEL_ID]))
    strip = np.concatenate(draw(manager), axis=1).astype(np.uint8)
    Image.fromarray(strip).save(REFERENCE, optimize=True)


def test_it_is_put_in_place_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)

    found = download_models([MODEL_ID], local_dir=tmp_path)

    assert found == [tmp_path / name for name in CATALOG[MODEL_ID].weights]
    beside = (f"{MODEL_ID}/card.json", f"{MODEL_ID}/LICENSE")
    for name in (*CATALOG[MODEL_ID].weights, *CATALOG[MODEL_ID].vocabularies, *beside):
        assert (tmp_path / name).is_file()


def test_it_is_small_and_in_half_precision_and_tells_how_it_was_trained(folder: Path) -> None:
    files = [path for path in (folder / "models" / MODEL_ID).rglob("*") if path.is_file()]

    assert sum(path.stat().st_size for path in files) <= MOST_BYTES
    for name in CATALOG[MODEL_ID].weights:
        checkpoint = open_checkpoint(folder / "models" / name)
        assert {spec.dtype for spec in checkpoint.header.values()} == {torch.float16}
        assert not checkpoint.nonfinite()
        assert json.loads(checkpoint.metadata["training"])["step"] > 0


def test_its_networks_are_of_the_real_kinds(manager: ModelManager) -> None:
    assert [entry.family.name for entry in manager] == ["bert_clip", "mt5", "hunyuan_dit", "autoencoder_kl"]
    assert not manager.find("hunyuan_dit").config.size_conditioning  # as version 1.2


def test_the_card_says_what_it_can_draw_and_how_well(card: dict[str, Any]) -> None:
    objects = card["objects"]

    assert len(objects) >= 60
    assert {"badger", "rose", "panda"} <= {each["en"] for each in objects}
    assert all(each["char"] and each["en"] and each["zh"] for each in objects)
    assert all(color["zh"] and len(color["rgb"]) == 3 for color in card["colors"].values())
    assert all(card["templates"][kind][language] for kind in ("one", "two") for language in ("en", "zh"))
    assert {"weights", "pictures", "names"} <= card["license"].keys()
    assert all(recipe["step"] > 0 for recipe in card["recipe"].values())
    assert {"one object, seen", "one object, held out", "two objects, held out"} <= card["figures"].keys()
    assert '"/' not in json.dumps(card)  # no folder of the machine it was made on


def test_fixed_prompts_and_seeds_keep_their_images(usual: Floats) -> None:
    assert difference(usual, reference()) < NEAR


@pytest.mark.parametrize(
    "changes",
    [{"seed": 1}, {"cfg_scale": 5.25}, {"beta_end": 0.0189}, {"spacing": "leading"}, {"scheduler": "dpm++2m"}],
    ids=str,
)
def test_a_small_change_of_the_sampling_would_be_noticed(changes: dict[str, Any], manager: ModelManager) -> None:
    assert difference(draw(manager, **changes), reference()) > 2 * NEAR


def test_each_prompt_has_an_image_of_its_own(usual: Floats) -> None:
    assert all(np.abs(one - other).mean() > 10 for one, other in pairwise(usual))


def test_backgrounds_are_those_that_are_asked_for(usual: Floats, card: dict[str, Any]) -> None:
    known = {name: np.array(color["rgb"]) for name, color in card["colors"].items()}
    corners = usual[:, [0, 0, -1, -1], [0, -1, 0, -1]]  # (8, 4, 3)
    names, colors = list(known), np.stack(list(known.values()))

    distances = np.abs(np.median(corners, axis=1)[:, None] - colors).sum(axis=2)  # (8, colors)

    seen = [names[number] for number in distances.argmin(axis=1)]
    assert sum(seen[number] == color for number, color in COLORS.items()) >= len(COLORS) - 1


@pytest.fixture
def in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DIFFSYNTH_CACHE", str(folder / "cache"))
    return folder


def test_the_script_of_the_readme_runs_with_the_one_name_changed(in_folder: Path) -> None:
    readme = (REPO / "README.md").read_text("utf-8")
    script = next(text for text in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if '(["HunyuanDiT"])' in text)
    changes = ((r"\bHunyuanDiT\b", MODEL_ID), ("cuda", "cpu"), ("float16", "float32"), (r"\b1024\b", str(SIDE)))
    for before, after in changes:
        script = re.sub(before, after, script)

    exec(compile(script, "<README>", "exec"), {})

    with Image.open(in_folder / "image_1024.png") as image:
        assert image.size == (SIDE, SIDE)


def test_the_command_line_draws_with_it(in_folder: Path) -> None:
    size = ["--height", str(SIDE), "--width", str(SIDE), "--steps", "2", "--device", "cpu"]

    code = run(["generate", "--model", f"models/{MODEL_ID}/t2i", "--prompt", PROMPTS[0], *size, "-o", "panda.png"])

    assert code == 0
    with Image.open(in_folder / "panda.png") as image:
        assert image.size == (SIDE, SIDE)


if __name__ == "__main__":
    write_reference()

"""The recipe in a PNG file: complete enough to draw the same image again."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import pickle
import re
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from diffsynth import HunyuanDiTImagePipeline, save_image
from diffsynth.core import digest
from diffsynth.errors import InvalidRequest
from diffsynth.pipelines.hunyuan_dit.request import HunyuanDiTRequest
from diffsynth.pipelines.recipe import read_recipe, request_from
from examples.random_models import write_models

from .conftest import Load
from .toy import OTHER_PROMPT, PROMPT, load_toy

SMALL: dict[str, Any] = {"height": 64, "width": 96, "num_inference_steps": 2, "seed": 7}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep digests in a folder of this test."""
    monkeypatch.setenv("DIFFSYNTH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"negative_prompt": OTHER_PROMPT, "guidance_rescale": 0.5, "clip_skip": 2},
        {"scheduler": "ddpm", "perturbed_attention_scale": 2.0},
        {"tiled": True, "tile_size": 3, "tile_stride": 2},
        {"height": 70, "width": 70},
    ],
    ids=str,
)
@pytest.mark.parametrize("conventions", ["diffsynth", "original", "diffusers"])
def test_a_recipe_draws_the_same_image_again(
    pipeline: Load, tmp_path: Path, conventions: str, settings: dict[str, Any]
) -> None:
    pipe = pipeline("v1.0", conventions)
    image = pipe(PROMPT, **{"resolution_binning": False, **SMALL, **settings})
    path = save_image(image, tmp_path / "image.png")

    recipe = read_recipe(path)
    again = pipeline("v1.0", recipe["conventions"])(**request_from(recipe, HunyuanDiTRequest))

    assert again.tobytes() == image.tobytes()
    with Image.open(path) as saved:
        assert saved.tobytes() == image.tobytes()


def test_a_recipe_names_everything_that_took_part(pipe: HunyuanDiTImagePipeline, tmp_path: Path) -> None:
    recipe = read_recipe(save_image(pipe(PROMPT, **SMALL), tmp_path / "image.png"))

    assert recipe["pipeline"] == "HunyuanDiTImagePipeline"
    assert (recipe["conventions"], recipe["beta_end"]) == ("diffsynth", 0.018)
    assert (recipe["request"]["seed"], recipe["request"]["cfg_scale"]) == (7, 7.5)
    assert set(recipe["request"]) == set(HunyuanDiTRequest.settings())
    assert all(recipe[name] for name in ("torch", "python", "diffsynth"))
    assert [model["family"] for model in recipe["models"]] == ["hunyuan_dit", "bert_clip", "mt5", "autoencoder_kl"]
    for model in recipe["models"]:
        content = Path(model["path"]).read_bytes()
        assert model["files"] == [{"path": model["path"], "sha256": hashlib.sha256(content).hexdigest()}]
    assert [each["family"] for each in recipe["vocabularies"]] == ["clip_tokenizer", "t5_tokenizer"]


def test_every_image_of_a_batch_has_its_own_recipe(pipe: HunyuanDiTImagePipeline, tmp_path: Path) -> None:
    images = pipe([PROMPT, OTHER_PROMPT], **SMALL)

    recipes = [read_recipe(save_image(image, tmp_path / f"{n}.png"))["request"] for n, image in enumerate(images)]

    assert [(recipe["prompt"], recipe["seed"]) for recipe in recipes] == [(PROMPT, 7), (OTHER_PROMPT, 8)]


def test_the_other_chunk_reads_as_other_programs_write_it(pipeline: Load, tmp_path: Path) -> None:
    pipe = pipeline("v1.2", "original")
    image = pipe(PROMPT, input_image=Image.new("RGB", (96, 64)), strength=0.5, negative_prompt="a rose", **SMALL)

    with Image.open(save_image(image, tmp_path / "image.png")) as saved:
        text = saved.info["parameters"]

    prompt, negative, facts = text.split("\n")
    assert prompt == PROMPT
    assert negative == "Negative prompt: a rose"
    pairs = dict(part.split(": ", 1) for part in facts.split(", "))
    assert pairs["Steps"] == "2"
    assert pairs["Sampler"] == "ddpm"
    assert pairs["CFG scale"] == "6.0"
    assert pairs["Seed"] == "7"
    assert pairs["Size"] == "96x64"
    assert pairs["Denoising strength"] == "0.5"
    assert re.fullmatch("[0-9a-f]{10}", pairs["Model hash"])
    assert pairs["Model"] == "pytorch_model_ema"


def test_an_image_made_from_pictures_says_that_it_needs_them(pipe: HunyuanDiTImagePipeline, tmp_path: Path) -> None:
    image = pipe(PROMPT, input_image=Image.new("RGB", (96, 64), "red"), strength=0.5, **SMALL)

    recipe = read_recipe(save_image(image, tmp_path / "image.png"))

    assert recipe["request"]["input_image"]["size"] == [96, 64]
    with pytest.raises(InvalidRequest, match="input_image"):
        request_from(recipe, HunyuanDiTRequest)


def test_the_hash_of_a_weight_file_is_computed_once(
    pipe: HunyuanDiTImagePipeline, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = pipe(PROMPT, **SMALL)
    save_image(image, tmp_path / "first.png")

    def refuse(path: Path) -> str:
        raise AssertionError(f"{path} was read again")

    monkeypatch.setattr(digest, "digest_of", refuse)
    save_image(image, tmp_path / "second.png")

    assert len(json.loads((own_cache / "sha256.json").read_text())) == 6


def test_a_recipe_can_be_written_where_no_hash_can_be_remembered(
    pipe: HunyuanDiTImagePipeline, tmp_path: Path, own_cache: Path
) -> None:
    own_cache.write_text("in the way of the folder")

    assert read_recipe(save_image(pipe(PROMPT, **SMALL), tmp_path / "image.png"))["models"]


def test_an_image_that_cannot_be_written_leaves_nothing(
    pipe: HunyuanDiTImagePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, folder = pipe(PROMPT, **SMALL), tmp_path / "images"
    path = save_image(image, folder / "image.png")
    before = path.read_bytes()

    def fail(target: Path, **_: object) -> None:
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(image, "save", fail)
    for name in ("image.png", "new.png"):
        with pytest.raises(OSError, match="disk full"):
            save_image(image, folder / name)

    assert [each.name for each in folder.iterdir()] == ["image.png"]
    assert path.read_bytes() == before


def test_other_pictures_are_saved_without_a_recipe(tmp_path: Path) -> None:
    path = save_image(Image.new("RGB", (4, 4)), tmp_path / "plain.png")

    with pytest.raises(InvalidRequest, match="holds no diffsynth recipe"):
        read_recipe(path)


@pytest.mark.parametrize("chunk", ["not JSON", "[]", "{}", '{"version": 2, "request": {}}', '{"version": 1}'])
def test_a_chunk_that_is_no_recipe_is_refused(tmp_path: Path, chunk: str) -> None:
    chunks = PngInfo()
    chunks.add_itxt("diffsynth", chunk)
    Image.new("RGB", (4, 4)).save(tmp_path / "image.png", pnginfo=chunks)

    with pytest.raises(InvalidRequest, match="recipe"):
        read_recipe(tmp_path / "image.png")


def test_only_png_files_are_written_and_only_images_read(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")

    with pytest.raises(InvalidRequest, match=r"must end in \.png"):
        save_image(Image.new("RGB", (4, 4)), tmp_path / "image.jpg")
    with pytest.raises(InvalidRequest, match="holds no diffsynth recipe"):
        read_recipe(tmp_path / "text.png")
    with pytest.raises(FileNotFoundError):
        read_recipe(tmp_path / "absent.png")


def test_a_copy_of_an_image_keeps_its_recipe(v1_2: list[Path], tmp_path: Path) -> None:
    image = load_toy(v1_2)(PROMPT, **SMALL).copy()

    assert read_recipe(save_image(image, tmp_path / "image.png"))["request"]["prompt"] == PROMPT


def test_an_image_holds_no_network(v1_2: list[Path]) -> None:
    pipe = load_toy(v1_2)
    networks = [weakref.ref(part) for part in (pipe.denoiser, pipe.vae, pipe.prompt_encoder.t5)]
    image = pipe(PROMPT, **SMALL)

    del pipe
    gc.collect()

    assert all(network() is None for network in networks)
    assert pickle.loads(pickle.dumps(image)).info["seed"] == image.info["seed"]


def test_a_file_that_was_replaced_since_has_no_hash_in_the_recipe(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = write_models(tmp_path / "models")
    image = load_toy(files, dtype=torch.float16)(PROMPT, **SMALL)
    write_models(tmp_path / "other", seed=9)
    (tmp_path / "other" / "t2i" / "model" / "pytorch_model_ema.pt").replace(files[2])
    files[1].unlink()

    recipe = read_recipe(save_image(image, tmp_path / "image.png"))

    digests = {model["family"]: model["files"][0]["sha256"] for model in recipe["models"]}
    assert digests["hunyuan_dit"] is None
    assert digests["mt5"] is None
    assert digests["autoencoder_kl"] is not None
    assert "it was changed since the image was drawn" in caplog.text


def with_recipe(path: Path, recipe: object) -> Path:
    """Write a picture that carries something as its recipe."""
    chunks = PngInfo()
    chunks.add_itxt("diffsynth", recipe if isinstance(recipe, str) else json.dumps(recipe))
    Image.new("RGB", (4, 4)).save(path, pnginfo=chunks)
    return path


A_LORA = {"family": "lora", "path": "a.safetensors", "files": [{"path": "a.safetensors", "sha256": None}]}


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        (("version",), 2, "its version is 2"),
        (("pipeline",), 5, "pipeline is 5"),
        (("conventions",), 5, "conventions is 5"),
        (("prediction",), 5, "prediction is 5"),
        (("refined",), "yes", "refined is 'yes'"),
        (("beta_end",), 10**400, "too large"),
        (("beta_end",), "x", "beta_end is 'x'"),
        (("latent_scale",), float("nan"), "latent_scale is not finite"),
        (("request",), [], r"request is \[\]"),
        (("request", "prompt"), None, "prompt is missing"),
        (("request", "seed"), None, "seed is missing"),
        (("request", "seed"), [1], r"seed is \[1\]"),
        (("request", "seed"), "1", "seed is '1'"),
        (("models",), "abc", "models is 'abc'"),
        (("models", 0), 5, "models is 5"),
        (("models", 0, "path"), None, "path is missing"),
        (("models", 0, "dtype"), "save", "torch has no dtype 'save'"),
        (("models", 0, "files"), [], "files is empty"),
        (("models", 0, "files"), [{}], "files: path is missing"),
        (("models", 0, "files", 0, "sha256"), 5, "sha256 is 5"),
        (("vocabularies",), [[]], r"vocabularies is \[\]"),
        (("adapters",), [[]], r"adapters is \[\]"),
        (("adapters",), [{**A_LORA, "family": "control"}], "adapters: control is not known"),
        (("adapters",), [{**A_LORA, "scale": None}], "adapters: scale is missing"),
        (("adapters",), [{**A_LORA, "scale": float("inf")}], "adapters: scale is not finite"),
    ],
    ids=str,
)
def test_a_recipe_that_was_changed_by_hand_is_refused_with_the_reason(
    pipe: HunyuanDiTImagePipeline, tmp_path: Path, keys: tuple[str | int, ...], value: object, words: str
) -> None:
    inner: Any = read_recipe(save_image(pipe(PROMPT, **SMALL), tmp_path / "image.png"))
    recipe = inner
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path = with_recipe(tmp_path / "changed.png", recipe)

    with pytest.raises(InvalidRequest, match=rf"changed\.png holds a recipe .*{words}"):
        read_recipe(path)


def test_a_recipe_too_deep_for_json_is_refused(tmp_path: Path) -> None:
    path = with_recipe(tmp_path / "deep.png", "[" * 300_000)

    with pytest.raises(InvalidRequest, match="holds no diffsynth recipe"):
        read_recipe(path)


def test_settings_of_a_later_version_are_refused(pipe: HunyuanDiTImagePipeline, tmp_path: Path) -> None:
    recipe = read_recipe(save_image(pipe(PROMPT, **SMALL), tmp_path / "image.png"))
    recipe["request"]["new_setting"] = 5

    with pytest.raises(InvalidRequest, match="does not know: new_setting"):
        request_from(recipe, HunyuanDiTRequest)


@pytest.mark.skipif(os.name != "posix", reason="needs file names that are any bytes")
def test_a_path_that_is_not_utf_8_does_not_lose_the_image(tmp_path: Path) -> None:
    files = write_models(tmp_path / os.fsdecode(b"odd\xff"))
    odd = files[2].rename(files[2].with_name(os.fsdecode(b"odd\xff\n.pt")))
    image = load_toy([*files[:2], odd, files[3]])(PROMPT, **SMALL)

    path = save_image(image, tmp_path / "image.png")

    assert read_recipe(path)["models"][0]["path"] == str(odd)
    with Image.open(path) as saved:
        assert "Model: odd\\udcff\\n, " in saved.info["parameters"]


def test_a_recipe_names_absolute_paths(v1_2: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = v1_2[0].parents[1]
    monkeypatch.chdir(folder)
    image = load_toy([path.relative_to(folder) for path in v1_2])(PROMPT, **SMALL)
    monkeypatch.chdir(tmp_path)

    recipe = read_recipe(save_image(image, tmp_path / "image.png"))

    for source in [*recipe["models"], *recipe["vocabularies"]]:
        assert Path(source["path"]).is_absolute()
        assert [Path(file["path"]).is_absolute() and bool(file["sha256"]) for file in source["files"]] == [True]

"""A finished training becomes the model that comes with the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("emoji", reason="the package emoji is not installed")

from diffsynth import HunyuanDiTImagePipeline, ModelManager, download_models, open_checkpoint
from diffsynth.core.saving import save_network
from diffsynth.hub import bundled
from diffsynth.hub.catalog import CATALOG
from diffsynth.training.whole import FILES
from examples.emoji_painter import bundle
from examples.random_models import write_models

RECIPE = {"step": 7, "config": {"autoencoder": "/home/me/run/final/vae.safetensors", "folders": ["/home/me/run"]}}
FIGURES = {"one object, seen": {"en": {"object": 91.0}}}


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """Finished networks as the trainer writes them: float32, with their recipe in the header."""
    folder = tmp_path / "run" / "final"
    manager = ModelManager(torch.float32, device="cpu", file_path_list=write_models(tmp_path / "random"))
    families = {"hunyuan_dit": "denoiser", "bert_clip": "clip", "mt5": "t5", "autoencoder_kl": "autoencoder"}
    for entry in manager:
        path = folder / FILES[families[entry.family.name]]
        metadata = {"training": json.dumps(RECIPE)}
        save_network(entry.module, entry.family, entry.config, path, entry.family.layouts[0].name, metadata)
    for name in bundle.VOCABULARIES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((tmp_path / "random" / "t2i" / name).read_bytes())
    return folder


def command(result: Path, home: Path, *more: str | Path) -> dict[str, Any]:
    bundle.main([str(each) for each in (result, "--home", home, *more)])
    card: dict[str, Any] = json.loads((home / bundle.MODEL_ID / "card.json").read_text("utf-8"))
    return card


def test_the_folder_holds_what_the_catalogue_names_in_half_precision(result: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"

    command(result, home)

    written = {str(path.relative_to(home).as_posix()) for path in home.rglob("*") if path.is_file()}
    beside = {f"{bundle.MODEL_ID}/{name}" for name in ("card.json", "LICENSE")}
    assert written == {*CATALOG[bundle.MODEL_ID].weights, *CATALOG[bundle.MODEL_ID].vocabularies, *beside}
    for name, file in FILES.items():
        before, after = load_file(result / file), load_file(home / bundle.MODEL_ID / "t2i" / file)
        assert before.keys() == after.keys(), name
        assert all(torch.equal(before[key].half(), after[key]) for key in before), name
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in home.rglob("*") if path.is_file())


def test_recipes_are_kept_in_headers_and_card_without_the_folders_of_a_machine(result: Path, tmp_path: Path) -> None:
    home, plain = tmp_path / "home", {"step": 7, "config": {"autoencoder": "vae.safetensors", "folders": ["run"]}}

    card = command(result, home)

    assert card["recipe"] == {"denoiser and text encoders": plain, "autoencoder": plain}
    for file in FILES.values():
        metadata = open_checkpoint(home / bundle.MODEL_ID / "t2i" / file).metadata
        assert json.loads(metadata["training"]) == plain


def test_the_autoencoder_and_the_figures_may_come_from_elsewhere(result: Path, tmp_path: Path) -> None:
    home, own, figures = tmp_path / "home", tmp_path / "own.safetensors", tmp_path / "evaluation.json"
    other = {key: weight + 1 for key, weight in load_file(result / FILES["autoencoder"]).items()}
    save_file(other, own, metadata={"training": json.dumps({"step": 9})})
    figures.write_text(json.dumps(FIGURES))

    card = command(result, home, "--autoencoder", own, "--evaluation", figures)

    assert card["figures"] == FIGURES
    assert card["recipe"]["autoencoder"] == {"step": 9}
    written = load_file(home / bundle.MODEL_ID / "t2i" / FILES["autoencoder"])
    assert all(torch.equal(written[key], weight.half()) for key, weight in other.items())


def test_a_folder_that_is_there_is_replaced_whole_or_not_at_all(
    result: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    old = home / bundle.MODEL_ID / "old.txt"
    old.parent.mkdir(parents=True)
    old.write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(bundle, "MOST_BYTES", 1000)
        with pytest.raises(SystemExit, match="MB, more than the 0 MB of a package"):
            command(result, home)
    assert [path.name for path in home.rglob("*")] == [bundle.MODEL_ID, "old.txt"]

    command(result, home)

    assert not old.exists()
    assert [path.name for path in home.iterdir()] == [bundle.MODEL_ID]
    assert "no figures in the card yet" in capsys.readouterr().out


def test_weights_that_half_precision_does_not_hold_are_refused(result: Path, tmp_path: Path) -> None:
    file = result / FILES["autoencoder"]
    weights = load_file(file)
    weights["decoder.conv_in.bias"][0] = 1e6
    save_file(weights, file)

    with pytest.raises(SystemExit, match=r"1 weights overflow in float16, such as decoder\.conv_in\.bias"):
        command(result, tmp_path / "home")


def test_what_is_written_can_be_asked_for_by_name_and_draws(
    result: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command(result, tmp_path / "home")
    monkeypatch.setattr(bundled, "_home", lambda: tmp_path / "home")

    manager = ModelManager(torch.float32, device="cpu")
    manager.load_models(download_models([bundle.MODEL_ID], local_dir=tmp_path / "models"))
    pipe = HunyuanDiTImagePipeline.from_model_manager(manager)

    assert pipe("一只熊猫，蓝色背景", height=32, width=32, num_inference_steps=1).size == (32, 32)

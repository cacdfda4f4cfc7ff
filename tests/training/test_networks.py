"""Networks that cannot be trained are refused before the data is read; what is kept of frozen ones."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from diffsynth.errors import InvalidRequest
from diffsynth.training import DataConfig, train
from diffsynth.training.autoencoder import AutoencoderTraining
from diffsynth.training.config import TrainingConfig
from diffsynth.training.denoiser import DenoiserTraining
from diffsynth.training.latents import FILE
from diffsynth.training.pictures import Pictures
from diffsynth.training.randomness import generator_for
from diffsynth.training.run import denoiser_training
from tests.training.toy import DIT, T5, VAE, Squares, autoencoder_config, denoiser_config, networks_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


def make_job(config: TrainingConfig, cache: Path | None = None) -> DenoiserTraining:
    pictures = Pictures(Squares(), config.data, config.seed, captions=True)
    return denoiser_training(config, pictures, CPU, cache)


def test_all_networks_that_cannot_be_used_are_named_before_the_data_is_read(tmp_path: Path, files: Path) -> None:
    class Unreadable(Squares):
        def __getitem__(self, index: int, rng: Any) -> Any:
            raise AssertionError("nobody should look")

    bad = {
        "autoencoder": str(tmp_path / "gone.safetensors"),
        "network": {**DIT, "depth": 0, "hidden_size": 48.0},
        "t5": {**T5, "heads": 3},
        "clip_tokenizer": str(tmp_path / "gone.txt"),
    }

    with pytest.raises(InvalidRequest) as caught:
        train(denoiser_config(tmp_path / "run", files, job=bad), Unreadable())

    said = str(caught.value)
    assert f"denoiser.autoencoder: {tmp_path / 'gone.safetensors'}: cannot be opened" in said
    assert "denoiser.network: hunyuan_dit has sizes that are none: hidden_size = 48.0, depth = 0." in said
    assert "denoiser.t5: mt5 has no size heads" in said
    assert "no wordpiece vocabulary" in said


@pytest.mark.parametrize("channels", [[32, -64], [32, "a"], [32.0], 32, True])
def test_sizes_that_are_none_are_refused(tmp_path: Path, channels: Any) -> None:
    with pytest.raises(InvalidRequest, match="autoencoder_kl has sizes that are none"):
        train(autoencoder_config(tmp_path / "run", job={"network": {"channels": channels}}))


@pytest.mark.parametrize(
    ("job", "data", "message"),
    [
        ({"crop": 15}, {}, "autoencoder.crop: must be a multiple of 2, the pixels of one latent, not 15"),
        ({"network": {**VAE, "in_channels": 4}}, {}, "has 4 in_channels"),
        (
            {"network": {**VAE, "channels": [32] * 6}, "crop": 0},
            {"size": 48, "enlarge": True},
            "pictures of 48x48 pixels do not fit these networks, which need multiples of 32",
        ),
    ],
)
def test_pictures_that_do_not_fit_an_autoencoder_are_refused(
    tmp_path: Path, job: dict[str, Any], data: dict[str, Any], message: str
) -> None:
    config = autoencoder_config(tmp_path, job=job)
    config = replace(config, data=replace(config.data, **data))
    assert config.autoencoder is not None
    pictures = Pictures(Squares(), config.data, 0, captions=False)

    with pytest.raises(InvalidRequest) as caught:
        AutoencoderTraining(config, config.autoencoder, pictures, CPU)

    assert message in str(caught.value)


def test_texts_without_room_for_a_word_are_refused(tmp_path: Path, files: Path) -> None:
    with pytest.raises(InvalidRequest, match="the denoiser's texts are too short"):
        make_job(denoiser_config(tmp_path, files, job={"network": {**DIT, "text_len": 1}}))


def test_a_schedule_that_no_pipeline_assumes_is_said(
    tmp_path: Path, files: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network = {**DIT, "size_conditioning": True}

    make_job(denoiser_config(tmp_path, files, job={"network": network, "beta_end": 0.03}))
    silent = list(caplog.messages)
    make_job(denoiser_config(tmp_path, files, job={"network": network}))

    assert silent == []
    assert caplog.messages == ["denoiser.beta_end is 0.018, but a pipeline takes 0.03 for this network unless told"]


def test_features_of_frozen_text_encoders_are_kept_though_pictures_are_drawn_anew(tmp_path: Path, files: Path) -> None:
    final = train(denoiser_config(tmp_path / "first", files, steps=1))
    encoders = {"clip": str(final / "clip_text_encoder"), "t5": str(final / "mt5"), "train_text_encoders": False}
    data = DataConfig(source="tests.training.toy:squares", size=32, variants=0)
    losses = []
    for cache in (True, False):
        job = make_job(denoiser_config(tmp_path / "second", files, data=data, job={**encoders, "cache": cache}))
        batch = next(job.batches(range(1)))
        if cache:
            networks_of(job).text.clip.encoder.forward = networks_of(job).text.t5.encoder.forward = None  # type: ignore[assignment, method-assign]
        losses.append(job.loss(batch, generator_for(0, "x"))["loss"].item())

    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_damaged_kept_latents_are_made_anew(tmp_path: Path, files: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = denoiser_config(tmp_path, files)
    first = next(make_job(config, tmp_path / "cache").batches(range(1)))
    file = tmp_path / "cache" / FILE
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    caplog.set_level(logging.WARNING, "diffsynth")

    second = next(make_job(config, tmp_path / "cache").batches(range(1)))

    assert torch.equal(first.pixels, second.pixels)
    assert file.stat().st_size == len(whole)
    assert caplog.messages[0].startswith(f"{file} is made anew: it has ")


@pytest.mark.parametrize("kind", ["autoencoder", "denoiser"])
def test_recomputed_activations_change_nothing_in_bfloat16(tmp_path: Path, files: Path, kind: str) -> None:
    seen: list[dict[str, float]] = []
    for chosen in (False, True):
        run = tmp_path / str(chosen)
        config = autoencoder_config(run, steps=2) if kind == "autoencoder" else denoiser_config(run, files, steps=2)
        config = replace(config, precision="bfloat16", checkpoint_activations=chosen)
        train(config, on_step=lambda report: seen.append({**report.values, "seconds": 0}))

    assert seen[:2] == seen[2:]

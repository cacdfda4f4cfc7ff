"""Settings come from TOML, and everything wrong in them is said at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from diffsynth.errors import InvalidRequest
from diffsynth.training import (
    AutoencoderJob,
    DataConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainingConfig,
    read_config,
)

GOOD = """
seed = 3
precision = "bfloat16"

[data]
source = "pictures"
arguments = { count = 20 }
languages = ["text", "text_zh"]
size = 128

[autoencoder]
network = { channels = [32, 64], layers_per_block = 1 }
l1 = 2

[optimizer]
betas = [0.9, 0.95]

[schedule]
steps = 100
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(text, "utf-8")
    return path


def test_a_file_gives_settings_and_defaults_fill_the_rest(tmp_path: Path) -> None:
    config = read_config(write(tmp_path, GOOD))

    assert (config.seed, config.precision, config.optimizer.betas) == (3, "bfloat16", (0.9, 0.95))
    assert config.data.languages == ("text", "text_zh")
    assert config.data.arguments == {"count": 20}
    assert config.autoencoder == AutoencoderJob(network={"channels": [32, 64], "layers_per_block": 1}, l1=2.0)
    assert config.denoiser is None
    assert config.schedule == ScheduleConfig(steps=100)


def test_a_network_may_be_sizes_or_a_file(tmp_path: Path) -> None:
    text = GOOD.replace("{ channels = [32, 64], layers_per_block = 1 }", '"vae.safetensors"')

    config = read_config(write(tmp_path, text))

    assert config.autoencoder is not None
    assert config.autoencoder.network == "vae.safetensors"


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    bad = """
precison = "bfloat16"
precision = "float8"
[data]
source = 3
size = 8
flip = 1.5
fit = true
[autoencoder]
network = 7
[optimizer]
betas = [0.9]
clip = "no"
[schedule]
batch_size = true
"""
    with pytest.raises(InvalidRequest) as caught:
        read_config(write(tmp_path, bad))

    said = str(caught.value)
    for line in (
        "precison: there is no such setting; known are precision",
        "precision: must be one of float32, bfloat16, float16, not float8",
        "data.source: must be a text, not 3",
        "data.size: must be at least 16, not 8",
        "data.flip: must be from 0 to 1, not 1.5",
        "data.fit: must be one of crop, stretch, not True",
        "autoencoder.network: must be a table, not 7",
        "optimizer.betas: needs 2 values, not 1",
        "optimizer.clip: must be a number, not 'no'",
        "schedule.batch_size: must be a whole number, not True",
        "schedule.steps: is missing",
    ):
        assert line in said
    assert str(tmp_path / "config.toml") in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("[autoencoder]", "[denoiser]\nautoencoder = 'v'\nclip = {}\nt5 = {}"),
            "denoiser.l1: there is no such setting",
        ),
        (("size = 128", "size = 100"), "data.size: must be a multiple of 16, not 100"),
        (("l1 = 2", "crop = 256"), "autoencoder.crop: 256 is larger than data.size 128"),
        (("steps = 100", 'steps = 100\ndecay = "step"'), 'schedule.milestones: belong to schedule.decay = "step"'),
        (("[data]", "[data"), "is no TOML file"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_config(write(tmp_path, GOOD.replace(*change)))

    assert message in str(caught.value)


def test_settings_made_in_python_are_checked_too() -> None:
    with pytest.raises(InvalidRequest, match=r"schedule.steps: must be at least 1, not 0"):
        TrainingConfig(
            data=DataConfig(source="x", size=64),
            schedule=ScheduleConfig(steps=0),
            autoencoder=AutoencoderJob(network="x"),
        )


def test_exactly_one_job_is_given() -> None:
    with pytest.raises(InvalidRequest, match="either \\[autoencoder\\], \\[denoiser\\] or \\[unet\\]"):
        TrainingConfig(data=DataConfig(source="x", size=64), schedule=ScheduleConfig(steps=1))


def test_settings_can_be_written_as_json(tmp_path: Path) -> None:
    config = read_config(write(tmp_path, GOOD))

    plain = json.loads(json.dumps(config.as_dict()))

    assert plain["data"]["arguments"] == {"count": 20}
    assert plain["optimizer"]["betas"] == [0.9, 0.95]
    assert plain["denoiser"] is None


def test_settings_made_in_python_may_be_paths_and_lists(tmp_path: Path) -> None:
    job: dict[str, Any] = {"network": tmp_path / "vae.safetensors"}
    data: dict[str, Any] = {"source": tmp_path, "languages": ["text"], "size": 64, "flip": 1}

    config = TrainingConfig(
        data=DataConfig(**data), schedule=ScheduleConfig(steps=1), autoencoder=AutoencoderJob(**job)
    )

    assert config.data == DataConfig(source=str(tmp_path), languages=("text",), size=64, flip=1.0)
    assert json.loads(json.dumps(config.as_dict()))["autoencoder"]["network"] == str(tmp_path / "vae.safetensors")


def test_everything_that_is_wrong_in_python_is_said_at_once() -> None:
    data: dict[str, Any] = {"source": "x", "size": 40, "fit": "croop", "languages": "text_zh"}
    optimizer: dict[str, Any] = {"betas": (0.9, 1.5), "learning_rate": float("nan"), "weight_decay": float("inf")}

    with pytest.raises(InvalidRequest) as caught:
        TrainingConfig(
            data=DataConfig(**data),
            schedule=ScheduleConfig(steps=1),
            autoencoder=AutoencoderJob(network="x"),
            optimizer=OptimizerConfig(**optimizer),
            precision="fp16",  # type: ignore[arg-type]
        )

    said = str(caught.value)
    for line in (
        "data.size: must be a multiple of 16, not 40",
        "data.fit: must be one of crop, stretch, not croop",
        "data.languages: must be a list, not 'text_zh'",
        "optimizer.betas: must be from 0 to 0.99999, not (0.9, 1.5)",
        "optimizer.learning_rate: must be finite, not nan",
        "optimizer.weight_decay: must be finite, not inf",
        "precision: must be one of float32, bfloat16, float16, not fp16",
    ):
        assert line in said


def test_a_mark_that_editors_put_first_is_no_part_of_the_file(tmp_path: Path) -> None:
    assert read_config(write(tmp_path, "\ufeff" + GOOD)).seed == 3

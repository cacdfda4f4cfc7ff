"""``diffsynth download``, ``list`` and ``env`` against hubs on the loopback interface."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffsynth.cli import run
from tests.hub.standin import Hub

FILES = {
    "t2i/clip_text_encoder/pytorch_model.bin": b"clip",
    "t2i/mt5/pytorch_model.bin": b"mt5",
    "t2i/model/pytorch_model_ema.pt": b"dit",
    "t2i/sdxl-vae-fp16-fix/diffusion_pytorch_model.bin": b"vae",
    "t2i/tokenizer/vocab.txt": b"words",
    "t2i/mt5/spiece.model": b"pieces",
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Both hubs with one model; the working folder is empty."""
    monkeypatch.chdir(tmp_path)
    for name in ("HF_HUB_OFFLINE", "DIFFSYNTH_OFFLINE", "HF_TOKEN", "MODELSCOPE_API_TOKEN", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    with Hub(dict.fromkeys(("modelscope/HunyuanDiT", "Tencent-Hunyuan/HunyuanDiT"), FILES)) as server:
        for name, value in server.env(tmp_path / "caches").items():
            monkeypatch.setenv(name, value)
        yield server


def test_download_prints_the_files_to_load(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["download", "HunyuanDiT", "--models", "weights"]) == 0

    printed = capsys.readouterr().out.splitlines()
    assert printed == [f"weights/HunyuanDiT/{name}" for name in list(FILES)[:4]]
    assert (tmp_path / "weights/HunyuanDiT/t2i/tokenizer/vocab.txt").read_bytes() == b"words"


def test_download_takes_any_repository(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["download", "Tencent-Hunyuan/HunyuanDiT", "--hub", "huggingface", "--files", "t2i/mt5/*"]

    assert run([*command, "--revision", "main"]) == 0

    assert capsys.readouterr().out.splitlines() == [
        "models/Tencent-Hunyuan/HunyuanDiT/t2i/mt5/pytorch_model.bin",
        "models/Tencent-Hunyuan/HunyuanDiT/t2i/mt5/spiece.model",
    ]


def test_a_revision_is_for_repositories(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["download", "HunyuanDiT", "--revision", "main"]) == 1
    assert "--revision is for repositories" in capsys.readouterr().err


def test_offline_fails_with_the_list_and_the_command(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["download", "HunyuanDiT", "--offline"]) == 1

    said = capsys.readouterr().err
    assert "6 of 6 files are not in place" in said
    assert "`diffsynth download HunyuanDiT` fetches them" in said


def test_list_shows_sizes_and_what_is_here(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    run(["download", "HunyuanDiT", "--files", "*mt5*"])
    capsys.readouterr()

    assert run(["list"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}

    assert "2 of 6 files" in lines["HunyuanDiT"]
    assert "0.0 MB" in lines["HunyuanDiT"]
    assert " ? " in lines["HunyuanDiT-v1.2"]
    hub.log.clear()
    assert run(["list", "--json", "--offline"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["HunyuanDiT"]["bytes"] == sum(map(len, FILES.values()))
    assert rows["HunyuanDiT"]["here"] == 2
    assert rows["HunyuanDiT-v1.2"]["bytes"] is None
    assert hub.log == []


def test_env_shows_addresses_and_hides_tokens(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")

    assert run(["env"]) == 0

    said = capsys.readouterr().out
    assert f"HF_ENDPOINT                {hub.url} (environment)" in said
    assert "HF_TOKEN                   (hidden) (environment)" in said
    assert "secret" not in said

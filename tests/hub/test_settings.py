"""What environment variables say, also when they say nothing or nonsense."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffsynth import download_models
from diffsynth.errors import InvalidRequest
from diffsynth.hub.settings import described, hugging_face_endpoint, is_offline, modelscope_endpoint
from tests.hub.standin import Hub

VARIABLES = (
    *("HF_TOKEN", "HF_HUB_CACHE", "HF_HOME", "HF_HUB_OFFLINE", "MODELSCOPE_API_TOKEN", "MODELSCOPE_CACHE"),
    *("DIFFSYNTH_OFFLINE", "DIFFSYNTH_DOWNLOAD_TIMEOUT", "DIFFSYNTH_DOWNLOAD_ATTEMPTS"),
)


def test_settings_are_shown_with_their_origin_and_without_tokens(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    shown = {name: (value, origin) for name, value, origin in described()}

    assert shown["HF_ENDPOINT"] == (hub.url, "environment")
    assert shown["HF_TOKEN"] == ("(hidden)", "environment")
    assert shown["MODELSCOPE_API_TOKEN"] == ("(not set)", "")
    assert shown["DIFFSYNTH_OFFLINE"] == ("1", "HF_HUB_OFFLINE")
    assert shown["HF_HUB_CACHE"][1] == "HF_HOME"
    assert is_offline()
    assert not is_offline(False)


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "1e9"])
def test_a_setting_that_is_no_number_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffsynth.hub.settings import _number

    monkeypatch.setenv("DIFFSYNTH_DOWNLOAD_TIMEOUT", text)

    with pytest.raises(InvalidRequest, match="DIFFSYNTH_DOWNLOAD_TIMEOUT must be a number above 0"):
        _number("DIFFSYNTH_DOWNLOAD_TIMEOUT", 1.0)


@pytest.mark.parametrize("on", ["ModelScope", "HuggingFace"])
def test_an_empty_variable_says_nothing(on: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    before = {name: value for name, value, _ in described()}
    for name in VARIABLES:
        monkeypatch.setenv(name, "")

    download_models("HunyuanDiT", [on], local_dir=tmp_path)

    assert {request.token for request in hub.log} == {""}
    assert {name: value for name, value, _ in described()} == before | {
        "HF_HOME": str(tmp_path / "home/.cache/huggingface"),
        "HF_HUB_CACHE": str(tmp_path / "home/.cache/huggingface/hub"),
        "MODELSCOPE_CACHE": str(tmp_path / "home/.cache/modelscope"),
    }


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("mirror.example/hf/", "https://mirror.example/hf"),
        (" http://mirror.example ", "http://mirror.example"),
    ],
)
def test_an_address_may_lack_its_scheme(given: str, meant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", given)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", given)

    assert hugging_face_endpoint() == modelscope_endpoint() == meant


def test_the_home_of_hugging_face_is_not_told_by_its_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", "/elsewhere/cache")

    shown = {name: (value, origin) for name, value, origin in described()}

    assert shown["HF_HUB_CACHE"] == ("/elsewhere/cache", "environment")
    assert shown["HF_TOKEN"] == ("(hidden)", f"file {tmp_path / 'token'}")


def test_a_password_in_an_address_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://me:secret@mirror.example/hf")

    shown = {name: value for name, value, _ in described()}

    assert shown["HF_ENDPOINT"] == "https://(hidden)@mirror.example/hf"

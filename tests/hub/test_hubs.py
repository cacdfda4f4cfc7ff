"""Tokens, repositories and names of hubs."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffsynth import download_model, download_models
from diffsynth.errors import DownloadError, InvalidRequest
from tests.hub.standin import FILE, Hub

HUBS = ("ModelScope", "HuggingFace")
TOKEN = {"ModelScope": "MODELSCOPE_API_TOKEN", "HuggingFace": "HF_TOKEN"}


@pytest.mark.parametrize("on", HUBS)
def test_a_token_goes_to_the_hub_and_not_to_its_storage(
    on: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = "secret"
    monkeypatch.setenv(TOKEN[on], "secret")

    download_models("HunyuanDiT", [on], local_dir=tmp_path)

    assert hub.requests("cdn/")
    assert {request.token for request in hub.requests("cdn/")} == {""}
    assert {request.token for request in hub.log if request not in hub.requests("cdn/")} == {"secret"}


def test_a_token_does_not_go_to_another_host_of_the_same_domain(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *rest, **more: real("127.0.0.1" if "hub.test" in str(host) else host, *rest, **more),
    )
    port = hub.url.rpartition(":")[2]
    hub.storage = f"http://files.hub.test:{port}"
    hub.token = "secret"
    for name in ("HF_ENDPOINT", "MODELSCOPE_ENDPOINT"):
        monkeypatch.setenv(name, f"http://hub.test:{port}")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "hub.test,files.hub.test,localhost,127.0.0.1")

    for on in HUBS:
        monkeypatch.setenv(TOKEN[on], "secret")
        download_models("HunyuanDiT", [on], local_dir=tmp_path / on)

    assert {request.host for request in hub.requests("cdn/")} == {f"files.hub.test:{port}"}
    assert {request.token for request in hub.requests("cdn/")} == {""}


@pytest.mark.parametrize("on", HUBS)
def test_a_refused_token_is_explained(on: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.token = "secret"
    monkeypatch.setenv(TOKEN[on], "wrong")

    with pytest.raises(DownloadError) as caught:
        download_models("HunyuanDiT", [on], local_dir=tmp_path)

    assert "HTTP 40" in str(caught.value)
    assert "wrong" not in str(caught.value)


@pytest.mark.parametrize("on", HUBS)
def test_any_repository_can_be_fetched(on: str, hub: Hub, tmp_path: Path) -> None:
    hub.repositories["some.body/a-model_1.5"] = {
        "vae/diffusion_pytorch_model.safetensors": b"weights",
        "vae/config.json": b"{}",
        "model.bin": b"large",
    }

    found = download_model("some.body/a-model_1.5", ["vae/*", "model.bin"], source=on, local_dir=tmp_path)

    home = tmp_path / "some.body" / "a-model_1.5"
    assert found == [home / "vae/diffusion_pytorch_model.safetensors", home / "vae/config.json", home / "model.bin"]
    assert home.joinpath("vae/config.json").read_bytes() == b"{}"


def test_a_pattern_that_nothing_fits_names_what_there_is(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"holds no unet/\*.bin; it holds t2i/clip_text_encoder/pytorch_model.bin"):
        download_model("modelscope/HunyuanDiT", "unet/*.bin", source="ModelScope", local_dir=tmp_path)


@pytest.mark.parametrize("name", ["HunyuanDiT", "../x", "a/b/c", "/etc", "a/..", "a b/c", "a/b@main", ""])
def test_what_is_no_repository_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="a repository is called owner/name"):
        download_model(name, local_dir=tmp_path)


def test_what_is_no_hub_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no hub called 'GitHub'; known are ModelScope, HuggingFace"):
        download_models("HunyuanDiT", "GitHub", local_dir=tmp_path)
    with pytest.raises(InvalidRequest, match="name a hub"):
        download_models("HunyuanDiT", [], local_dir=tmp_path)


def test_hubs_that_disagree_give_each_its_own_file_and_neither_is_fetched_again(
    hub: Hub, files: dict[str, bytes], tmp_path: Path
) -> None:
    name = "t2i/model/pytorch_model_ema.pt"
    hub.repositories["Tencent-Hunyuan/HunyuanDiT"] = {**files, name: b"another" * 10_000}
    hub.fault("drop", "cdn/ms/.*pytorch_model_ema")
    hub.fault("status", "cdn/ms/.*pytorch_model_ema", times=-1)

    found = download_models("HunyuanDiT", local_dir=tmp_path)

    assert found[2].read_bytes() == b"another" * 10_000
    assert list(tmp_path.rglob("*.part")) == []
    hub.log.clear()
    assert download_models("HunyuanDiT", local_dir=tmp_path) == found
    assert hub.log == []
    hub.faults.clear()
    download_models("HunyuanDiT", "ModelScope", local_dir=tmp_path)
    assert found[2].read_bytes() == files[name]


def test_a_hub_that_fails_at_file_after_file_is_passed_over_with_one_line(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.fault("drop", FILE["ModelScope"], times=-1, share=0.0)

    download_models("HunyuanDiT", local_dir=tmp_path)

    assert caplog.text.count("ModelScope is passed over") == 1

"""Tokens, addresses, caches and other tools' folders."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from diffsynth import download_model, download_models
from diffsynth.errors import DownloadError, InvalidRequest
from diffsynth.hub import sources
from diffsynth.hub.patience import Disturbed, Exhausted, Hiccup, HubDown, Pauses
from diffsynth.hub.settings import Patience, described, is_offline
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


def test_a_client_that_another_thread_closes_costs_no_attempt(hub: Hub) -> None:
    """huggingface_hub closes the client that all threads share whenever one of them cannot connect."""
    from huggingface_hub import close_session

    stream = sources.HuggingFace().read("Tencent-Hunyuan/HunyuanDiT", None, "t2i/model/pytorch_model_ema.pt", 0)
    next(stream)
    close_session()

    with pytest.raises(Disturbed, match="connections of this process were closed") as caught:
        list(stream)

    pauses = Pauses(Patience(attempts=1), "a file")
    pauses.wait(caught.value)
    with pytest.raises(Exhausted):
        pauses.wait(Hiccup("the hub's own"))


def test_a_file_in_the_cache_of_hugging_face_is_linked_not_fetched(
    hub: Hub, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import hf_hub_download

    name = "t2i/model/pytorch_model_ema.pt"
    cache = tmp_path / "caches" / "hf" / "hub"
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    cached = hub_cached(cache, hub, files, name)
    hub.log.clear()

    download_models("HunyuanDiT", local_dir=tmp_path / "models")

    target = tmp_path / "models" / "HunyuanDiT" / name
    assert target.read_bytes() == files[name]
    assert target.stat().st_ino == cached.stat().st_ino
    assert not target.is_symlink()
    assert hub.requests("FilePath=t2i/model") == []
    assert hf_hub_download is not None


def hub_cached(cache: Path, hub: Hub, files: dict[str, bytes], name: str) -> Path:
    """Put a file into the cache as Hugging Face's client lays it out."""
    import hashlib

    home = cache / "models--Tencent-Hunyuan--HunyuanDiT"
    blob = home / "blobs" / hashlib.sha256(files[name]).hexdigest()
    blob.parent.mkdir(parents=True)
    blob.write_bytes(files[name])
    return blob


def test_the_real_clients_caches_are_found(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    import subprocess
    import sys

    program = """
from huggingface_hub import hf_hub_download
from modelscope_hub import HubApi
hf_hub_download("Tencent-Hunyuan/HunyuanDiT", "t2i/model/pytorch_model_ema.pt")
HubApi().download_file("modelscope/HunyuanDiT", "model", "t2i/mt5/pytorch_model.bin")
"""
    subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "HF_HUB_DISABLE_XET": "1"}, check=True, capture_output=True
    )
    hub.log.clear()

    download_models("HunyuanDiT", local_dir=tmp_path / "models")

    fetched = [request.line for request in hub.requests(FILE["ModelScope"]) if request.status == 200]
    assert len(fetched) == 4
    assert not [line for line in fetched if "pytorch_model_ema" in line or "mt5/pytorch_model.bin" in line]


def test_a_wrong_file_in_a_cache_is_not_taken(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    name = "t2i/model/pytorch_model_ema.pt"
    cached = hub_cached(tmp_path / "caches" / "hf" / "hub", hub, files, name)
    cached.write_bytes(bytes(len(files[name])))

    download_models("HunyuanDiT", local_dir=tmp_path / "models")

    assert (tmp_path / "models" / "HunyuanDiT" / name).read_bytes() == files[name]


def test_files_of_another_tool_are_taken_under_any_name(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    other = tmp_path / "other" / "deep"
    other.mkdir(parents=True)
    (other / "model.ckpt").write_bytes(files["t2i/mt5/pytorch_model.bin"])
    (other / "same size").write_bytes(bytes(len(files["t2i/model/pytorch_model_ema.pt"])))

    download_models("HunyuanDiT", local_dir=tmp_path / "models", reuse=tmp_path / "other")

    assert (tmp_path / "models/HunyuanDiT/t2i/mt5/pytorch_model.bin").read_bytes() == files["t2i/mt5/pytorch_model.bin"]
    assert [r for r in hub.requests("cdn/ms") if "mt5/pytorch_model.bin" in r.line] == []
    assert [r for r in hub.requests("cdn/ms") if "pytorch_model_ema.pt" in r.line]


def test_a_copy_is_made_where_no_link_can_be(
    hub: Hub, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "x").write_bytes(files["t2i/mt5/pytorch_model.bin"])

    def no_link(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_link)
    download_models("HunyuanDiT", local_dir=tmp_path / "models", reuse=[other])

    assert (tmp_path / "models/HunyuanDiT/t2i/mt5/pytorch_model.bin").read_bytes() == files["t2i/mt5/pytorch_model.bin"]
    assert [r for r in hub.requests("cdn/ms") if "mt5/pytorch_model.bin" in r.line] == []


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


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("7", 7.0), ("1.5", 1.5), ("-5", None), ("soon", None), ("", None), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0)],
)
def test_a_hub_may_ask_to_wait(text: str, seconds: float | None) -> None:
    hiccup = sources.failure(429, {"Retry-After": text}, "HF_TOKEN")

    assert isinstance(hiccup, Hiccup)
    assert hiccup.retry_after == seconds


def test_a_proxy_is_probed_in_the_place_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "getproxies", lambda: {"https": "http://127.0.0.1:1"})
    monkeypatch.setattr(sources, "proxy_bypass", lambda host: False)

    with pytest.raises(HubDown, match=r"127\.0\.0\.1 cannot be reached"):
        sources.probe(sources.HuggingFace(endpoint="https://hub.invalid"), Patience(probe=1.0))


def test_hubs_that_do_not_even_refuse_are_given_up_soon(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.create_connection", lambda *_, **__: time.sleep(20))
    started = time.monotonic()

    with pytest.raises(DownloadError) as caught:
        download_models("HunyuanDiT", local_dir=tmp_path)

    assert time.monotonic() - started < 6
    assert str(caught.value).count("127.0.0.1 did not answer within 1 s") == 2


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


def test_a_moved_folder_is_checked_once_more(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    download_models("HunyuanDiT", local_dir=tmp_path / "models")
    shutil.move(tmp_path / "models", tmp_path / "elsewhere")
    hub.log.clear()

    found = download_models("HunyuanDiT", local_dir=tmp_path / "elsewhere")

    assert [path.read_bytes() for path in found] == list(files.values())[:4]
    assert hub.log == []

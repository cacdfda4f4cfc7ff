"""Hubs that cannot be reached, and addresses and proxies that lead nowhere: soon, and in one clear error."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from huggingface_hub import close_session

from diffsynth import download_models
from diffsynth.errors import DownloadError
from diffsynth.hub import sources
from diffsynth.hub.patience import HubDown
from diffsynth.hub.probe import probe
from diffsynth.hub.settings import Patience
from tests.hub import standin
from tests.hub.standin import Hub

HUBS = {"HF_ENDPOINT": "HuggingFace", "MODELSCOPE_ENDPOINT": "ModelScope"}


def test_a_proxy_is_probed_in_the_place_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffsynth.hub.probe.getproxies", lambda: {"https": "http://127.0.0.1:1"})
    monkeypatch.setattr("diffsynth.hub.probe.proxy_bypass", lambda host: False)

    with pytest.raises(HubDown, match=r"127\.0\.0\.1 cannot be reached"):
        probe(sources.HuggingFace(endpoint="https://hub.invalid"), Patience(probe=1.0))


def test_hubs_that_do_not_even_refuse_are_given_up_soon(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.create_connection", lambda *_, **__: time.sleep(20))
    started = time.monotonic()

    with pytest.raises(DownloadError) as caught:
        download_models("HunyuanDiT", local_dir=tmp_path)

    assert time.monotonic() - started < 6
    assert str(caught.value).count("127.0.0.1 did not answer within 1 s") == 2


@pytest.mark.parametrize("variable", HUBS)
@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://127.0.0.1:99999", "http://127.0.0.1:99999 is no address"),
        ("http://[::1", r"http://\[::1 is no address"),
        ("https:///path", "https:///path is no address"),
        ("http://me:secret@[::1", r"http://\(hidden\)@\[::1 is no address"),
        ("127.0.0.1:1", r"127\.0\.0\.1 cannot be reached"),
        (f"http://{'x' * 300}", "xxx cannot be reached"),
    ],
)
def test_what_is_no_address_is_told(
    address: str, said: str, variable: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, address)

    with pytest.raises(DownloadError, match=f"{HUBS[variable]}: .*{said}"):
        download_models("HunyuanDiT", HUBS[variable], local_dir=tmp_path)


@pytest.mark.parametrize("on", HUBS.values())
@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:PORT", "socks://127.0.0.1:PORT", "http://127.0.0.1:99999"])
def test_a_proxy_that_a_client_cannot_use_is_told(
    proxy: str, on: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    close_session()
    port = hub.url.rpartition(":")[2]
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("ALL_PROXY", proxy.replace("PORT", port))

    with pytest.raises(DownloadError, match=rf"{on}: .*(?i:socks|proxy|port out of range)"):
        download_models("HunyuanDiT", on, local_dir=tmp_path)


@pytest.mark.parametrize("on", HUBS.values())
@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_certificates_that_are_not_there_are_a_download_error(
    variable: str, on: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    close_session()
    monkeypatch.setenv(variable, str(tmp_path / "nowhere.pem"))
    for name in HUBS:
        monkeypatch.setenv(name, hub.url.replace("http:", "https:"))

    with pytest.raises(DownloadError, match=f"{on}: "):
        download_models("HunyuanDiT", on, local_dir=tmp_path)


@pytest.mark.parametrize("variable", HUBS)
def test_a_mirror_may_lie_below_a_path(
    variable: str, hub: Hub, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = standin.Handler.do_GET

    def below(self: standin.Handler) -> None:
        if not self.path.startswith(("/some/mirror/", "/cdn/")):
            return self.send_error(410)
        self.path = self.path.removeprefix("/some/mirror")
        return answer(self)

    monkeypatch.setattr(standin.Handler, "do_GET", below)
    monkeypatch.setenv(variable, f"{hub.url}/some/mirror/")

    found = download_models("HunyuanDiT", HUBS[variable], local_dir=tmp_path)

    assert [path.read_bytes() for path in found] == list(files.values())[:4]

"""The same against another server that speaks for both hubs, made by others; skipped where it is not at hand."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from diffsynth import download_models
from diffsynth.errors import DownloadError
from tests.hub.conftest import V1_0

SERVER = Path(__file__).parents[2].parent / "shared" / "tools" / "hub_server.py"
pytestmark = pytest.mark.skipif(not SERVER.is_file(), reason=f"{SERVER} is not on this machine")
DIT = "t2i/model/pytorch_model_ema.pt"
KINDS: dict[str, dict[str, object]] = {
    "drop": {"after": 300_000},
    "status": {"code": 503},
    "short": {"after": 500},
    "long": {"after": 10},
    "corrupt": {"after": 5},
    "no_range": {},
    "bad_range": {},
    "slow": {"rate": 3_000_000},
    "stall": {"after": 500_000},
    "refuse": {},
    "no_commit": {},
    "bad_listing": {},
}


@pytest.fixture
def server() -> Any:
    """The module of that server."""
    spec = importlib.util.spec_from_file_location("shared_hub_server", SERVER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look for it there
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("on", ["ModelScope", "HuggingFace"])
@pytest.mark.parametrize("times", [1, -1])
@pytest.mark.parametrize("kind", KINDS)
def test_right_bytes_or_an_error_that_names_the_file(
    kind: str,
    times: int,
    on: str,
    server: Any,
    files: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for repository in V1_0:
        for name, content in files.items():
            path = tmp_path / "repos" / repository / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    for name in ("HF_HUB_OFFLINE", "DIFFSYNTH_OFFLINE", "HF_TOKEN", "MODELSCOPE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DIFFSYNTH_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "models"

    with server.HubServer(tmp_path / "repos") as hub:
        for name, value in hub.env(tmp_path / "cache").items():
            monkeypatch.setenv(name, value)
        where = r"repo/files|/tree/" if kind == "bad_listing" else r"^GET .*(pytorch_model_ema\.pt|_lfs/.*ema)"
        hub.fault(server.Fault(kind, match=where, times=times, **KINDS[kind]))
        error = ""
        try:
            download_models("HunyuanDiT", [on], local_dir=folder)
        except DownloadError as caught:
            error = str(caught)

    target = folder / "HunyuanDiT" / DIT
    assert target.is_file() == (not error)
    assert error == "" or (on in error and DIT in error)
    for name, content in files.items():
        path = folder / "HunyuanDiT" / name
        assert not path.exists() or path.read_bytes() == content

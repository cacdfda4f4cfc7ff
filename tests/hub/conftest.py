"""A hub for every test, and an environment that knows no other."""

from __future__ import annotations

import gc
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import close_session

from diffsynth.hub import settings
from tests.hub.standin import Hub

V1_0 = ("modelscope/HunyuanDiT", "Tencent-Hunyuan/HunyuanDiT")


def published(seed: int = 0, size: int = 300_000) -> dict[str, bytes]:
    """Return the files of a HunyuanDiT as they are called, with random bytes in them."""
    draw = random.Random(seed)
    return {
        "t2i/clip_text_encoder/pytorch_model.bin": draw.randbytes(size),
        "t2i/mt5/pytorch_model.bin": draw.randbytes(2 * size),
        "t2i/model/pytorch_model_ema.pt": draw.randbytes(3 * size),
        "t2i/sdxl-vae-fp16-fix/diffusion_pytorch_model.bin": draw.randbytes(size),
        "t2i/tokenizer/vocab.txt": b"one\ntwo\n",
        "t2i/mt5/spiece.model": draw.randbytes(5_000),
        "README.md": b"a model\n",
    }


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Allow that a connection which was given up on is closed late: its own thread does it, when it wakes up."""
    late = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(late)


@pytest.fixture
def files() -> dict[str, bytes]:
    """What the hub publishes."""
    return published()


@pytest.fixture
def hub(files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Both hubs with one model, and an environment that leads there."""
    for name in ("HF_HUB_OFFLINE", "DIFFSYNTH_OFFLINE", "HF_TOKEN", "MODELSCOPE_API_TOKEN", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    with Hub(dict.fromkeys(V1_0, files)) as server:
        for name, value in server.env(tmp_path / "caches").items():
            monkeypatch.setenv(name, value)
        yield server
    close_session()


@pytest.fixture(autouse=True)
def hasty(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Wait for nothing longer than a test should take; for silence only in tests that are about it."""
    silence = 1.0 if any(word in request.node.name for word in ("stall", "silent")) else 20.0
    monkeypatch.setattr(
        settings.Patience,
        "from_environment",
        classmethod(lambda cls: cls(probe=1.0, silence=silence, attempts=3, pause=0.01, longest=0.05)),
    )
    hurried = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    monkeypatch.setattr("huggingface_hub.utils._http.time", hurried)  # the clients' own pauses are of seconds
    monkeypatch.setattr("modelscope_hub._legacy_api.time", hurried)
    yield
    for thread in threading.enumerate():  # what was given up on does not go on into the next test
        if thread.name == "diffsynth-hub":
            thread.join(timeout=2.0)
    if silence == 1.0:
        gc.collect()  # what was given up on belongs to this test

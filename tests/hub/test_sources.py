"""What the hubs' clients raise, and what becomes of it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from huggingface_hub import close_session, get_session

from diffsynth import download_models
from diffsynth.hub import patience, sources
from diffsynth.hub.patience import Disturbed, Exhausted, Hiccup, Pauses
from diffsynth.hub.settings import Patience
from tests.hub.conftest import V1_0, published
from tests.hub.standin import FILE, LISTING, Hub


def test_a_client_that_another_thread_closes_costs_no_attempt(hub: Hub) -> None:
    """huggingface_hub closes the client that all threads share whenever one of them cannot connect."""
    stream = sources.HuggingFace().read("Tencent-Hunyuan/HunyuanDiT", None, "t2i/model/pytorch_model_ema.pt", 0)
    next(stream)
    close_session()

    with pytest.raises(Disturbed, match="connections of this process were closed") as caught:
        list(stream)

    pauses = Pauses(Patience(attempts=1), "a file")
    pauses.wait(caught.value)
    with pytest.raises(Exhausted):
        pauses.wait(Hiccup("the hub's own"))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("7", 7.0), ("1.5", 1.5), ("-5", None), ("soon", None), ("", None), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0)],
)
def test_a_hub_may_ask_to_wait(text: str, seconds: float | None) -> None:
    hiccup = sources.failure(429, {"Retry-After": text}, "HF_TOKEN")

    assert isinstance(hiccup, Hiccup)
    assert hiccup.retry_after == seconds


def test_disturbances_are_counted_too_so_that_nothing_goes_on_for_ever() -> None:
    pauses = Pauses(Patience(attempts=1, pause=0.0), "a file")

    for _ in range(patience.DISTURBED - 1):
        pauses.wait(Disturbed("closed"))
    with pytest.raises(Exhausted, match=f"closed, {patience.DISTURBED} times in a row"):
        pauses.wait(Disturbed("closed"))
    pauses.reset()
    pauses.wait(Disturbed("closed"))


def test_a_listing_goes_on_where_another_thread_closes_the_client(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = type(get_session())
    ask = kind.request
    left = [3]

    def spoiled(self: object, *args: object, **more: object) -> object:
        if left[0]:
            left[0] -= 1
            close_session()
        return ask(self, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(kind, "request", spoiled)

    download_models("HunyuanDiT", "HuggingFace", local_dir=tmp_path)

    assert left == [0]
    assert len(hub.requests(LISTING["HuggingFace"])) == 1


def test_a_download_ends_well_while_another_thread_closes_the_client_all_the_time(hub: Hub, tmp_path: Path) -> None:
    files = published(size=400_000)
    hub.publish(dict.fromkeys(V1_0, files))
    hub.fault("slow", FILE["HuggingFace"], times=-1)
    done = threading.Event()
    closed: list[float] = []

    def disturb() -> None:
        while not done.wait(0.07):
            close_session()
            closed.append(time.monotonic())

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        found = download_models("HunyuanDiT", "HuggingFace", local_dir=tmp_path)
    finally:
        done.set()
        thread.join()

    assert [path.read_bytes() for path in found] == list(files.values())[:4]
    assert len(closed) > 5
    assert sorted(tmp_path.rglob("*.part")) == []

"""Every fault on every hub: the right bytes, or a DownloadError that explains; never wrong bytes under a final name."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffsynth import download_models
from diffsynth.errors import DownloadError
from tests.hub.standin import FILE, LISTING, Fault, Hub

HUBS = ("ModelScope", "HuggingFace")
DIT = "t2i/model/pytorch_model_ema.pt"
FOR_EVER = -1

# name → (the fault, what it hits); once and for ever
FAULTS: dict[str, tuple[Fault, str]] = {
    "dropped at 0 %": (Fault("drop", share=0.0), "file"),
    "dropped half way": (Fault("drop", share=0.5), "file"),
    "dropped at 99 %": (Fault("drop", share=0.99), "file"),
    "stall": (Fault("stall", share=0.95), "file"),
    "short body": (Fault("short", share=0.7), "file"),
    "long body": (Fault("long"), "file"),
    "empty body": (Fault("empty"), "file"),
    "wrong bytes": (Fault("corrupt"), "file"),
    "web page with status 200": (Fault("html"), "file"),
    "web page as listing": (Fault("portal"), "listing"),
    "silent listing": (Fault("silent"), "listing"),
    "connection refused": (Fault("refuse"), "file"),
    "listing refused": (Fault("refuse"), "listing"),
    "wrong hashes listed": (Fault("bad_listing"), "listing"),
    **{
        f"{code} on {what}": (Fault("status", code=code), what)
        for code in (401, 403, 404, 416, 429, 500, 503)
        for what in ("file", "listing")
    },
}
HARMLESS = {"dropped half way", "dropped at 99 %", "stall"}  # every attempt gets further, so these end well
# what the message about a fault that stays must say
SAYS = {
    "dropped at 0 %": "3 times in a row; 0 of 900000 bytes are here and kept",
    "short body": "expected 900000 bytes, the server announces 630000",
    "long body": "expected 900000 bytes, the server announces 900100",
    "empty body": "the server sent an empty file, expected 900000 bytes",
    "wrong bytes": "expected sha256 ",
    "web page with status 200": "the server sent a web page",
    "web page as listing": "the answer is none of a hub",
    "silent listing": "no answer for 1 s",
    "connection refused": "the connection failed",
    "401 on file": "access refused (HTTP 401)",
    "401 on listing": "_TOKEN gives a token",
    "404 on file": "it is not there (HTTP 404)",
    "429 on file": "HTTP 429, 3 times in a row",
    "503 on file": "HTTP 503, 3 times in a row",
    "503 on listing": "HTTP 503",
    "416 on file": "HTTP 416",
}


def inject(hub: Hub, name: str, on: str, times: int) -> None:
    """Set a fault up on one of the hubs."""
    fault, what = FAULTS[name]
    where = LISTING[on] if what == "listing" else f"{FILE[on]}pytorch_model_ema"
    hub.faults.append(Fault(**{**vars(fault), "match": where, "times": times}))


def wrong_files(folder: Path, files: dict[str, bytes]) -> Iterator[Path]:
    """Yield every file under a final name that is not what was published."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            name = path.relative_to(folder / "HunyuanDiT").as_posix()
            if path.read_bytes() != files[name]:
                yield path


def left_over(folder: Path) -> list[Path]:
    """Return temporary files."""
    return sorted(folder.rglob("*.part"))


@pytest.mark.parametrize("on", HUBS)
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_that_passes_leaves_the_right_bytes(
    name: str, on: str, hub: Hub, files: dict[str, bytes], tmp_path: Path
) -> None:
    inject(hub, name, on, times=1)
    other = HUBS[on == HUBS[0]]

    found = download_models("HunyuanDiT", [on, other], local_dir=tmp_path / "models")

    assert [path.read_bytes() for path in found] == list(files.values())[:4]
    assert list(wrong_files(tmp_path / "models", files)) == []
    assert left_over(tmp_path / "models") == []


@pytest.mark.parametrize("on", HUBS)
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_that_stays_is_explained_and_leaves_no_wrong_file(
    name: str, on: str, hub: Hub, files: dict[str, bytes], tmp_path: Path
) -> None:
    inject(hub, name, on, times=FOR_EVER)
    folder = tmp_path / "models"

    if name in HARMLESS:
        download_models("HunyuanDiT", [on], local_dir=folder)
        assert (folder / "HunyuanDiT" / DIT).read_bytes() == files[DIT]
    else:
        with pytest.raises(DownloadError) as caught:
            download_models("HunyuanDiT", [on], local_dir=folder)
        message = str(caught.value)
        assert on in message
        assert SAYS.get(name, "") in message
        assert "diffsynth" in message
        if FAULTS[name][1] == "file":
            assert str(folder / "HunyuanDiT" / DIT) in message
    assert list(wrong_files(folder, files)) == []


@pytest.mark.parametrize("on", HUBS)
@pytest.mark.parametrize("name", FAULTS)
def test_what_one_hub_never_gives_the_other_does(
    name: str, on: str, hub: Hub, files: dict[str, bytes], tmp_path: Path
) -> None:
    inject(hub, name, on, times=FOR_EVER)

    download_models("HunyuanDiT", [on, HUBS[on == HUBS[0]]], local_dir=tmp_path / "models")

    assert (tmp_path / "models" / "HunyuanDiT" / DIT).read_bytes() == files[DIT]
    assert list(wrong_files(tmp_path / "models", files)) == []
    assert left_over(tmp_path / "models") == []


@pytest.mark.parametrize("on", HUBS)
@pytest.mark.parametrize("kind", ["no_range", "bad_range", "lying_range", "status", "html", "corrupt"])
@pytest.mark.parametrize("times", [1, FOR_EVER])
def test_a_resumed_file_is_right_whatever_the_answer_to_its_range(
    kind: str, on: str, times: int, hub: Hub, files: dict[str, bytes], tmp_path: Path
) -> None:
    where = f"{FILE[on]}pytorch_model_ema"
    hub.fault("drop", where)
    hub.fault(kind, where, times, code=416)
    folder = tmp_path / "models"

    if times == 1 or kind in ("no_range", "bad_range"):
        download_models("HunyuanDiT", [on], local_dir=folder)
        assert (folder / "HunyuanDiT" / DIT).read_bytes() == files[DIT]
    elif kind == "lying_range":  # found out by the hash, and then asked for from the beginning
        download_models("HunyuanDiT", [on], local_dir=folder)
    else:
        with pytest.raises(DownloadError, match="1 of 6 files could not be fetched"):
            download_models("HunyuanDiT", [on], local_dir=folder)
    assert list(wrong_files(folder, files)) == []


@pytest.mark.parametrize("on", HUBS)
def test_a_dropped_file_goes_on_where_it_stopped(on: str, hub: Hub, tmp_path: Path) -> None:
    hub.fault("drop", f"{FILE[on]}pytorch_model_ema", share=0.5)

    download_models("HunyuanDiT", [on], local_dir=tmp_path / "models")

    sent = [request for request in hub.requests(f"{FILE[on]}pytorch_model_ema") if request.status in (200, 206)]
    assert [request.range for request in sent] == ["", "bytes=450000-"]
    assert sum(request.sent for request in sent) == 900_000


@pytest.mark.parametrize("on", HUBS)
def test_a_wrong_answer_does_not_cost_what_has_arrived(on: str, hub: Hub, tmp_path: Path) -> None:
    where = f"{FILE[on]}pytorch_model_ema"
    hub.fault("drop", where, share=0.5)
    hub.fault("html", where)  # as a hotel's network answers in the middle of a long download

    download_models("HunyuanDiT", [on], local_dir=tmp_path / "models")

    sent = [request for request in hub.requests(where) if request.status in (200, 206)]
    assert [request.range for request in sent] == ["", "bytes=450000-", "bytes=450000-"]


@pytest.mark.parametrize("on", HUBS)
def test_retry_after_is_honoured(on: str, hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hub.fault("status", f"{FILE[on]}pytorch_model_ema", code=429, retry_after="0.03")

    with caplog.at_level(logging.INFO, logger="diffsynth"):
        download_models("HunyuanDiT", [on], local_dir=tmp_path / "models")

    if on == "ModelScope":
        assert "HTTP 429; trying again in 0.0 s" in caplog.text
    assert "HTTP 429" in caplog.text


@pytest.mark.parametrize("on", HUBS)
def test_a_repository_that_is_nowhere_is_explained(on: str, hub: Hub, tmp_path: Path) -> None:
    hub.repositories.clear()

    with pytest.raises(DownloadError) as caught:
        download_models("HunyuanDiT", [on], local_dir=tmp_path)

    assert "HunyuanDiT" in str(caught.value)
    assert "HTTP 40" in str(caught.value)


def test_no_hub_answers(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:1")

    with pytest.raises(DownloadError) as caught:
        download_models("HunyuanDiT", local_dir=tmp_path)

    message = str(caught.value)
    assert "ModelScope: 127.0.0.1 cannot be reached" in message
    assert "HuggingFace: 127.0.0.1 cannot be reached" in message
    assert "offline=True" in message


def test_a_hub_that_is_unreachable_is_passed_over_with_a_line(
    hub: Hub, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:1")

    download_models("HunyuanDiT", local_dir=tmp_path / "models")

    assert list(wrong_files(tmp_path / "models", files)) == []
    assert [record.getMessage()[:60] for record in caplog.records if record.name.startswith("diffsynth")] == [
        "ModelScope is passed over: 127.0.0.1 cannot be reached (Conn"
    ]


@pytest.mark.parametrize("on", HUBS)
@pytest.mark.parametrize(
    "name", ["../../escaped", "/etc/escaped", "C:\\escaped", "a/../../b", "a//b", "x\\..\\y", "a\nb"]
)
def test_a_repository_cannot_name_a_place_outside_its_folder(name: str, on: str, hub: Hub, tmp_path: Path) -> None:
    from diffsynth import download_model

    hub.fault("hostile", LISTING[on], FOR_EVER, name=name)
    before = set(tmp_path.rglob("*"))

    with pytest.raises(DownloadError, match="no plain name inside its folder"):
        download_model("Tencent-Hunyuan/HunyuanDiT", source=on, local_dir=tmp_path / "models")

    made = {path for path in set(tmp_path.rglob("*")) - before if path.is_file()}
    assert {path.name for path in made} <= {".diffsynth.json", "session"}

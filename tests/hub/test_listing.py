"""What a hub lists is not believed blindly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from diffsynth import download_model
from diffsynth.errors import DownloadError
from diffsynth.hub.listing import NOTHING, Listing, RemoteFile
from tests.hub import standin
from tests.hub.standin import Hub

HUBS = ("ModelScope", "HuggingFace")
RIGHT = {"path": "f.bin", "size": 5, "sha256": "0" * 64}


def listing_of(rows: list[dict[str, Any]], on: str) -> object:
    """Return rows as a hub writes them."""
    if on == "ModelScope":
        files = [{"Type": "blob", "Path": r["path"], "Size": r["size"], "Sha256": r["sha256"]} for r in rows]
        return {"Code": 200, "Data": {"Files": files}, "Success": True}
    return [
        {
            "type": "file",
            "path": row["path"],
            "size": row["size"],
            "oid": "0" * 40,
            "lfs": {"oid": row["sha256"], "size": row["size"], "pointerSize": 130},
        }
        for row in rows
    ]


@pytest.mark.parametrize("on", HUBS)
@pytest.mark.parametrize(
    "rows",
    [
        [RIGHT | {"size": -1}],
        [RIGHT | {"size": None}],
        [RIGHT | {"size": "abc"}],
        [RIGHT | {"size": 10**30}],
        [RIGHT | {"sha256": "../../../../x"}],
        [RIGHT | {"sha256": ["a"]}],
        [RIGHT | {"sha256": "0" * 63}],
        [RIGHT | {"sha256": NOTHING}],
        [RIGHT | {"path": 5}],
        [RIGHT | {"path": None}],
        [RIGHT | {"path": "a\ud800b"}],
        [RIGHT | {"path": "a/" * 300 + "b"}],
        [RIGHT | {"path": ".diffsynth.json"}],
        [RIGHT, RIGHT | {"sha256": "1" * 64}],
        [None],
        "text",
        7,
    ],
    ids=str,
)
def test_a_listing_that_makes_no_sense_is_one_clear_error(
    rows: Any, on: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories["o/n"] = {"f.bin": b"right"}
    whole = listing_of(rows, on) if isinstance(rows, list) and rows[0] is not None else rows
    monkeypatch.setattr(standin.Handler, "listed", staticmethod(lambda _, fault: standin.json_reply(whole)))
    folder = tmp_path / "models"

    with pytest.raises(DownloadError):
        download_model("o/n", source=on, local_dir=folder)

    assert [path.name for path in folder.rglob("*") if path.is_file() and path.name != ".diffsynth.json"] == []


def test_a_hash_in_capitals_is_the_same_hash() -> None:
    assert RemoteFile("x", 1, "AB" * 32).sha256 == "ab" * 32


def test_a_name_or_a_pattern_chooses_files() -> None:
    listing = Listing(tuple(RemoteFile(name, 1) for name in ("a.bin", "vae/a.bin", "vae/x/b.bin", "vae/a[1].bin")))

    assert [file.path for file in listing.select("a.bin")] == ["a.bin"]
    assert [file.path for file in listing.select("vae/a[1].bin")] == ["vae/a[1].bin"]
    assert [file.path for file in listing.select("vae/*")] == ["vae/a.bin", "vae/x/b.bin", "vae/a[1].bin"]
    assert listing.select("A.bin") == []


@pytest.mark.parametrize("on", HUBS)
@pytest.mark.parametrize(
    "body",
    [
        b"[" * 200_000,
        b"",
        b"\xff\xfe",
        b"null",
        b'{"Code": 200, "Data": null}',
        b'{"Code": 200, "Data": {"Files": [{"Type": "blob", "Path": "f.bin", "Size": Infinity, "Sha256": ""}]}}',
        b'[{"type": "file", "path": "f.bin", "size": 1e999, "oid": "0"}]',
    ],
    ids=lambda body: repr(body[:40]),
)
def test_a_listing_that_breaks_its_reader_is_one_clear_error(
    body: bytes, on: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reply = standin.Reply(200, {"Content-Type": "application/json"}, body)
    monkeypatch.setattr(standin.Handler, "listed", staticmethod(lambda _, fault: reply))

    with pytest.raises(DownloadError, match=f"{on}: "):
        download_model("Tencent-Hunyuan/HunyuanDiT", source=on, local_dir=tmp_path)

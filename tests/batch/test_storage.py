"""The same batch in a folder and in an object store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import pytest

pytest.importorskip("fsspec", reason="object stores need the distributed extra")

from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from diffsynth import HunyuanDiTImagePipeline
from diffsynth.batch import run_batch
from diffsynth.batch.objects import ObjectStore
from diffsynth.batch.storage import Folder, Storage, open_storage
from diffsynth.errors import InvalidRequest, Paused
from tests.batch.test_run import JOB, SMALL, contents


@pytest.fixture
def store() -> Iterator[ObjectStore]:
    """An object store in memory, empty."""
    found = open_storage("memory://bucket/run")
    assert isinstance(found, ObjectStore)
    yield found
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture(params=["folder", "memory", "local"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, store: ObjectStore) -> Storage:
    """Each kind of storage, empty."""
    if request.param == "memory":
        return store
    return Folder(tmp_path) if request.param == "folder" else ObjectStore(LocalFileSystem(), str(tmp_path))


def again(storage: Storage) -> Storage:
    """Return the same place as another process sees it."""
    return storage.owned_by("another")


def images(storage: Storage) -> dict[str, bytes]:
    """Return every image."""
    found = {}
    for name in again(storage).glob("*.png"):
        with storage.open(name) as file:
            found[name] = file.read()
    return found


def test_a_file_is_created_where_its_name_is_free(storage: Storage) -> None:
    assert storage.create(b"first", ["a.png", "inner/b.png"]) == [True, True]
    assert again(storage).create(b"other", ["a.png", "c.png"]) == [False, True]
    assert storage.link("a.png", ["inner/b.png", "d.png"]) == [False, True]

    seen = again(storage)
    assert seen.glob("*.png") == ["a.png", "c.png", "d.png"]
    assert [seen.digest(name)[:8] for name in ("a.png", "inner/b.png", "d.png")] == [
        hashlib.sha256(b"first").hexdigest()[:8]
    ] * 3
    stamp = seen.stamp("inner/b.png")
    assert stamp is not None
    assert stamp.size == 5
    assert seen.stamp("e.png") is None


def test_of_many_that_create_one_file_at_one_time_one_does(tmp_path: Path) -> None:
    places = [Folder(tmp_path / "folder"), ObjectStore(LocalFileSystem(), str(tmp_path / "objects"))]
    for place in places:
        start = Barrier(8)
        won: list[int] = []

        def create(number: int, place: Storage = place, start: Barrier = start, won: list[int] = won) -> None:
            start.wait()
            if place.create(b"%d" % number, ["one.png"]) == [True]:
                won.append(number)

        threads = [Thread(target=create, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert len(won) == 1
        with place.open("one.png") as file:
            assert file.read() == b"%d" % won[0]


def test_a_batch_is_the_same_everywhere_and_goes_on_everywhere(
    pipe: HunyuanDiTImagePipeline, storage: Storage, out: Path
) -> None:
    run_batch(pipe, JOB, out / "folder", batch_size=4)
    run_batch(pipe, JOB[:3], storage, batch_size=4)

    rest = run_batch(pipe, JOB[:5], again(storage), batch_size=4)
    last = run_batch(pipe, JOB[:5], again(storage), batch_size=4, verify=True)

    assert (rest.finished, rest.drawn, last.images, last.finished) == (3, 2, 0, 5)
    assert images(storage).keys() == {name for name in contents(out / "folder") if name < "000005"}
    assert set(again(storage).history().finished) == {line["key"] for line in ledger_lines(storage)}


def ledger_lines(storage: Storage) -> list[dict[str, Any]]:
    lines = []
    for name in again(storage).glob("ledger*.jsonl"):
        with storage.open(name) as file:
            lines += [json.loads(line) for line in file]
    return [line for line in lines if "key" in line]


@pytest.mark.parametrize("format", ["files", "tar"])
def test_images_whose_ledger_is_lost_are_adopted(
    pipe: HunyuanDiTImagePipeline, store: ObjectStore, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_batch(pipe, JOB[:2], store, format=format)
    before = ledger_lines(store)
    for name in store.glob("ledger*.jsonl"):
        store.files.rm(store.where(name))
    monkeypatch.setattr(pipe, "draw_latents", lambda *_: pytest.fail("drawn again"))

    progress = run_batch(pipe, JOB[:2], again(store), format=format)

    assert progress.finished == 2
    assert [(line["key"], line["sha256"]) for line in ledger_lines(store)] == [
        (line["key"], line["sha256"]) for line in before
    ]


def test_several_names_of_an_image_and_names_of_others(pipe: HunyuanDiTImagePipeline, store: ObjectStore) -> None:
    store.create(b"something else", ["taken.png"])
    job = [{"prompt": "a cat", "seed": 3, "file": name, **SMALL} for name in ("a.png", "inner/b.png")]

    assert run_batch(pipe, job, store).drawn == 1
    assert store.digest("a.png") == store.digest("inner/b.png")
    with pytest.raises(InvalidRequest, match=r"run/taken\.png is there already"):
        run_batch(pipe, [{**job[0], "file": "taken.png"}], again(store))


def test_a_store_that_fails_pauses_the_batch_with_its_reason(
    pipe: HunyuanDiTImagePipeline, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError("no such bucket of yours")

    monkeypatch.setattr(store.files, "pipe_file", refuse)

    with pytest.raises(Paused, match=r"no such bucket of yours: .*000000-"):
        run_batch(pipe, JOB[:1], store)


def test_an_address_that_nothing_can_open_is_one_clear_error() -> None:
    with pytest.raises(InvalidRequest, match=r'carrier-pigeon://loft cannot be used.*"diffsynth\[distributed\]"'):
        open_storage("carrier-pigeon://loft")

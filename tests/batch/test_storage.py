"""The same batch in a folder and in an object store."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from threading import Barrier, Thread, Timer
from typing import Any, ClassVar

import pytest

pytest.importorskip("fsspec", reason="object stores need the distributed extra")

from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from diffsynth import HunyuanDiTImagePipeline
from diffsynth.batch import make_plan, read_entries, run_batch
from diffsynth.batch.ledger import History
from diffsynth.batch.names import USUAL
from diffsynth.batch.objects import ObjectStore
from diffsynth.batch.output import Files
from diffsynth.batch.resume import look
from diffsynth.batch.storage import Folder, Storage, open_storage
from diffsynth.batch.worker import Manner, Task, Worker
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


class Refusing(MemoryFileSystem):  # type: ignore[misc]
    """A store with an error of its own for a name that is taken, as those of a kind of S3 have."""

    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    cachable = False

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        if path in self.store:
            raise OSError(errno.EINVAL, "At least one of the pre-conditions you specified did not hold")
        super().pipe_file(path, value, mode=mode)


class Overwriting(MemoryFileSystem):  # type: ignore[misc]
    """A store that does not know how to refuse, nor that it is asked to."""

    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    cachable = False

    def pipe_file(self, path: str, value: bytes, **_: Any) -> None:
        super().pipe_file(path, value)


@pytest.mark.parametrize("kind", [Refusing, Overwriting])
def test_no_file_is_replaced_whatever_a_store_says_or_does(kind: type[MemoryFileSystem]) -> None:
    kind.store.clear()
    store = ObjectStore(kind(), "/bucket/run")

    assert store.create(b"first", ["a.png"]) == [True]
    assert again(store).create(b"other", ["a.png", "b.png"]) == [False, True]
    with store.open("a.png") as file:
        assert file.read() == b"first"


def test_an_image_that_another_process_made_after_a_look_is_noted_as_it_is(store: ObjectStore) -> None:
    late = again(store)
    assert late.stamp("a.png") is None
    store.create(b"first", ["a.png"])

    assert late.create(b"other", ["a.png"]) == [False]
    assert late.finished(["a.png"], "0" * 64).size == 5


class OfTheLibrary(Exception):
    """As some libraries of stores raise them."""


def test_any_error_of_a_store_has_a_reason_and_a_name(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OfTheLibrary("Unable to locate credentials")

    for name in ("pipe_file", "find", "cat_file", "info"):
        monkeypatch.setattr(store.files, name, refuse)

    for ask in (lambda: store.create(b"", ["a.png"]), lambda: store.open("a.png"), store.history):
        with pytest.raises(OSError, match="OfTheLibrary: Unable to locate credentials") as caught:
            ask()
        assert str(caught.value.filename).startswith("/bucket/run/")


def test_ledgers_of_a_store_are_read_though_one_cannot_be(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.create(b'{"key":"1","failed":"x"}\n', ["ledger-a.jsonl"])
    store.create(b'{"key":"2","failed":"y"}\n', ["ledger-b.jsonl"])
    assert store.history().failures == {"1": ["x"], "2": ["y"]}
    monkeypatch.setattr(store.files, "cat_ranges", lambda paths, *_: [b"", TimeoutError("too slow")])

    with pytest.raises(OSError, match="too slow") as caught:
        store.history()
    assert caught.value.filename == "/bucket/run/ledger-b.jsonl"


def test_workers_note_what_they_find_in_a_store_though_they_draw_nothing(
    pipe: HunyuanDiTImagePipeline, store: ObjectStore
) -> None:
    run_batch(pipe, JOB[:2], store)
    for name in store.glob("ledger*.jsonl"):
        store.files.rm(store.where(name))
    plan = make_plan(pipe, read_entries(JOB[:2], pipe.request_type), names=USUAL)
    found = look(plan.units, History(), Files(again(store))).found

    Worker(lambda: pipe, again(store), 0, 1, Manner()).draw(
        Task(plan.units[0], frozenset(item.key for item in plan.items), tuple(published for _, published in found))
    )

    assert set(again(store).history().finished) == {item.key for item in plan.items}


def test_unfinished_files_of_processes_that_ended_are_removed_and_those_of_others_are_not(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    for owner in ("ledger-ended", "ledger-alive", "ledger-mine", "unknown"):
        (inner / f".{owner}.1234abcd.part").touch()
    Folder(tmp_path).ledger("ledger-ended.jsonl").__exit__()
    mine = Folder(tmp_path, "ledger-mine")

    with Folder(tmp_path).ledger("ledger-alive.jsonl"):
        (inner / ".ledger-ended.5678abcd.part").touch()
        assert not mine.tidy()
        assert sorted(path.name for path in inner.iterdir()) == [
            ".ledger-alive.1234abcd.part", ".unknown.1234abcd.part"
        ]  # fmt: skip
        (inner / ".unknown.1234abcd.part").unlink()
        assert not mine.tidy()

    assert mine.tidy()
    assert list(inner.iterdir()) == []


def test_whoever_looks_whether_a_ledger_is_used_keeps_nobody_from_it(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl", reason="there are no locks")
    (tmp_path / "ledger.jsonl").touch()
    with (tmp_path / "ledger.jsonl").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        Timer(0.05, lambda: fcntl.flock(file, fcntl.LOCK_UN)).start()

        with Folder(tmp_path).ledger("ledger.jsonl") as ledger:
            ledger.write({"run": {}})


def test_of_archives_only_those_are_read_of_which_no_ledger_tells_all(
    pipe: HunyuanDiTImagePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_batch(pipe, JOB, tmp_path, format="tar", batch_size=4)
    archives = sorted(path.name for path in tmp_path.glob("*.tar"))
    read: list[str] = []
    digest = Folder.digest

    def noting(self: Folder, name: str) -> str:
        read.append(name)
        return digest(self, name)

    monkeypatch.setattr(Folder, "digest", noting)
    assert len(archives) == 2

    more = [*JOB, {"prompt": "a fox", "seed": 9, **SMALL, "width": 64}]
    progress = run_batch(pipe, more, tmp_path, format="tar", batch_size=4)

    assert (progress.finished, progress.drawn) == (7, 1)
    assert read == []

    ledger = tmp_path / "ledger.jsonl"
    run, first, *others = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(run + b"".join(others))  # the first line of an archive is lost

    assert run_batch(pipe, more, tmp_path, format="tar", batch_size=4).images == 0
    assert read == json.loads(first)["files"]

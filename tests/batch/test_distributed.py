"""Several workers, through a Ray of this machine: the same files whatever dies on the way, each image once."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

from diffsynth.batch import Progress, make_plan, run_plan
from diffsynth.batch import cluster as clusters
from diffsynth.batch.distributed import run_distributed
from diffsynth.batch.names import USUAL
from diffsynth.batch.storage import Folder
from diffsynth.cli import run
from diffsynth.errors import InvalidRequest, NotACheckpoint
from diffsynth.pipelines.base import ImagePipeline
from tests.batch import toy_workers
from tests.batch.test_run import contents
from tests.batch.toy_workers import entries
from tests.pipelines.toy import write_toy

pytest.importorskip("ray", reason="several workers need the distributed extra")

IMAGES = int(os.environ.get("DIFFSYNTH_SOAK_IMAGES", "40"))  # a fifth of them are asked for twice
DISTINCT = round(IMAGES * 0.8)
SECONDS = 120.0  # that anything may take
FORKS = multiprocessing.get_context("forkserver")


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The files of a toy pipeline; none, but for many images, since networks take seconds to load in each worker."""
    return write_toy(tmp_path_factory.mktemp("workers")) if IMAGES > 100 else []


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A Ray that nobody else can reach, for all tests of this file."""
    FORKS.set_forkserver_preload(["tests.batch.toy_workers"])  # which takes seconds, meanwhile
    forkserver.ensure_running()
    with clusters.cluster(workers=4):
        import ray

        found: str = ray.get_runtime_context().gcs_address
        assert found.startswith("127.0.0.1:")
        yield found


@pytest.fixture(scope="module")
def expected(paths: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process draws."""
    folder = tmp_path_factory.mktemp("one")
    pipe = toy_workers.load(paths)
    run_plan(pipe, make_plan(pipe, entries(IMAGES), names=USUAL, batch_size=4), folder)
    return contents(folder)


def draw(make_pipe: Callable[[], ImagePipeline[Any]], out: Path, workers: int = 1) -> Progress:
    """Draw the job with workers, each of which takes seconds to start."""
    return run_distributed(make_pipe, entries(IMAGES), out, workers=workers, batch_size=4)


def check(out: Path, expected: dict[str, bytes]) -> None:
    """Fail unless a folder holds every image once, noted with its hash, and nothing that was left over."""
    assert contents(out) == expected
    assert {path.suffix for path in out.rglob("*") if path.is_file()} == {".png", ".jsonl"}
    finished = Folder(out).history().finished
    assert len(finished) == DISTINCT
    assert {name for files in finished.values() for name in files[0].files} == expected.keys()
    storage = Folder(out)
    for files in finished.values():
        assert {file.sha256 for file in files} == {storage.digest(files[0].files[0])}


def lines(out: Path) -> list[int]:
    """Return how many lines each ledger has."""
    return [path.read_bytes().count(b"\n") for path in out.glob("ledger*.jsonl")]


def another_driver(
    address: str, out: Path, paths: list[Path], meet: tuple[Path, Path] | None = None
) -> ForkServerProcess:
    """Start a driver in a process of its own, with one worker, which is slow, or meets another."""
    process = FORKS.Process(target=toy_workers.be_driver, args=(address, out, IMAGES, paths, meet))
    process.start()
    return process


def ended(process: ForkServerProcess) -> int | None:
    """Wait for the end of a process and return its exit code."""
    process.join(SECONDS)
    return process.exitcode


def wait_for_lines(out: Path, count: int, *processes: ForkServerProcess) -> None:
    """Wait until as many ledgers as there are processes have so many lines each."""
    end = time.monotonic() + SECONDS
    while [found >= count for found in lines(out)] != [True] * len(processes):
        assert time.monotonic() < end
        assert all(process.is_alive() for process in processes)
        time.sleep(0.02)


def test_a_worker_is_killed_amid_a_unit_and_another_goes_on(
    address: str, paths: list[Path], expected: dict[str, bytes], out: Path, tmp_path: Path
) -> None:
    progress = draw(partial(toy_workers.load_dying, paths, tmp_path / "died"), out, workers=2)

    assert (tmp_path / "died").exists()
    assert (progress.images, progress.drawn, progress.failures) == (DISTINCT, DISTINCT, {})
    check(out, expected)


def test_a_driver_is_interrupted_another_is_killed_and_a_third_ends_the_job(
    address: str, paths: list[Path], expected: dict[str, bytes], out: Path
) -> None:
    processes = [another_driver(address, out, paths) for _ in range(2)]
    try:
        wait_for_lines(out, 3, *processes)
        for process, number in zip(processes, (signal.SIGINT, signal.SIGKILL), strict=True):
            assert process.pid is not None
            os.kill(process.pid, number)
        assert [ended(process) for process in processes] == [1, -signal.SIGKILL]
    finally:
        for process in processes:
            process.kill()

    progress = draw(partial(toy_workers.load, paths), out)

    assert progress.images
    assert progress.finished
    check(out, expected)


def test_two_drivers_at_one_time_make_each_image_once(
    address: str, paths: list[Path], expected: dict[str, bytes], out: Path, tmp_path: Path
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    process = another_driver(address, out, paths, (there, here))
    try:
        wait_for_lines(out, 2, process)
        progress = draw(partial(toy_workers.load_meeting, paths, here, there), out)
        assert ended(process) == 0
    finally:
        process.kill()

    assert progress.images
    check(out, expected)


def test_the_command_draws_with_workers_and_shards_what_it_draws_alone(
    address: str, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "job.txt").write_text("a cat\na dog\na fox\na cake\n", "utf-8")
    files = [argument for path in write_toy(tmp_path) for argument in ("--model", str(path))]
    small = ["--height", "32", "--width", "32", "--steps", "1", "--device", "cpu", "--seed", "3"]
    command = ["batch", str(tmp_path / "job.txt"), *files, *small, "--batch-size", "2"]

    assert run([*command, "-o", str(out / "alone")]) == 0
    assert run([*command, "-o", str(out / "workers"), "--workers", "1"]) == 0
    for part in ("0/2", "1/2"):
        assert run([*command, "-o", str(out / "shards"), "--shard", part]) == 0
    assert run([*command, "-o", str(out), "--workers", "1", "--ledger", "ledger-mine.jsonl"]) == 1
    assert run([*command, "-o", str(out), "--workers", "1", "--device", "cuda:1"]) == 1

    assert contents(out / "workers") == contents(out / "shards") == contents(out / "alone")
    said = capsys.readouterr()
    assert f"{out / 'workers'}: 4 drawn, 0 were there" in said.out
    assert said.out.count(f"{out / 'shards'}: 2 drawn, 0 were there") == 2
    assert "--ledger names the ledger of one process" in said.err
    assert "--device cuda:1 is one device" in said.err


def test_more_workers_than_there_is_room_for_are_refused(address: str, paths: list[Path], out: Path) -> None:
    with pytest.raises(InvalidRequest, match="9 workers do not fit: this Ray has 4 processors"):
        run_distributed(partial(toy_workers.load, paths), entries(4), out, workers=9)


def test_an_error_of_a_worker_is_that_of_the_run(address: str, out: Path) -> None:
    load = partial(toy_workers.load, [out / "absent.safetensors"])

    with pytest.raises(NotACheckpoint, match=r"absent\.safetensors") as caught:
        run_distributed(load, entries(4), out, workers=1)

    assert caught.value.path == out / "absent.safetensors"


@pytest.mark.parametrize(("there", "problem"), [("127.0.0.1:9", "refused"), ("there", "an address is HOST:PORT")])
def test_an_address_where_no_ray_is_is_told_at_once(monkeypatch: pytest.MonkeyPatch, there: str, problem: str) -> None:
    ray = importlib.import_module("ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("Ray was asked"))

    with pytest.raises(InvalidRequest, match=f"the Ray at {there} cannot be used: .*{problem}"):
        clusters.cluster(there).__enter__()


def test_without_ray_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr("importlib.import_module", lacking)

    with pytest.raises(InvalidRequest, match=r'pip install "diffsynth\[distributed\]"'), clusters.cluster():
        pass

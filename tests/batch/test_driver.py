"""What a driver does with workers that die, fail, or draw something else; here they work in this process."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from diffsynth import HunyuanDiTImagePipeline
from diffsynth.batch import Progress, make_plan, run_plan
from diffsynth.batch.cluster import Cluster, WorkerLost
from diffsynth.batch.driver import HOPELESS, TRIES, Driver
from diffsynth.batch.storage import Folder
from diffsynth.batch.worker import Manner, Record, Task, Worker
from diffsynth.errors import Cancelled, CorruptCheckpoint, DiffSynthError, InvalidRequest, Paused
from tests.batch.test_run import contents
from tests.batch.toy_workers import entries


class Died(BaseException):
    """Ends a worker, as a signal would."""


class Here(Cluster):
    """Workers in this process, which work when they are waited for.

    Args:
        workers: how many.
        never: what the first worker is asked and never does; all others do it.
    """

    def __init__(self, workers: int, never: str = "") -> None:
        self.workers = workers
        self.threads = 1
        self.started = 0
        self.bytes_sent: list[int] = []
        self._never = never
        self._first: Worker | None = None

    def start(self, *arguments: Any) -> Worker:
        self.started += 1
        worker = Worker(*arguments)
        self._first = self._first or worker
        return worker

    def share(self, value: Any) -> Any:
        return value

    def ask(self, worker: Any, method: str, *arguments: Any) -> Any:
        if worker is self._first and method == self._never:
            return object()
        return lambda: getattr(worker, method)(*arguments)

    def answered(self, promises: Sequence[Any], seconds: float | None) -> list[Any]:
        return [promise for promise in promises if callable(promise)][:1]

    def answer(self, promise: Any) -> Any:
        try:
            answer = promise()
        except Died as error:
            raise WorkerLost("killed") from error
        if isinstance(answer, Record):
            self.bytes_sent.append(len(pickle.dumps(answer)))
        return answer

    def records(self, workers: Sequence[Any]) -> dict[Any, Record]:
        return {}

    def stop(self, workers: Sequence[Any], promises: Sequence[Any]) -> None:
        for worker in workers:
            self.end(worker)

    def end(self, worker: Worker) -> None:
        worker.close()


def draw(
    make_pipe: Callable[[], HunyuanDiTImagePipeline], out: Path, cluster: Here | None = None, **options: Any
) -> Progress:
    """Draw the job of twenty images with workers in this process."""
    driver = Driver(cluster or Here(2), make_pipe, out, Manner(), **options)
    try:
        plan = driver.plan(entries(20), "{index}.png", 4)
        return driver.run(plan.units, verify=False, retry_failed=False)
    finally:
        driver.stop()


@pytest.fixture
def expected(pipe: HunyuanDiTImagePipeline, tmp_path: Path) -> dict[str, bytes]:
    """What one process draws."""
    run_plan(pipe, make_plan(pipe, entries(20), names="{index}.png", batch_size=4), tmp_path / "one")
    return contents(tmp_path / "one")


def dying(pipe: HunyuanDiTImagePipeline, monkeypatch: pytest.MonkeyPatch, when: Callable[[list[str]], bool]) -> None:
    """Let the pipeline end its worker when it is to draw some prompts."""
    draw_latents = pipe.draw_latents

    def deadly(requests: Any, *others: Any) -> Any:
        if when([request.prompt for request in requests]):
            raise Died
        return draw_latents(requests, *others)

    monkeypatch.setattr(pipe, "draw_latents", deadly)


def test_workers_draw_what_one_process_draws_each_image_once(
    pipe: HunyuanDiTImagePipeline, out: Path, expected: dict[str, bytes]
) -> None:
    cluster = Here(2)

    progress = draw(lambda: pipe, out, cluster)
    again = draw(lambda: pipe, out)

    assert (progress.images, progress.drawn, progress.failures) == (16, 16, {})
    assert (again.images, again.finished) == (0, 16)
    assert contents(out) == expected
    assert len(Folder(out).history().finished) == 16
    assert all(len(found) == 1 for found in Folder(out).history().finished.values())
    assert max(cluster.bytes_sent) < 250


def test_what_is_left_of_one_unit_is_work_for_several(
    pipe: HunyuanDiTImagePipeline, out: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    plan = make_plan(pipe, entries(20), names="{index}.png", batch_size=1)
    run_plan(pipe, plan, out, choose=lambda units: units[:3])
    cluster = Here(2)
    driver = Driver(cluster, lambda: pipe, out, Manner())

    progress = driver.run(plan.units, verify=False, retry_failed=False)
    driver.stop()

    assert (progress.finished, progress.drawn) == (12, 4)
    assert len(cluster.bytes_sent) == 4
    assert contents(out).keys() == expected.keys()


def test_a_worker_that_dies_once_changes_nothing(
    pipe: HunyuanDiTImagePipeline, out: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    deaths: list[str] = []

    def once(prompts: list[str]) -> bool:
        deaths.extend(prompts)
        return deaths.count("a cat number 5") == 1 and "a cat number 5" in prompts

    dying(pipe, monkeypatch, once)
    cluster = Here(2)

    progress = draw(lambda: pipe, out, cluster)

    assert cluster.started == 3
    assert (progress.drawn, progress.failures) == (16, {})
    assert contents(out) == expected


def test_a_worker_whose_accelerator_failed_is_replaced_and_no_image_is_to_blame(
    pipe: HunyuanDiTImagePipeline, out: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_latents = pipe.draw_latents
    failed: list[str] = []

    def failing(requests: Any, *others: Any) -> Any:
        if any(request.seed == 5 for request in requests) and not failed:
            failed.append("once")
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nmore")
        return draw_latents(requests, *others)

    monkeypatch.setattr(pipe, "draw_latents", failing)
    cluster = Here(2)

    progress = draw(lambda: pipe, out, cluster)

    assert cluster.started == 3
    assert (progress.drawn, progress.failures) == (16, {})
    assert Folder(out).history().failures == {}
    assert contents(out) == expected


def test_an_image_that_ends_every_worker_fails_and_its_companions_do_not(
    pipe: HunyuanDiTImagePipeline, out: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    dying(pipe, monkeypatch, lambda prompts: "a cat number 5" in prompts)
    cluster = Here(2)

    progress = draw(lambda: pipe, out, cluster)

    assert progress.failures == {"5.png": f"{TRIES} workers died while they drew it"}
    assert progress.drawn == 15
    assert cluster.started == 2 + 2 * TRIES
    assert contents(out).keys() == expected.keys() - {"5.png"}
    ((reason,),) = Folder(out).history().failures.values()
    assert reason == progress.failures["5.png"]


def test_when_all_workers_die_the_run_pauses(
    pipe: HunyuanDiTImagePipeline, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying(pipe, monkeypatch, lambda prompts: True)
    cluster = Here(2)

    with pytest.raises(Paused, match=f"{HOPELESS} workers died one after another"):
        draw(lambda: pipe, out, cluster)

    assert cluster.started < 2 + HOPELESS


def test_a_worker_that_dies_while_it_loads_is_replaced(
    pipe: HunyuanDiTImagePipeline, out: Path, expected: dict[str, bytes]
) -> None:
    loads: list[int] = []

    def load() -> HunyuanDiTImagePipeline:
        loads.append(1)
        if len(loads) == 1:
            raise Died
        return pipe

    cluster = Here(1)

    assert draw(load, out, cluster).drawn == 16
    assert cluster.started == 2
    assert contents(out) == expected


def test_a_worker_that_never_gets_ready_keeps_nobody_waiting(
    pipe: HunyuanDiTImagePipeline, out: Path, expected: dict[str, bytes]
) -> None:
    assert draw(lambda: pipe, out, Here(2, never="ready")).drawn == 16
    assert contents(out) == expected


def test_the_unit_of_a_worker_that_hangs_is_drawn_by_one_without_work(
    pipe: HunyuanDiTImagePipeline,
    out: Path,
    expected: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("diffsynth.batch.driver.LATE", 0.0)
    monkeypatch.setattr("diffsynth.batch.driver.LATE_SECONDS", 0.0)

    progress = draw(lambda: pipe, out, Here(2, never="draw"))

    assert (progress.images, progress.drawn, progress.step, progress.failures) == (16, 16, 16, {})
    assert contents(out) == expected
    assert len(Folder(out).history().finished) == 16
    assert "0.png and others take long: another worker draws them too" in caplog.text


class Twice(Here):
    """The first worker's unit is not heard of until another draws it too, but then before that other.

    Args:
        workers: how many.
        dies: whether the first worker dies with it.
    """

    def __init__(self, workers: int, *, dies: bool) -> None:
        super().__init__(workers)
        self.asked: list[str] = []
        self._dies = dies
        self._late: Any = None

    def ask(self, worker: Any, method: str, *arguments: Any) -> Any:
        promise = super().ask(worker, method, *arguments)
        if method == "draw":
            self.asked.append(arguments[0].unit.name)
            if worker is self._first and self._late is None:
                self._late = self._die if self._dies else promise
                return self._late
        return promise

    def answered(self, promises: Sequence[Any], seconds: float | None) -> list[Any]:
        twice = len(set(self.asked)) < len(self.asked)
        if twice and self._late in promises:
            return [self._late]
        return super().answered([promise for promise in promises if promise is not self._late], seconds)

    def _die(self) -> Record:
        raise Died


@pytest.mark.parametrize("dies", [False, True])
def test_of_two_workers_at_one_unit_the_first_to_end_settles_it(
    pipe: HunyuanDiTImagePipeline, out: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, dies: bool
) -> None:
    monkeypatch.setattr("diffsynth.batch.driver.LATE", 0.0)
    monkeypatch.setattr("diffsynth.batch.driver.LATE_SECONDS", 0.0)
    cluster = Twice(2, dies=dies)

    progress = draw(lambda: pipe, out, cluster)

    assert (progress.drawn, progress.step, progress.failures) == (16, 16, {})
    assert cluster.asked.count(cluster.asked[0]) > 1
    assert len(set(cluster.asked)) == 4
    assert contents(out) == expected


def test_what_an_image_fails_of_is_told_once(
    pipe: HunyuanDiTImagePipeline, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_latents = pipe.draw_latents

    def failing(requests: Any, *others: Any) -> Any:
        if any(request.seed == 5 for request in requests):
            raise RuntimeError("no such luck")
        return draw_latents(requests, *others)

    monkeypatch.setattr(pipe, "draw_latents", failing)

    progress = draw(lambda: pipe, out)

    assert progress.failures == {"5.png": "RuntimeError: no such luck"}
    assert (progress.drawn, progress.step) == (15, 16)


def test_a_worker_with_other_weights_or_settings_is_refused(
    pipe: HunyuanDiTImagePipeline, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(pipe, entries(4), names="{index}.png")
    monkeypatch.setattr(type(pipe), "describe", lambda self: {"conventions": "others"})

    with pytest.raises(InvalidRequest, match="does not draw what was planned"):
        Worker(lambda: pipe, out, 0, 1, Manner()).draw(Task(plan.units[0]))


def test_a_worker_stops_with_the_step_at_which_it_is(pipe: HunyuanDiTImagePipeline, out: Path) -> None:
    plan = make_plan(pipe, entries(4), names="{index}.png")
    out.mkdir()
    worker = Worker(lambda: pipe, out, 0, 1, Manner())
    worker.stop()

    with pytest.raises(Cancelled):
        worker.draw(Task(plan.units[0]))

    worker.close()
    assert worker.record() == Record(plan.units[0].name)


def test_the_driver_stops_when_it_is_asked_to(pipe: HunyuanDiTImagePipeline, out: Path) -> None:
    def stop(done: Any) -> None:
        if done.step:
            raise Cancelled("enough")

    with pytest.raises(Cancelled, match="enough"):
        draw(lambda: pipe, out, on_step=stop)


def test_a_machine_without_the_folder_is_named(pipe: HunyuanDiTImagePipeline, out: Path) -> None:
    plan = make_plan(pipe, entries(4), names="{index}.png")

    with pytest.raises(InvalidRequest, match=r"does not have the folder .*out, where images are to go"):
        Worker(lambda: pipe, out, 0, 1, Manner()).draw(Task(plan.units[0]))


def test_workers_of_one_machine_have_a_ledger_each(pipe: HunyuanDiTImagePipeline, out: Path) -> None:
    plan = make_plan(pipe, entries(4), names="{index}.png")
    out.mkdir()
    workers = [Worker(lambda: pipe, out, 0, 1, Manner()) for _ in range(2)]

    for worker, unit in zip(workers, plan.units, strict=False):
        worker.draw(Task(unit))

    assert [name.rpartition("-")[2] for name in Folder(out).glob("ledger*")] == ["0.jsonl", "1.jsonl"]
    for worker in workers:
        worker.close()


@pytest.mark.parametrize(
    "error", [CorruptCheckpoint("dit.pt", "is cut", "Download it again."), Paused("the disk is full"), Cancelled()]
)
def test_errors_say_the_same_in_another_process(error: DiffSynthError) -> None:
    copy = pickle.loads(pickle.dumps(error))

    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)

"""What is made of what Ray says, and of addresses; no Ray is started here."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from diffsynth.batch import cluster as clusters
from diffsynth.batch.cluster import Cluster, WorkerLost
from diffsynth.batch.distributed import run_distributed
from diffsynth.errors import InvalidRequest, Paused
from tests.batch.fake import FakePipeline

pytest.importorskip("ray", reason="several workers need the distributed extra")

from ray import exceptions


def answer(error: BaseException) -> Any:
    """Return what becomes of an error that Ray raises for a promise."""

    def get(promise: Any) -> Any:
        raise error

    cluster = object.__new__(Cluster)
    cluster._ray = SimpleNamespace(get=get, exceptions=exceptions)
    return cluster.answer("promise")


def of_a_task(cause: BaseException) -> exceptions.RayTaskError:
    return exceptions.RayTaskError("Worker.draw", "Traceback:\n  …\nModuleNotFoundError: No module named 'x'", cause)


def test_what_a_worker_raises_is_raised_as_it_is() -> None:
    with pytest.raises(Paused, match="the disk is full"):
        answer(of_a_task(Paused("the disk is full")))
    with pytest.raises(exceptions.RayTaskError, match="No module named 'x'"):
        answer(of_a_task(KeyError("a mistake of ours")))


def test_a_worker_that_died_is_told_of_in_one_line() -> None:
    died = exceptions.ActorDiedError()
    died.error_msg = "The actor died unexpectedly.\n\tactor_id: 1\n\tpid: 12\n\tip: 10.0.0.7\nIt lacked memory.\n"

    with pytest.raises(WorkerLost) as caught:
        answer(died)

    assert str(caught.value) == "pid: 12; ip: 10.0.0.7; It lacked memory"


def test_a_worker_that_cannot_start_ends_the_run_with_its_reason() -> None:
    with pytest.raises(InvalidRequest, match=r"cannot start: ModuleNotFoundError: No module named 'x'. Every machine"):
        answer(exceptions.ActorDiedError(of_a_task(ModuleNotFoundError())))


def test_versions_that_do_not_understand_each_other_are_told_of() -> None:
    error = exceptions.RaySystemError("arguments", "Traceback\nTypeError: missing arguments")

    for each in (error, of_a_task(error)):
        with pytest.raises(InvalidRequest, match=r"not understand each other: TypeError: .*the same diffsynth"):
            answer(each)


def test_others_use_processors_that_workers_wait_for(caplog: pytest.LogCaptureFixture) -> None:
    ray = SimpleNamespace(
        cluster_resources=lambda: {"CPU": 8.0}, available_resources=lambda: {"CPU": 3.0},
        nodes=lambda: [{"Alive": True}], remote=lambda **claim: lambda kind: kind,
    )  # fmt: skip

    assert clusters._cluster(ray, 4).workers == 4

    assert "1 of 4 workers wait: of 8 processors, others use all but 3" in caplog.text


def test_a_ray_that_listens_on_this_machine_only_is_told_from_others() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert clusters._is_only_here(f"127.0.0.1:{port}")
        assert clusters._is_only_here(f"localhost:{port}")
    for other in ("auto", "ray://127.0.0.1:10001", "127.0.0.1", "192.0.2.77:6379", "no.such.host.invalid:6379"):
        assert not clusters._is_only_here(other)


def test_a_connection_that_fails_says_why_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: Any) -> None:
        raise ConnectionError("Failed to connect to Ray cluster\n  at 10.0.0.1:6379.")

    ray = SimpleNamespace(is_initialized=lambda: False, init=init, exceptions=exceptions)
    monkeypatch.setattr(clusters, "_import_ray", lambda settings: ray)

    with pytest.raises(InvalidRequest) as caught:
        clusters.cluster("auto").__enter__()

    assert str(caught.value) == (
        "the Ray at auto cannot be used: Failed to connect to Ray cluster; at 10.0.0.1:6379. If it asks for a token, "
        "set RAY_AUTH_MODE=token."
    )


def test_a_store_within_one_process_is_refused_before_anything_starts() -> None:
    with pytest.raises(InvalidRequest, match="memory:// is within one process"):
        run_distributed(FakePipeline, [], "memory://bucket/run")


def test_a_wrong_place_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="carrier-pigeon://loft cannot be used"):
        run_distributed(FakePipeline, [], "carrier-pigeon://loft")

"""Worker processes on one machine or many, through Ray: all of the project that knows Ray."""

from __future__ import annotations

import importlib
import logging
import os
import shutil
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from diffsynth.batch.worker import Record, Worker
from diffsynth.errors import DiffSynthError, InvalidRequest, printable

logger = logging.getLogger(__name__)

CONTROL = "control"  # calls that are answered while a unit is drawn
ANSWER_SECONDS = 1.0  # a worker that still starts does not answer
REACH_SECONDS = 10.0
LEAVING_SECONDS = 10.0  # of a worker that was asked to stop
NOISE = ("The actor died unexpectedly", "\tclass_name:", "\tactor_id:", "\tname:", "\tnamespace:")  # of Ray's errors
SAME = "Every machine needs the same diffsynth, torch, Ray and Python."
STORE_BYTES = 100 * 1024**2  # of Ray's object store, in which only plans and records lie
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_COLOR_PREFIX": "0"}
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # this name, on every system: bind to 127.0.0.1


class WorkerLost(Exception):
    """The process of a worker died, or its machine cannot be reached."""


class Cluster:
    """Ray's side of a run; use ``cluster`` to get one.

    Args:
        ray: the library, connected.
        workers: how many there are to be.
        accelerators: whether each has one of its own.
        threads: of torch, for each.
    """

    def __init__(self, ray: Any, workers: int, accelerators: bool, threads: int) -> None:
        self._ray = ray
        self.workers = workers
        self.threads = threads
        claim = {"num_gpus": 1, "num_cpus": 0} if accelerators else {"num_cpus": 1}
        actor = ray.remote(concurrency_groups={CONTROL: 1}, max_restarts=0, **claim)
        self._actor = actor(Worker)

    def start(self, *arguments: Any) -> Any:
        """Start a worker in a process of its own, without waiting for it."""
        return self._actor.options(scheduling_strategy="SPREAD").remote(*arguments)

    def share(self, value: Any) -> Any:
        """Put an argument of many calls where all workers get it from; give them what this returns."""
        return self._ray.put(value)

    def ask(self, worker: Any, method: str, *arguments: Any) -> Any:
        """Let a worker do something after all that it was asked before; return a promise of the answer."""
        return getattr(worker, method).remote(*arguments)

    def answered(self, promises: Sequence[Any], seconds: float | None) -> list[Any]:
        """Wait for the first answer, but not longer than some seconds, and return the promises that are kept by now."""
        ready, _ = self._ray.wait(list(promises), num_returns=1, timeout=seconds)
        more, _ = self._ray.wait(list(promises), num_returns=len(promises), timeout=0)
        return list(dict.fromkeys((*ready, *more)))

    def answer(self, promise: Any) -> Any:
        """Return an answer.

        Raises:
            WorkerLost: the worker died.
            InvalidRequest: it cannot start, or it and this process have different versions of something.
            DiffSynthError, OSError: as the worker raised it.
        """
        lost = self._ray.exceptions
        try:
            return self._ray.get(promise)
        except lost.RayTaskError as error:
            if isinstance(error.cause, (DiffSynthError, OSError)):
                raise error.cause from None
            if isinstance(error.cause, lost.RaySystemError):
                raise _not_understood(error.cause) from error
            raise
        except lost.RaySystemError as error:
            raise _not_understood(error) from error
        except (lost.RayActorError, lost.WorkerCrashedError, lost.OutOfMemoryError, lost.ObjectLostError) as error:
            if getattr(error, "actor_init_failed", False):
                raise InvalidRequest(f"a worker cannot start: {_last_line(error)}. {SAME}") from error
            raise WorkerLost(_in_one_line(error)) from error

    def records(self, workers: Sequence[Any]) -> dict[Any, Record]:
        """Ask workers how far they are; those that do not answer soon are left out."""
        asked = {self._control(worker, "record"): worker for worker in workers}
        kept, _ = self._ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_SECONDS)
        found: dict[Any, Record] = {}
        for promise in kept:
            with suppress(WorkerLost):  # whoever waits for its unit will know
                found[asked[promise]] = self.answer(promise)
        return found

    def stop(self, workers: Sequence[Any], promises: Sequence[Any]) -> None:
        """Let workers end with the step at which they are; those that take too long are ended.

        Args:
            workers: all of them.
            promises: of what they are doing.
        """
        for worker in workers:
            self._control(worker, "stop")
        if promises:
            self._ray.wait(list(promises), num_returns=len(promises), timeout=LEAVING_SECONDS)
        for worker in workers:
            self.end(worker)

    def end(self, worker: Any) -> None:
        """End a worker's process now."""
        self._ray.kill(worker)

    def _control(self, worker: Any, method: str) -> Any:
        return getattr(worker, method).options(concurrency_group=CONTROL).remote()


@contextmanager
def cluster(address: str | None = None, workers: int | None = None) -> Iterator[Cluster]:
    """Connect to Ray, or start one that nobody else can reach, which ends with the block.

    Args:
        address: of a running Ray, such as ``10.0.0.1:6379``, or ``auto``; None starts one on this machine. A process
            that is connected already stays so.
        workers: how many; None for one per accelerator, or without any, one per machine.

    Raises:
        InvalidRequest: Ray is not installed or cannot be reached, or has no room for so many workers.
    """
    ray = _import_ray(LOOPBACK if address is None or _is_only_here(address) else {})
    connected = ray.is_initialized()
    logs = None if connected else _connect(ray, address, workers)
    try:
        yield _cluster(ray, workers)
    finally:
        if not connected:
            ray.shutdown()
    if logs is not None:  # after an error, they are kept
        shutil.rmtree(logs, ignore_errors=True)


def _cluster(ray: Any, workers: int | None) -> Cluster:
    there = ray.cluster_resources()
    accelerators, processors = int(there.get("GPU", 0)), int(there.get("CPU", 0))
    machines = sum(node["Alive"] for node in ray.nodes())
    count = workers or accelerators or machines
    room = accelerators or processors
    what = "accelerators" if accelerators else "processors"
    if count > room:
        raise InvalidRequest(f"{count} workers do not fit: this Ray has {room} {what}, and each takes one.")
    free = int(ray.available_resources().get("GPU" if accelerators else "CPU", 0))
    if count > free:
        logger.warning("%d of %d workers wait: of %d %s, others use all but %d", count - free, count, room, what, free)
    return Cluster(ray, count, bool(accelerators), max(1, processors // count))


def _import_ray(settings: dict[str, str]) -> Any:
    for name, value in {**QUIET, **settings}.items():
        os.environ.setdefault(name, value)  # read by Ray when it is imported
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise InvalidRequest(
            f'worker processes need the ray library ({error}): pip install "diffsynth[distributed]".'
        ) from error


def _connect(ray: Any, address: str | None, workers: int | None) -> Path | None:
    """Connect, and return the folder of a Ray that was started for this."""
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    with _signals_kept():
        try:
            if address is not None:
                _check_reachable(address)
                ray.init(address=address, **quiet)
                return None
            processors = max(os.cpu_count() or 1, workers or 1)
            own = {"num_cpus": processors, "include_dashboard": False, "object_store_memory": STORE_BYTES}
            session = ray.init("local", **own, **quiet).address_info["session_dir"]
            if (here := ray.util.get_node_ip_address()) != "127.0.0.1":
                logger.warning("Ray listens at %s, not only on this machine, since it was imported before", here)
            return Path(session)
        except (OSError, ValueError, RuntimeError, ImportError, ray.exceptions.RayError) as error:
            where = "a Ray of its own" if address is None else f"the Ray at {printable(address)}"
            hint = " If it asks for a token, set RAY_AUTH_MODE=token." if "Failed to connect" in str(error) else ""
            raise InvalidRequest(f"{where} cannot be used: {_in_one_line(error)}.{hint}") from error


def _check_reachable(address: str) -> None:
    """Raise OSError or ValueError unless somebody listens at HOST:PORT; Ray itself would try for minutes."""
    if address == "auto" or "://" in address:
        return
    socket.create_connection(_host_and_port(address), REACH_SECONDS).close()


def _host_and_port(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError("an address is HOST:PORT, such as 10.0.0.1:6379, or auto")
    return host.strip("[]"), int(port)


def _is_only_here(address: str) -> bool:
    """Whether an address is a loopback one where a Ray listens that has no other; Ray itself would look for another."""
    try:
        host, port = _host_and_port(address)
        if not ip_address(socket.gethostbyname(host)).is_loopback:
            return False
    except (OSError, ValueError):
        return False
    try:
        with socket.socket(type=socket.SOCK_DGRAM) as outward:
            outward.connect(("192.0.2.1", 9))  # nothing is sent
            own = outward.getsockname()[0]
        socket.create_connection((own, port), REACH_SECONDS).close()
    except OSError:
        return True
    return False


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Keep the handlers of this process, some of which Ray replaces."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _not_understood(error: BaseException) -> InvalidRequest:
    return InvalidRequest(f"a worker and this process do not understand each other: {_last_line(error)}. {SAME}")


def _last_line(error: BaseException) -> str:
    return printable(str(error).strip().splitlines()[-1], 300)


def _in_one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith(NOISE)]
    return printable("; ".join(lines).rstrip(".") or type(error).__name__, 600)

"""What every benchmark needs: time, memory, medians, versions, fresh processes."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
STATUS = Path("/proc/self/status")
LIBRARIES = ("diffsynth", "torch", "transformers", "diffusers", "safetensors", "accelerate")
SAMPLE_SECONDS = 0.005


@dataclass(frozen=True)
class Spread:
    """Several measurements of one thing."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the median of measurements, the smallest and the largest."""
        return cls(statistics.median(values), min(values), max(values), len(values))

    def text(self, digits: int = 2) -> str:
        """Return it as ``median (low-high)``."""
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}-{self.high:.{digits}f})"


@dataclass(frozen=True)
class Stage:
    """One part of a program: its time and the most memory the process held during it, in MB of 10^6 bytes.

    ``rss_mb`` counts everything, also pages of mapped files, which the system may take back; ``anonymous_mb`` only
    what it may not. ``before_mb`` is what was held when the stage began. All are 0 where the system does not tell.
    """

    name: str
    seconds: float
    before_mb: float
    rss_mb: float
    anonymous_mb: float


class Recorder:
    """Measures the stages of this process, one after the other."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what is done inside the with block."""
        _reset_peak()
        before, sampler = memory_mb("VmRSS"), _Sampler()
        started = time.perf_counter()
        with sampler:
            yield
        seconds = time.perf_counter() - started
        self.stages.append(Stage(name, seconds, before, memory_mb("VmHWM"), sampler.peak))

    def watch(
        self, owner: Any, name: str, label: Callable[..., str], result: Callable[[Any], None] | None = None
    ) -> None:
        """Make every call of a function a stage.

        Args:
            owner: the module or class that has the function.
            name: the function's name there.
            label: positional arguments → the stage's name.
            result: told what the function returned.
        """
        function = getattr(owner, name)

        def watched(*args: Any, **options: Any) -> Any:
            with self.stage(label(*args)):
                value = function(*args, **options)
            if result is not None:
                result(value)
            return value

        setattr(owner, name, watched)

    def summary(self) -> list[dict[str, Any]]:
        """Return the stages as JSON can hold them; stages of one name in a row are added up."""
        joined: list[Stage] = []
        for stage in self.stages:
            if joined and joined[-1].name == stage.name:
                last = joined.pop()
                stage = Stage(
                    stage.name,
                    last.seconds + stage.seconds,
                    last.before_mb,
                    max(last.rss_mb, stage.rss_mb),
                    max(last.anonymous_mb, stage.anonymous_mb),
                )
            joined.append(stage)
        return [asdict(stage) for stage in joined]


class _Sampler(threading.Thread):
    """Looks again and again at how much anonymous memory the process holds."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = memory_mb("RssAnon")
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            self.peak = max(self.peak, memory_mb("RssAnon"))

    def __enter__(self) -> _Sampler:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self.join()
        self.peak = max(self.peak, memory_mb("RssAnon"))


def memory_mb(name: str) -> float:
    """Return a number of this process's memory by its name in ``/proc/self/status``; 0 where there is none."""
    return _kilobytes(STATUS, name) * 1024 / 1e6


def available_memory_mb() -> float:
    """Return the memory that programs may still take; 0 where the system does not tell."""
    return _kilobytes(Path("/proc/meminfo"), "MemAvailable") * 1024 / 1e6


def _kilobytes(path: Path, name: str) -> int:
    if not path.is_file():
        return 0
    for line in path.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    return 0


def _reset_peak() -> None:
    """Make ``VmHWM`` count from now on, where the system allows it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def environment() -> dict[str, Any]:
    """Return what a measurement depends on: versions, processor, threads."""
    import torch

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    return {
        "device": "cpu",
        "processor": cpu,
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in LIBRARIES},
    }


def describe_environment(known: dict[str, Any]) -> str:
    """Return the environment as a line of text."""
    versions = ", ".join(f"{name} {version}" for name, version in known["versions"].items())
    return f"{known['processor']}, {known['threads']} threads; Python {known['python']}; {versions}"


def run_fresh(module: str, *arguments: str, folder: Path | None = None, threads: int | None = None) -> dict[str, Any]:
    """Run a module of ours in a process of its own.

    Args:
        module: its name; its last line of output must be JSON.
        *arguments: of the command line.
        folder: the working directory.
        threads: of PyTorch; None leaves the choice to it.

    Returns:
        What the last line said.

    Raises:
        RuntimeError: the process failed; the message ends with what it wrote.
    """
    changed = {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
    if threads is not None:
        changed["OMP_NUM_THREADS"] = str(threads)
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        env={**os.environ, **changed},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(arguments)} failed ({done.returncode}):\n{done.stderr[-3000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.strip().rsplit("\n", 1)[-1])
    return answer


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as text with aligned columns, the first row over a line."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "-" * (sum(widths) + 2 * (len(widths) - 1)))
    return "\n".join(lines)


def write_json(path: Path, content: Any) -> None:
    """Write a result file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")

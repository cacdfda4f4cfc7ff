"""One progress display for a whole job."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from typing_extensions import Self


@dataclass(frozen=True)
class DownloadReport:
    """How far a job is.

    Attributes:
        file: what is being fetched.
        files_done: how many files are in place, of those that were not at the start.
        files: how many there are to be.
        bytes_done: bytes of them that are there.
        bytes: bytes there are to be.
        rate: bytes a second since the start.
    """

    file: str
    files_done: int
    files: int
    bytes_done: int
    bytes: int
    rate: float


OnProgress = Callable[[DownloadReport], None]


class Progress:
    """Counts files and bytes, and shows them on a terminal or tells them to a function.

    Args:
        sizes: bytes of every file that is to be fetched.
        on_progress: told instead of the terminal, about four times a second.
    """

    def __init__(self, sizes: list[int], on_progress: OnProgress | None) -> None:
        self._files, self._bytes = len(sizes), sum(sizes)
        self._files_done = self._bytes_done = self._arrived = 0
        self._file = ""
        self._here = 0  # bytes of that file
        self._on_progress = on_progress
        self._started = time.monotonic()
        self._told = 0.0
        self._bar: Any = None

    def __enter__(self) -> Self:
        if self._on_progress is None and self._files:
            from tqdm import tqdm

            # disable=None: shown on a terminal only
            self._bar = tqdm(total=self._bytes, unit="B", unit_scale=True, disable=None, leave=False)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()

    def begin(self, file: str) -> None:
        """Say which file comes next."""
        self._file, self._here = file, 0
        if self._bar is not None:
            self._bar.set_description(f"{self._files_done + 1}/{self._files} {file.rsplit('/', 1)[-1]}")

    def present(self, size: int) -> None:
        """Say how many bytes of the file are there, when it is tried, or tried again."""
        self._count(size - self._here, arrived=0)

    def moved(self, count: int) -> None:
        """Count bytes that arrived, or that had to be thrown away."""
        self._count(count, arrived=max(count, 0))

    def end(self, size: int) -> None:
        """Say that the file is in place, and how many bytes it has."""
        self._files_done += 1
        self._told = 0.0
        self.present(size)

    def _count(self, count: int, arrived: int) -> None:
        self._bytes_done += count
        self._here += count
        self._arrived += arrived
        if self._bar is not None:
            self._bar.update(count)
        now = time.monotonic()
        if self._on_progress is not None and now - self._told > 0.25:
            self._told = now
            rate = self._arrived / max(now - self._started, 1e-6)
            self._on_progress(
                DownloadReport(self._file, self._files_done, self._files, self._bytes_done, self._bytes, rate)
            )

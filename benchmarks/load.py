"""Time and memory of loading a whole release, beside Diffusers.

    python -m benchmarks.load [--size tiny|small|full] [--repeats 5] [--json FILE]

Every measurement is a process of its own, with files in the page cache; imports are timed apart. Cases take turns,
after rounds that are thrown away. Both keep the autoencoder in float32. "first use" is looking at
every page of every weight once: weights that are views of a mapped file are only then there.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.diffusers_folder import write_diffusers_folder
from benchmarks.measure import (
    Spread,
    available_memory_mb,
    describe_environment,
    environment,
    run_fresh,
    table,
    write_json,
)
from benchmarks.published_files import write_published
from benchmarks.sizes import SIZES

NEEDED_DISK = {"tiny": 0.1e9, "small": 2e9, "full": 26e9}
TIMES = ("detect_s", "load_s", "first_use_s", "import_s")
SIZES_MB = ("peak_mb", "anonymous_mb", "weights_mb")


@dataclass(frozen=True)
class Case:
    """What is loaded by whom."""

    library: str
    files: str
    dtype: str
    paths: tuple[str, ...]


def write_cases(folder: Path, size: str, dtypes: Sequence[str]) -> tuple[Case, ...]:
    """Write the files and return what to load, in each dtype."""
    published = tuple(map(str, write_published(folder / "published", SIZES[size])))
    theirs = (str(folder / "diffusers"),)
    write_diffusers_folder(folder / "diffusers", SIZES[size])
    return tuple(
        Case(library, files, dtype, paths)
        for dtype in dtypes
        for library, files, paths in (
            ("diffsynth", "published .bin/.pt", published),
            ("diffsynth", "Diffusers folder", theirs),
            ("diffusers", "Diffusers folder", theirs),
        )
    )


def read_all(folder: Path) -> float:
    """Read every file, so that the page cache holds them; return MB."""
    total = 0
    for path in (each for each in folder.rglob("*") if each.is_file()):
        with path.open("rb") as file:
            while part := file.read(2**24):
                total += len(part)
    return total / 1e6


def measure(cases: Sequence[Case], repeats: int, warm_up: int, threads: int) -> list[dict[str, Any]]:
    """Run the cases in turn and return a row for each, with all its measurements."""
    runs: list[list[dict[str, Any]]] = [[] for _ in cases]
    for _ in range(warm_up + repeats):
        for case, own in zip(cases, runs, strict=True):
            own.append(run_fresh("benchmarks.load_once", case.library, case.dtype, *case.paths, threads=threads))
    rows: list[dict[str, Any]] = []
    for case, every in zip(cases, runs, strict=True):
        own = every[warm_up:]
        row: dict[str, Any] = {"library": case.library, "files": case.files, "dtype": case.dtype, "runs": own}
        row |= {name: vars(Spread.of([each[name] for each in own])) for name in (*TIMES, *SIZES_MB)}
        rows.append(row)
    return rows


def render(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as text."""
    head = ["by", "files", "dtype", *(name.replace("_s", " s").replace("_", " ") for name in TIMES)]
    head += [name.replace("_mb", " MB") for name in SIZES_MB]
    lines = [head]
    for row in rows:
        times = [Spread(**row[name]).text(3) if name != "import_s" else f"{row[name]['median']:.2f}" for name in TIMES]
        if row["library"] != "diffsynth":
            times[0] = "-"
        lines.append(
            [row["library"], row["files"], row["dtype"], *times, *(f"{row[x]['median']:.0f}" for x in SIZES_MB)]
        )
    return table(lines)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Read the command line, run, print and return the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="small", help="of the networks (default: small)")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each case (default: 5)")
    parser.add_argument("--warm-up", type=int, default=1, help="rounds that are thrown away (default: 1)")
    parser.add_argument("--dtypes", nargs="+", default=["kept", "float32"], help="kept, or PyTorch's name of one")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of PyTorch (default: all processors)")
    parser.add_argument("--folder", type=Path, help="where to write the files (default: a temporary folder)")
    parser.add_argument("--json", type=Path, help="where to keep the result")
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        if (free := shutil.disk_usage(folder).free) < NEEDED_DISK[options.size]:
            print(f"skipped: {free / 1e9:.1f} GB of disk are free; {NEEDED_DISK[options.size] / 1e9:.0f} are needed")
            return {}
        cases = write_cases(folder, options.size, options.dtypes)
        cache = "warm" if 2 * (cached := read_all(folder)) < available_memory_mb() else "too small for all files"
        rows = measure(cases, options.repeats, options.warm_up, options.threads)
    finally:
        shutil.rmtree(folder)
    known = {**environment(), "threads": options.threads}
    report = {"size": options.size, "files_mb": cached, "page_cache": cache, "environment": known, "cases": rows}
    print(describe_environment(known))
    print(
        f"size {options.size}, {cached:.0f} MB of files, page cache {cache}; median of {options.repeats} (low-high)\n"
    )
    print(render(rows))
    if options.json:
        write_json(options.json, report)
        print(f"\nkept in {options.json}")
    return report


if __name__ == "__main__":
    main(sys.argv[1:])

"""Time of a download with all our checks, beside the hubs' own clients.

    python -m benchmarks.download [--megabytes 1000] [--repeats 5]

A hub on the loopback interface, in a process of its own, publishes one file of random bytes. Each download is a
process of its own into an empty folder; the ways take turns. Imports are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

from benchmarks.measure import REPOSITORY, Spread, table

REPOSITORY_ID, FILE = "owner/model", "weights.bin"
WAYS = ("HuggingFace, its client", "HuggingFace, diffsynth", "ModelScope, its client", "ModelScope, diffsynth")


def fetch(way: str, folder: Path) -> dict[str, float]:
    """Download the file into a folder and return the seconds that passed, and those that the processor worked."""
    hub, _, client = way.partition(", ")
    if client == "diffsynth":
        import huggingface_hub  # noqa: F401 - imports are not counted
        import modelscope_hub

        from diffsynth import download_model

        def run() -> object:
            return download_model(REPOSITORY_ID, [FILE], source=hub, local_dir=folder)
    elif hub == "HuggingFace":
        from huggingface_hub import hf_hub_download

        def run() -> object:
            return hf_hub_download(REPOSITORY_ID, FILE, local_dir=folder)
    else:
        import modelscope_hub

        def run() -> object:
            return modelscope_hub.HubApi().download_repo(
                REPOSITORY_ID, "model", local_dir=folder, allow_patterns=[FILE]
            )

    started, worked = time.perf_counter(), _processor_seconds()
    run()
    return {"seconds": time.perf_counter() - started, "processor": _processor_seconds() - worked}


def _processor_seconds() -> float:
    usage = getrusage(RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def serve(megabytes: int, folder: Path) -> None:
    """Publish a file until the standard input is closed; the environment for clients is printed first."""
    from tests.hub.standin import Entry, Hub

    with Hub({REPOSITORY_ID: {FILE: os.urandom(megabytes * 1_000_000)}}) as hub:
        hub.hashes(Entry(FILE, hub.repositories[REPOSITORY_ID][FILE]))
        print(json.dumps(hub.env(folder)), flush=True)
        sys.stdin.read()


def measure(megabytes: int, repeats: int, folder: Path) -> dict[str, list[dict[str, float]]]:
    """Return the measurements of each way."""
    taken: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with subprocess.Popen(
        _command("--serve", str(folder), "--megabytes", str(megabytes)),
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        variables = json.loads(server.stdout.readline())
        for number in range(repeats + 1):
            for way in WAYS:
                one = _fetch_fresh(way, folder / "fetched", variables, megabytes)
                if number:  # the first round is for the page cache
                    taken[way].append(one)
        assert server.stdin is not None
        server.stdin.close()
    return taken


def _fetch_fresh(way: str, folder: Path, variables: Mapping[str, str], megabytes: int) -> dict[str, float]:
    changed = {**os.environ, **variables, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "", "DIFFSYNTH_OFFLINE": ""}
    done = subprocess.run(
        _command("--fetch", way, "--into", str(folder)), env=changed, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{way} failed:\n{done.stderr[-3000:]}")
    sizes = [path.stat().st_size for path in folder.rglob(FILE)]
    if megabytes * 1_000_000 not in sizes:
        raise RuntimeError(f"{way} left files of {sizes} bytes")
    shutil.rmtree(folder)
    for cache in ("HF_HOME", "MODELSCOPE_CACHE"):
        shutil.rmtree(variables[cache], ignore_errors=True)
    answer: dict[str, float] = json.loads(done.stdout.strip().rsplit("\n", 1)[-1])
    return answer


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.download", *arguments]


def report(taken: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Return a table: seconds, those of the processor, and both as shares of the hub's own client's."""
    rows = [["", "seconds", "x", "processor seconds", "x"]]
    for way, measured in taken.items():
        own = taken[f"{way.partition(',')[0]}, its client"]
        cells = [way]
        for name in ("seconds", "processor"):
            spread, plain = (Spread.of([each[name] for each in many]) for many in (measured, own))
            cells += [spread.text(), f"{spread.median / plain.median:.2f}"]
        rows.append(cells)
    return table(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, or one of its processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000, help="size of the file, of 10^6 bytes")
    parser.add_argument("--repeats", type=int, default=5, help="downloads of each way")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--fetch", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        serve(options.megabytes, options.serve)
    elif options.fetch:
        print(json.dumps(fetch(options.fetch, options.into)))
    else:
        with tempfile.TemporaryDirectory() as folder:
            print(report(measure(options.megabytes, options.repeats, Path(folder))))


if __name__ == "__main__":
    main()

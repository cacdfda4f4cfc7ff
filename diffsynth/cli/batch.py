"""``diffsynth batch``: draw a job of many images, or go on with it."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffsynth.cli.choice import OPTIONS, choose, with_options
from diffsynth.cli.costs import costs, duration
from diffsynth.cli.options import Debug, Verbose, check_file, check_folder, named_once
from diffsynth.cli.settings import given_settings, setting_options
from diffsynth.cli.stopping import INTERRUPTED, stopping
from diffsynth.errors import Cancelled, InvalidRequest, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffsynth.batch.expand import Entry
    from diffsynth.batch.progress import Progress

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 30.0  # where standard error is no terminal


def batch(
    job: Annotated[Path, typer.Argument(metavar="JOB", help="A .jsonl, .csv or .txt file: a row for each image.")],
    output: Annotated[str, typer.Option("--output", "-o", help="Folder, or address of an object store.")],
    sweep: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUES", help="Draw every row with each value: seed=0..9, size=512x512,768x512."),
    ] = None,
    names: Annotated[str | None, typer.Option(help="Template of file names, such as {index:06d}-{seed}.png.")] = None,
    format: Annotated[str, typer.Option(help="files, or tar for archives of up to 64 images.")] = "files",
    quality: Annotated[int | None, typer.Option(help="1 to 100, of JPEG and WebP; usually 95.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images that are drawn together.")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Draw one by one: the very bytes of single images.")] = False,
    job_seed: Annotated[int, typer.Option(help="What seeds are derived from, for rows without one.")] = 0,
    wildcards: Annotated[bool, typer.Option(help="Whether {red|green} and __animals__ are filled in.")] = True,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Draw part I of N, from 0; each has a ledger.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Draw with so many processes; else, with --ray, one per accelerator.")
    ] = None,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Draw with a running Ray; auto finds it, local starts one.")
    ] = None,
    ledger: Annotated[str | None, typer.Option(help="Name of the ledger: ledger-NAME.jsonl.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Read what is finished, and compare hashes.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try again what failed three times.")] = False,
    low_memory: Annotated[
        bool, typer.Option("--low-memory", help="Encode all texts first, then give back the text encoders' memory.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Draw one batch, and say what the job costs.")] = False,
    gpus: Annotated[int | None, typer.Option(min=1, help="With --dry-run: time on so many devices.")] = None,
    tflops: Annotated[float | None, typer.Option(help="What one of them sustains; as measured by default.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write a page about the folder when the run ends; see `diffsynth report`.")
    ] = None,
    verbose: Verbose = False,
    debug: Debug = False,
    **more: Any,
) -> int:
    """Draw every image that a job asks for, each once; the same command goes on after anything.

    Settings that are given here are those of rows that do not have them. The exit code is 1 if images failed.
    """
    given = given_settings(more)
    choice = choose({}, None, [], **{name: more[name] for name in OPTIONS})
    choice.check(tuple(given))
    from diffsynth.batch import Shard, make_plan, read_entries, run_plan
    from diffsynth.batch.names import USUAL, NameTemplate
    from diffsynth.batch.output import QUALITY
    from diffsynth.batch.run import LEDGER, all_units, make_output

    part = Shard.parse(shard) if shard else None
    several = ray is not None or workers is not None
    _check_costs(gpus, tflops, dry_run=dry_run)
    _check_processes(ledger, choice.device, several=several, low_memory=low_memory)
    if report is not None:
        _check_report(report, output, dry_run=dry_run)
    if exact and batch_size not in (None, 1):
        raise InvalidRequest("--exact and --batch-size contradict each other; give one of them.")
    sweeps = named_once("--sweep", map(_sweep, sweep or []))
    own = ledger or (part.ledger if part else LEDGER)
    how: dict[str, Any] = {"names": names or USUAL, "batch_size": 1 if exact else batch_size}
    NameTemplate(how["names"], choice.kind.request.settings())  # what it refuses is told before a network is loaded
    if "://" not in output:
        check_folder(Path(output))
    target = make_output(format, output, own, QUALITY if quality is None else quality)  # likewise
    entries = read_entries(
        job, choice.kind.request, defaults=given, sweeps=sweeps, job_seed=job_seed, wildcards=wildcards,
        check=choice.check_request,
    )  # fmt: skip
    if quality is not None and _are_png(how["names"], entries):
        logger.warning("--quality has no effect, for every image is a PNG; name them .jpg or .webp.")
    pipe: Any = None if several and not dry_run else choice.pipeline()
    if dry_run:
        _remark_idle({"--shard": shard, "--ray": ray, "--workers": workers, "--ledger": ledger, "--verify": verify,
                      "--retry-failed": retry_failed, "--low-memory": low_memory})  # fmt: skip
        plan = make_plan(pipe, entries, **how)
        target.check(plan)
        print("\n".join(costs(pipe, plan, gpus, tflops, low_memory=low_memory)))
        return 0
    line = _Line()
    common: dict[str, Any] = {"choose": part or all_units, "verify": verify, "retry_failed": retry_failed}
    try:
        with stopping() as stop:
            common |= {"on_step": stop, "on_progress": line.show}
            if several:
                from diffsynth.batch.distributed import run_distributed
                from diffsynth.batch.worker import Manner

                progress = run_distributed(
                    choice.pipeline, entries, output, address=None if ray == "local" else ray, workers=workers,
                    manner=Manner(format, target.quality), **how, **common,
                )  # fmt: skip
            else:
                plan = make_plan(pipe, entries, **how)
                progress = run_plan(
                    pipe, plan, output, ledger=own, format=format, quality=target.quality, low_memory=low_memory,
                    **common,
                )  # fmt: skip
    except (KeyboardInterrupt, Cancelled) as asked:
        line.end()
        print("stopped; the same command goes on from here.", file=sys.stderr)
        return getattr(asked, "exit_code", INTERRUPTED)
    finally:
        line.end()
    print(_summary(progress, output))
    if report is not None:
        from diffsynth.batch.report import write_report

        print(write_report(output, report))
    return 1 if progress.failures or progress.aside else 0


with_options(batch, [*OPTIONS.values(), *setting_options()])


def _check_report(path: Path, output: str, *, dry_run: bool) -> None:
    from diffsynth.batch.report import check_name

    check_name(path)
    if dry_run or "://" in output:
        why = "--dry-run draws nothing" if dry_run else "a report is written about a folder on this machine"
        raise InvalidRequest(f"--report has no effect here: {why}. Leave it out.")
    check_file(path)


def _check_costs(gpus: int | None, tflops: float | None, *, dry_run: bool) -> None:
    if (gpus or tflops) and not dry_run:
        raise InvalidRequest("--gpus and --tflops go with --dry-run.")
    if tflops is not None and not 0 < tflops < 1e6:
        raise InvalidRequest(f"--tflops is above 0, such as 150, not {tflops}.")


def _check_processes(ledger: str | None, device: str | None, *, several: bool, low_memory: bool) -> None:
    if ledger and several:
        raise InvalidRequest("--ledger names the ledger of one process; with --ray or --workers each has its own.")
    if low_memory and several:
        raise InvalidRequest(
            "--low-memory is for one process, which knows all its texts before it draws; a worker is given unit after "
            "unit. Leave out --ray and --workers; --shard I/N starts as many processes as you like."
        )
    if several and ":" in (device or ""):
        raise InvalidRequest(
            f"--device {printable(device)} is one device, and with --ray or --workers each worker has one of its own: "
            "leave the number out."
        )


def _remark_idle(options: dict[str, Any]) -> None:
    if unused := [name for name, value in options.items() if value]:
        logger.warning("--dry-run tells of the whole job; without effect: %s.", ", ".join(unused))


def _are_png(names: str, entries: Sequence[Entry]) -> bool:
    return all((entry.file or names).lower().endswith(".png") for entry in entries)


def _sweep(text: str) -> tuple[str, str]:
    name, equals, values = text.partition("=")
    if not equals:
        raise InvalidRequest(f"--sweep is NAME=VALUES, such as cfg_scale=2,4, not {printable(text)!r}.")
    return name.strip().replace("-", "_"), values


def _summary(progress: Progress, output: str) -> str:
    facts = [f"{progress.drawn} drawn", f"{progress.finished} were there"]
    if progress.failures:
        facts.append(f"{len(progress.failures)} failed")
    if progress.aside:
        facts.append(f"{progress.aside} set aside after three failures (--retry-failed)")
    return f"{printable(output, 300)}: {', '.join(facts)}"


class _Line:
    """The one line on standard error that tells how far a run is."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._width = 0
        self._last = 0.0

    def show(self, progress: Progress) -> None:
        """Tell it, on a terminal over what was told before, else now and then."""
        now = time.monotonic()
        if not self._terminal and now - self._last < SECONDS_BETWEEN_LINES:
            return
        self._last = now
        text = progress_line(progress)
        print(
            f"\r{text:<{self._width}}" if self._terminal else text, end="" if self._terminal else "\n", file=sys.stderr
        )
        sys.stderr.flush()
        self._width = len(text)

    def end(self) -> None:
        """Leave the line."""
        if self._terminal and self._width:
            print(file=sys.stderr)
        self._width = 0


def progress_line(progress: Progress) -> str:
    """Return how far a run is, in one line."""
    parts = [f"{progress.step} of {progress.images} images"]
    if progress.seconds_left is not None:
        parts += [f"{progress.rate:.3g} a second", f"{duration(progress.seconds_left)} left"]
    if progress.failures:
        parts.append(f"{len(progress.failures)} failed")
    return ", ".join(parts)

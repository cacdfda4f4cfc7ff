"""Draw a job: read, plan, see what is there, draw the rest."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from diffsynth.batch.archives import Archives
from diffsynth.batch.expand import Check, Entry, Expansion, check_entries
from diffsynth.batch.jobs import Problems, Rows, read_job
from diffsynth.batch.names import USUAL
from diffsynth.batch.output import QUALITY, Files, Output
from diffsynth.batch.plan import Plan, Unit, make_plan, versions
from diffsynth.batch.progress import OnProgress, OnStep, Progress, nobody
from diffsynth.batch.resume import look
from diffsynth.batch.runner import TEXT_BYTES, Runner, now
from diffsynth.batch.shards import Shard
from diffsynth.batch.storage import Storage, open_storage
from diffsynth.errors import InvalidRequest, printable
from diffsynth.pipelines.base import ImagePipeline
from diffsynth.pipelines.request import ImageRequest, check_range

Choose: TypeAlias = Callable[[Sequence[Unit]], Iterable[Unit]]
FORMATS = ("files", "tar")
LEDGER = "ledger.jsonl"


def read_entries(
    job: str | Path | Rows,
    request_type: type[ImageRequest],
    *,
    defaults: Mapping[str, Any] | None = None,
    sweeps: Mapping[str, Any] | None = None,
    job_seed: int = 0,
    wildcards: bool = True,
    check: Check = nobody,
) -> list[Entry]:
    """Read a job and check all of it, without any network.

    Args:
        job: a .jsonl, .csv or .txt file; or requests and mappings.
        request_type: of the pipeline that draws.
        defaults: settings of rows that do not have them.
        sweeps: name → values; every combination is drawn, for every row.
        job_seed: what seeds are derived from, for rows without one.
        wildcards: whether ``{red|green}`` and ``__animals__`` in prompts are filled in.
        check: raises InvalidRequest for what a request does not know to be wrong, such as a sampler that nobody has.

    Raises:
        InvalidRequest: it cannot be drawn; all that is wrong is named, with file and line.
        OSError: the file cannot be read.
    """
    check_range("job_seed", job_seed, 0, 2**63 - 1, whole=True)
    problems = Problems()
    expansion = Expansion(
        read_job(job), request_type, defaults or {}, sweeps or {}, seed=job_seed, wildcards=wildcards, problems=problems
    )
    entries = expansion.entries()
    check_entries(entries, request_type, problems, check)
    problems.refuse("the job cannot be drawn")
    return entries


def all_units(units: Sequence[Unit]) -> Sequence[Unit]:
    """Choose every unit."""
    return units


def run_plan(
    pipe: ImagePipeline[Any],
    plan: Plan,
    folder: str | Path | Storage,
    *,
    choose: Choose = all_units,
    ledger: str = LEDGER,
    format: str = "files",
    quality: int = QUALITY,
    verify: bool = False,
    retry_failed: bool = False,
    text_bytes: int = TEXT_BYTES,
    low_memory: bool = False,
    on_step: OnStep = nobody,
    on_progress: OnProgress = nobody,
) -> Progress:
    """Draw a plan, or go on with it. Stopped or killed at any moment, the next call draws what is missing.

    Args:
        pipe: what draws; the one that the plan was made for.
        plan: what to draw.
        folder: gets images and ledgers; a folder, or the address of an object store such as ``s3://bucket/run``.
        choose: units → those that this process draws.
        ledger: name of this process's own ledger, ``ledger.jsonl`` or ``ledger-NAME.jsonl``.
        format: "files", or "tar" for an archive per unit.
        quality: 1 to 100, of JPEG and WebP.
        verify: read every finished file and compare its hash.
        retry_failed: draw images again that have failed three times.
        text_bytes: of text features that are computed ahead; with ``low_memory``, that are kept in memory: if there are
            more, a temporary file has them.
        low_memory: encode all texts first, then give the memory of the text encoders back and draw. The images are
            the same. The pipeline reads no texts afterwards; see ``ImagePipeline.release_text_encoders``.
        on_step: called at every step and between images; raise Cancelled in it to stop.
        on_progress: called at the start and when an image is settled.

    Returns:
        What was drawn and what failed.

    Raises:
        InvalidRequest: another process uses the ledger, other files have names that images are to have, or the
            pipeline has given its text encoders back.
        Paused: the disk is full or broken, or image after image fails; what is finished is kept.
        Cancelled: ``on_step`` has asked to stop.
        CheckpointError: a file of weights was changed.
    """
    output = make_output(format, folder, ledger, quality)
    output.check(plan)
    with output.storage.ledger(ledger) as book:
        chosen = chosen_units(choose, plan, format)
        state = look(chosen, output.storage.history(), output, verify=verify, retry_failed=retry_failed)
        state.remark()
        skip = state.finished | state.aside
        progress = Progress(sum(len(unit.items) for unit in chosen) - len(skip), len(state.finished), len(state.aside))
        if progress.images:
            pipe.check_reads_texts()
        runner = Runner(pipe, output, book, progress, skip, text_bytes, on_step, on_progress, low_memory)
        on_progress(progress)
        if progress.images or state.found:
            facts = {"images": progress.images, "versions": versions(), "device": str(pipe.device)}
            runner.begin(state.found, {"time": now(), "host": platform.node(), "pid": os.getpid(), **facts})
            runner.run(chosen)
    return progress


def chosen_units(choose: Choose, plan: Plan, format: str) -> list[Unit]:
    """Return the units that a process draws; an archive is that of a whole unit."""
    if format == "tar" and isinstance(choose, Shard):
        choose = replace(choose, whole=True)
    return list(choose(plan.units))


def make_output(format: str, folder: str | Path | Storage, ledger: str, quality: int = QUALITY) -> Output:
    """Return what writes images for the process of a ledger.

    Raises:
        InvalidRequest: there is no such format, the quality is none, or the ledger's name or the folder's.
    """
    check_range("quality", quality, 1, 100, whole=True)
    if format not in FORMATS:
        raise InvalidRequest(f"format is {printable(format)!r}; known are: {', '.join(FORMATS)}.")
    if not isinstance(ledger, str) or not re.fullmatch(r"ledger(-[A-Za-z0-9_.-]+)?\.jsonl", ledger):
        raise InvalidRequest(f"a ledger is called ledger.jsonl or ledger-NAME.jsonl, not {printable(ledger)!r}.")
    kind = Files if format == "files" else Archives
    return kind(open_storage(folder, ledger.removesuffix(".jsonl")), quality)


def run_batch(
    pipe: ImagePipeline[Any],
    job: str | Path | Rows,
    folder: str | Path | Storage,
    *,
    defaults: Mapping[str, Any] | None = None,
    sweeps: Mapping[str, Any] | None = None,
    names: str = USUAL,
    batch_size: int | None = None,
    exact: bool = False,
    job_seed: int = 0,
    wildcards: bool = True,
    **run: Any,
) -> Progress:
    """Draw every image that a job asks for, each once; call it again to go on where it stopped.

    Args:
        pipe: what draws.
        job: a .jsonl, .csv or .txt file; or requests, or mappings with the names of ``pipe(...)``.
        folder: gets images and ``ledger.jsonl``; see ``run_plan``.
        defaults: settings of rows that do not have them.
        sweeps: name → values; every combination is drawn, for every row.
        names: template of file names, such as ``{index:06d}-{seed}.png``; the ending says the format.
        batch_size: images that are drawn together; by default as many as 2 megapixels have room for, at most 8.
        exact: draw each image alone, so that its bytes are those of ``pipe(...)``; together, pixels may differ by 1
            of 255.
        job_seed: what seeds are derived from, for rows without one.
        wildcards: whether ``{red|green}`` and ``__animals__`` in prompts are filled in.
        **run: further arguments of ``run_plan``.

    Returns:
        What was drawn and what failed.

    Raises:
        InvalidRequest: the job cannot be drawn; all that is wrong is named, before anything is drawn.
        Paused, Cancelled, CheckpointError: see ``run_plan``.
    """
    if exact and batch_size not in (None, 1):
        raise InvalidRequest(f"exact draws images one by one, but batch_size is {batch_size}; give one of them.")
    entries = read_entries(
        job, pipe.request_type, defaults=defaults, sweeps=sweeps, job_seed=job_seed, wildcards=wildcards
    )
    plan = make_plan(pipe, entries, names=names, batch_size=1 if exact else batch_size)
    return run_plan(pipe, plan, folder, **run)

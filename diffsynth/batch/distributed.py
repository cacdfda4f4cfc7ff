"""Many workers on one job: a driver that hands out units and holds nothing, and the promises that this rests on.

The same bytes for any number of workers: the plan alone decides which images are drawn together, and a worker draws a
unit as a single process does. Exactly one file per image: a worker publishes under the image's name, which a storage
gives away once, and deletes what it made if another was first. Nothing is lost: a worker notes each image in a ledger
of its own after its file is safe, so the ledgers together are the manifest of the job, and going on means "units minus
ledgers", for one process, shards and workers alike, and in any mixture. In a folder a ledger grows line by line; in an
object store it is a file per unit.

A unit whose worker died is given to another. Three times without an image more, and the batch at which it stands is
drawn image by image; an image that then ends three workers is noted as failed, and the others go on. At the end of a
run, a worker without work draws a unit too that another draws much longer than is usual; whoever ends first settles it.

How many threads torch has may change the last digits of what a CPU computes; workers have an equal share of the
processors each.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from diffsynth.batch.cluster import cluster
from diffsynth.batch.driver import Driver
from diffsynth.batch.expand import Entry
from diffsynth.batch.names import USUAL
from diffsynth.batch.progress import OnProgress, OnStep, Progress, nobody
from diffsynth.batch.run import Choose, all_units, chosen_units, make_output
from diffsynth.batch.storage import Storage
from diffsynth.batch.worker import Manner
from diffsynth.errors import InvalidRequest
from diffsynth.pipelines.base import ImagePipeline


def run_distributed(
    make_pipe: Callable[[], ImagePipeline[Any]],
    entries: Sequence[Entry],
    place: str | Path | Storage,
    *,
    address: str | None = None,
    workers: int | None = None,
    names: str = USUAL,
    batch_size: int | None = None,
    choose: Choose = all_units,
    manner: Manner = Manner(),  # noqa: B008 - frozen
    verify: bool = False,
    retry_failed: bool = False,
    on_step: OnStep = nobody,
    on_progress: OnProgress = nobody,
) -> Progress:
    """Draw a job with several worker processes, or go on with it; see ``run_plan``, which draws the same files.

    Args:
        make_pipe: loads the pipeline, in every worker; it must be a function that can be pickled.
        entries: of the job; see ``read_entries``.
        place: gets images and ledgers; every worker must reach it under this name.
        address: of a running Ray; None starts one on this machine.
        workers: how many; None for one per accelerator, or without any, one per machine.
        names: template of file names.
        batch_size: images that are drawn together; None for as many as 2 megapixels have room for, at most 8.
        choose: units → those that this run draws.
        manner: how images are written.
        verify: read every finished file and compare its hash.
        retry_failed: draw images again that have failed three times.
        on_step: called twice a second; raise Cancelled in it to stop.
        on_progress: called at the start and when images are settled.

    Returns:
        What was drawn and what failed.

    Raises:
        InvalidRequest: the job cannot be drawn, Ray is missing, or workers do not fit.
        Paused: the disk is full or broken, or workers die one after another; what is finished is kept.
        Cancelled: ``on_step`` has asked to stop.
        CheckpointError: a file of weights cannot be used.
    """
    output = make_output(manner.format, place, "ledger-driver.jsonl", manner.quality)  # refuses before anything starts
    if isinstance(place, Path) or (isinstance(place, str) and "://" not in place):
        place = Path(place).absolute()
    if str(place).startswith("memory://"):
        raise InvalidRequest("memory:// is within one process, where others cannot write: give a folder or a store.")
    with cluster(address, workers) as machines:
        driver = Driver(machines, partial(called_in, Path.cwd(), make_pipe), place, manner, on_step, on_progress)
        try:
            plan = driver.plan(entries, names, batch_size)
            output.check(plan)
            return driver.run(chosen_units(choose, plan, manner.format), verify=verify, retry_failed=retry_failed)
        finally:
            driver.stop()


def called_in(folder: Path, make_pipe: Callable[[], ImagePipeline[Any]]) -> ImagePipeline[Any]:
    """Load a pipeline in the driver's working folder, if this machine has it, so that paths mean the same."""
    if folder.is_dir():
        os.chdir(folder)
    return make_pipe()

"""The training loop, written once for every job."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffsynth.errors import Cancelled, NonFiniteResult
from diffsynth.training.config import TrainingConfig
from diffsynth.training.devices import Workers
from diffsynth.training.job import Job
from diffsynth.training.optimizer import MovingAverage, clip, make_optimizer, named_weights, rate_factor, set_rate
from diffsynth.training.pictures import Batch
from diffsynth.training.precision import attending_in, computing_in
from diffsynth.training.randomness import generator_for
from diffsynth.training.record import Record
from diffsynth.training.state import (
    STATE,
    Learning,
    checkpoints,
    keep_newest,
    read_state,
    write_checkpoint,
    write_state,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepReport:
    """What one step was like.

    Args:
        step: steps done, from 1.
        steps: of the whole run.
        values: the loss and its parts, the gradient's length, the learning rate, seconds.
    """

    step: int
    steps: int
    values: dict[str, float]


OnStep = Callable[[StepReport], None]


def no_report(report: StepReport) -> None:
    """Do nothing with a report."""


class Loop:
    """Trains the networks of a job.

    Args:
        job: what is trained, already on its device.
        config: how.
        folder: of the run.
        workers: the processes that train together.
        recipe: what is written into the header of saved networks, completed with the step.
    """

    def __init__(
        self,
        job: Job,
        config: TrainingConfig,
        folder: Path,
        workers: Workers,
        recipe: Callable[[int], dict[str, str]],
    ) -> None:
        self.job, self.config, self.folder, self.workers, self.recipe = job, config, folder, workers, recipe
        weights = named_weights(job.networks)
        self.learning = Learning(
            weights,
            make_optimizer(config.optimizer, job.networks, job.rates),
            MovingAverage(weights, config.optimizer.ema) if config.optimizer.ema else None,
            torch.amp.GradScaler(workers.device.type, enabled=config.precision == "float16"),
        )
        self.step = 0

    def resume(self) -> None:
        """Go on from the newest checkpoint, if there is one."""
        if found := checkpoints(self.folder):
            self.step = read_state(found[-1] / STATE, self.learning)
            logger.info("going on after step %d of %s", self.step, found[-1])
            if self.workers.writes:  # a run that was killed just after its last checkpoint has not done it
                keep_newest(self.folder, self.config.record.keep)

    def run(self, until: int, record: Record, on_step: OnStep = no_report) -> None:
        """Train until that many steps are done.

        Args:
            until: steps in all, those done before included.
            record: where it is written down.
            on_step: called after each step; may raise Cancelled, and then a checkpoint is written first.

        Raises:
            NonFiniteResult: the loss is no number any more.
            Cancelled: ``on_step`` has asked to stop.
        """
        workers = self.workers
        each = self.config.schedule.accumulate * workers.count  # batches per step, of all processes
        batches = self.job.batches(range(self.step * each + workers.rank, until * each, workers.count))
        while self.step < until:
            values = self._step(batches)
            asked = self._ask(on_step, values)
            if workers.writes:
                self._write(record, values, ended=self.step == until, stopped=asked is not None)
            if asked is not None:
                raise asked

    def _ask(self, on_step: OnStep, values: dict[str, float]) -> Cancelled | None:
        """Report a step; return an error if this process, or another one, was asked to stop."""
        asked = None
        try:
            on_step(StepReport(self.step, self.config.schedule.steps, values))
        except Cancelled as error:
            asked = error
        if self.workers.any(asked is not None) and asked is None:
            asked = Cancelled(f"stopped after step {self.step}")
        return asked

    def _write(self, record: Record, values: dict[str, float], *, ended: bool, stopped: bool) -> None:
        """Write what is due after a step; the checkpoint comes last, so that all before it is whole."""
        config, last = self.config.record, ended or stopped
        record.add(self.step, values)
        if last or self.step % config.plot_every == 0:
            record.plot()
        if config.sample_every and (ended or self.step % config.sample_every == 0):  # a stop may be urgent
            with self.averaged():
                record.samples(self.step, self.job.samples(config.sample_count, self.config.seed))
        if last or self.step % config.checkpoint_every == 0:
            self.save()

    def save(self) -> Path:
        """Write a checkpoint: the networks, as they draw, and the state to go on from."""

        def write(folder: Path) -> None:
            with self.averaged():
                self.job.save(folder, self.dtype, self.recipe(self.step), complete=False)
            write_state(folder / STATE, self.learning, self.step)

        return write_checkpoint(self.folder, self.step, write, self.config.record.keep)

    @property
    def dtype(self) -> torch.dtype:
        """Of saved networks."""
        found: torch.dtype = getattr(torch, self.config.record.dtype)
        return found

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Give the networks the moving average of their weights for a while."""
        average = self.learning.average
        if average is None:
            yield
            return
        average.swap()
        try:
            yield
        finally:
            average.swap()

    def _step(self, batches: Iterator[Batch]) -> dict[str, float]:
        started = time.perf_counter()
        config, learning = self.config, self.learning
        rate = config.optimizer.learning_rate * rate_factor(config.schedule, self.step)
        set_rate(learning.optimizer, rate)
        totals: dict[str, Tensor] = {}
        for micro in range(config.schedule.accumulate):
            number = micro * self.workers.count + self.workers.rank
            generator = generator_for(config.seed, "step", self.step, number)
            batch = next(batches)
            with attending_in(config.precision, self.workers.device):
                with computing_in(config.precision, self.workers.device):
                    losses = self.job.loss(batch, generator)
                scaled = learning.scaler.scale(losses["loss"] / config.schedule.accumulate)
                torch.autograd.backward(scaled)
            for name, value in losses.items():
                share = value.detach() / config.schedule.accumulate
                totals[name] = totals[name] + share if name in totals else share
        self.workers.average_gradients(learning.weights.values())
        learning.scaler.unscale_(learning.optimizer)
        length = clip(learning.weights.values(), config.optimizer.clip)
        means = self.workers.average(torch.stack([value.float() for value in totals.values()])).tolist()
        values = dict(zip(totals, means, strict=True))
        overflows = learning.scaler.is_enabled()  # then such a step is left out, and the next one scaled less
        if not math.isfinite(values["loss"]) or not (overflows or torch.isfinite(length)):
            raise NonFiniteResult(
                f"training, step {self.step + 1}",
                "Nothing of this step was kept. Lower the learning rate, lengthen the warm-up, or clip more.",
            )
        learning.scaler.step(learning.optimizer)
        learning.scaler.update()
        learning.optimizer.zero_grad(set_to_none=True)
        if learning.average is not None:
            learning.average.update(self.step)
        self.step += 1
        return {**values, "gradient": float(length), "rate": rate, "seconds": time.perf_counter() - started}

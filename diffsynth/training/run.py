"""Train: a config in, a folder with checkpoints and a record out."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import torch

from diffsynth.errors import InvalidRequest
from diffsynth.models import autoencoder_kl
from diffsynth.training.autoencoder import AutoencoderTraining
from diffsynth.training.changes import refuse
from diffsynth.training.config import TrainingConfig
from diffsynth.training.control import ControlNetwork
from diffsynth.training.dataset import Dataset, open_dataset
from diffsynth.training.denoiser import DenoiserTraining
from diffsynth.training.devices import Workers, find_workers
from diffsynth.training.ensemble import Ensemble, Student
from diffsynth.training.hunyuan_dit import HunyuanDiTEnsemble, job_problems
from diffsynth.training.job import Job
from diffsynth.training.kinds import DenoisingJob
from diffsynth.training.loop import Loop, OnStep, no_report
from diffsynth.training.low_rank import LowRank
from diffsynth.training.networks import file_problem, network_problem
from diffsynth.training.pictures import Pictures
from diffsynth.training.precision import check_precision
from diffsynth.training.record import Record, versions
from diffsynth.training.state import checkpoints, sole_user, write_folder
from diffsynth.training.unet import UNetEnsemble
from diffsynth.training.whole import WholeNetworks

logger = logging.getLogger(__name__)

FINAL, CACHE = "final", "cache"


def train(
    config: TrainingConfig,
    dataset: Dataset | None = None,
    *,
    folder: str | Path | None = None,
    steps: int | None = None,
    resume: bool = True,
    on_step: OnStep = no_report,
) -> Path:
    """Train networks and return the folder with the finished ones.

    A run that was stopped, or killed, goes on from its newest checkpoint and ends with the same weights, bit for bit
    on a CPU with the same number of threads, as one that was not.

    Args:
        config: what to do.
        dataset: the data, instead of what ``config.data.source`` names.
        folder: of the run, instead of ``config.record.folder``.
        steps: stop when so many are done in all; the schedule stays as it is.
        resume: whether to go on with a run that is in the folder.
        on_step: called after each step; raise Cancelled in it to write a checkpoint and stop.

    Raises:
        InvalidRequest: settings or data cannot be used, or the folder holds a run that is not to be resumed.
        CheckpointError: a file cannot be used.
        NonFiniteResult: the loss is no number any more.
        Cancelled: ``on_step`` has asked to stop.
    """
    run = _run_folder(config, folder)
    if not resume and checkpoints(run):
        raise InvalidRequest(f"{run} holds a run already. Resume it, remove it, or name another folder.")
    workers = find_workers(config.device)
    check_precision(config.precision, workers.device)
    with sole_user(run, workers):
        job = make_job(config, open_dataset(config.data) if dataset is None else dataset, workers.device, run)
        return _train(job, config, run, workers, config.schedule.steps if steps is None else steps, on_step)


def _train(job: Job, config: TrainingConfig, run: Path, workers: Workers, until: int, on_step: OnStep) -> Path:
    def recipe(step: int) -> dict[str, str]:
        content = {"step": step, "config": config.as_dict(), "versions": versions(), **job.describe()}
        return {"training": json.dumps(content, ensure_ascii=False)}

    record = Record(run)
    facts = {"config": config.as_dict(), "device": str(workers.device), "processes": workers.count, **job.describe()}
    if checkpoints(run):
        refuse(record.changed(facts), str(run))
    loop = Loop(job, config, run, workers, recipe)
    loop.resume()
    workers.wait()
    if workers.writes:
        record.begin(loop.step, facts)
    loop.run(until, record, on_step)
    if workers.writes:
        with loop.averaged():
            write_folder(run / FINAL, lambda place: job.save(place, loop.dtype, recipe(loop.step), complete=True))
    workers.wait()
    return run / FINAL


def make_job(config: TrainingConfig, dataset: Dataset, device: torch.device, run: Path) -> Job:
    """Prepare the data and the networks of a run.

    Raises:
        InvalidRequest: they cannot be used.
        CheckpointError: a file cannot be used.
    """
    check_networks(config)  # before the data, which takes longer
    if config.autoencoder is not None:
        pictures = Pictures(dataset, config.data, config.seed, captions=False)
        return AutoencoderTraining(config, config.autoencoder, pictures, device)
    pictures = Pictures(dataset, config.data, config.seed, captions=True)
    return denoiser_training(config, pictures, device, run / CACHE)


def denoiser_training(
    config: TrainingConfig, pictures: Pictures, device: torch.device, cache: Path | None = None
) -> DenoiserTraining:
    """Bring together the networks of a denoiser, and what of them learns.

    Args:
        config: of the run.
        pictures: prepared data.
        device: where to train.
        cache: folder where latents are kept from one start to the next, or None.

    Raises:
        InvalidRequest: the networks cannot be used, or do not fit each other.
        CheckpointError: a file cannot be used.
    """
    job: DenoisingJob
    ensemble: Ensemble
    student: Student
    if config.unet is not None:
        job, ensemble = config.unet, UNetEnsemble(config.unet)
    else:
        assert config.denoiser is not None
        job, ensemble = config.denoiser, HunyuanDiTEnsemble(config.denoiser, config.seed)
    if config.lora is not None:
        student = LowRank(ensemble, config.lora, config.seed)
    else:
        assert isinstance(ensemble, HunyuanDiTEnsemble)
        student = WholeNetworks(ensemble) if config.control is None else ControlNetwork(ensemble, config.control)
    return DenoiserTraining(config, job, ensemble, student, pictures, device, cache)


def check_networks(config: TrainingConfig) -> None:
    """Make sure that the files of networks and vocabularies are there, and that sizes are some.

    Raises:
        InvalidRequest: they are not; the message names all that is wrong.
    """
    if config.denoiser is not None:
        problems = job_problems(config.denoiser)
    elif config.unet is not None:
        problems = [f"unet.files: {problem}" for problem in map(file_problem, config.unet.files) if problem]
    else:
        assert config.autoencoder is not None
        problem = network_problem(autoencoder_kl.FAMILY, config.autoencoder.network)
        problems = [f"autoencoder.network: {problem}"] if problem else []
    if problems:
        raise InvalidRequest("these networks cannot be used:\n" + "\n".join(f"  {each}" for each in problems))


def _run_folder(config: TrainingConfig, folder: str | Path | None) -> Path:
    if folder is not None:
        return Path(folder)
    if not config.record.folder:
        raise InvalidRequest("give the folder of the run: record.folder in the config, or --folder.")
    return Path(config.record.folder)

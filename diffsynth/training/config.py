"""What a training run depends on: frozen settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from diffsynth.errors import InvalidRequest
from diffsynth.training.kinds import AutoencoderJob, ControlConfig, DenoiserJob, LoRAConfig, UNetJob
from diffsynth.training.settings import checked_values, number, plain


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where pictures come from and how they are prepared.

    Args:
        source: a folder with metadata.jsonl or metadata.csv, or ``module:function`` that returns a `Dataset`.
        arguments: passed to the function.
        languages: caption columns to use, such as "text" and "text_zh"; empty takes every column named so.
        size: pixels of a square picture's side, a multiple of 16; other shapes have about the same area.
        aspect_limit: longest side over shortest; 1 means squares only.
        fit: "crop" covers the shape and cuts what sticks out, "stretch" changes the picture's proportions.
        crop: where to cut: in the middle, or anywhere.
        flip: probability that a picture is mirrored; only for pictures whose captions do not say left or right.
        enlarge: whether pictures smaller than their shape are enlarged, else they are reported as too small.
        variants: how often each picture is prepared with other random numbers; 0 prepares it anew in each epoch,
            and then neither pictures nor latents are kept.
        held_out: the last examples, this many, are never learnt from, but drawn on sample sheets and measured.
        memory: megabytes that prepared pictures may take; if they need more, they are read as they are used.
        workers: threads that prepare pictures ahead, where they are not kept.
    """

    source: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    languages: tuple[str, ...] = ()
    size: int = number(low=16, multiple=16)
    aspect_limit: float = number(1.0, low=1)
    fit: Literal["crop", "stretch"] = "crop"
    crop: Literal["center", "random"] = "center"
    flip: float = number(0.0, low=0, high=1)
    enlarge: bool = False
    variants: int = number(1, low=0)
    held_out: int = number(0, low=0)
    memory: int = number(2000, low=0)
    workers: int = number(1, low=1)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW (arXiv 1711.05101), clipping, and the moving average of the weights.

    Args:
        learning_rate: the highest one.
        betas: decay of the first and second moments.
        eps: added to the root of the second moment.
        weight_decay: of matrices and kernels; norms, biases and embeddings have none.
        clip: longest gradient, over all weights together; 0 does not clip.
        ema: decay of the moving average that is saved and drawn with; 0 saves the weights themselves. Early steps
            decay faster: at step k by at most (1 + k) / (10 + k).
    """

    learning_rate: float = number(1e-4, low=0)
    betas: tuple[float, float] = number((0.9, 0.99), low=0, high=0.99999)
    eps: float = number(1e-8, low=0)
    weight_decay: float = number(0.01, low=0)
    clip: float = number(1.0, low=0)
    ema: float = number(0.999, low=0, high=1)


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How long and how fast.

    Args:
        steps: optimisation steps in all.
        batch_size: pictures that go through the network together.
        accumulate: batches per step; on several devices each has that many.
        warmup: steps in which the learning rate rises from zero.
        decay: what it does then: stay, fall along a half cosine, or be multiplied at given steps.
        final_rate: end of the cosine, as a share of the highest rate.
        milestones: steps at which the rate is multiplied by ``factor``, for "step".
        factor: what it is multiplied by.
    """

    steps: int = number(low=1)
    batch_size: int = number(8, low=1)
    accumulate: int = number(1, low=1)
    warmup: int = number(0, low=0)
    decay: Literal["constant", "cosine", "step"] = "cosine"
    final_rate: float = number(0.0, low=0, high=1)
    milestones: tuple[int, ...] = number((), low=1)
    factor: float = number(0.1, low=0, high=1)


@dataclass(frozen=True, kw_only=True)
class RecordConfig:
    """What is written while training.

    Args:
        folder: of the run; made if need be. Relative to the folder the command is started in.
        checkpoint_every: steps from one checkpoint to the next.
        keep: checkpoints to keep; older ones are removed.
        sample_every: steps from one sample sheet to the next; 0 draws none.
        sample_count: pictures on a sheet.
        plot_every: steps from one loss plot to the next.
        dtype: of the networks in checkpoints; the state that training resumes from is always complete.
    """

    folder: str = ""
    checkpoint_every: int = number(500, low=1)
    keep: int = number(2, low=1)
    sample_every: int = number(500, low=0)
    sample_count: int = number(8, low=1)
    plot_every: int = number(100, low=1)
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Everything a training run depends on.

    Args:
        seed: of new weights, the order of the data, crops, noise and timesteps.
        device: where to train, such as "cuda"; empty takes the best there is.
        precision: of the computation; weights are kept in float32.
        checkpoint_activations: compute the insides of blocks again on the way back, which saves memory.
        data: see `DataConfig`.
        autoencoder: the job, if it is this one; exactly one of the three is given.
        denoiser: the job, if it is this one: a HunyuanDiT.
        unet: the job, if it is this one: Stable Diffusion or SDXL.
        lora: has a LoRA of the denoiser learn in its place.
        control: has a control network beside the denoiser learn in its place.
        optimizer: see `OptimizerConfig`.
        schedule: see `ScheduleConfig`.
        record: see `RecordConfig`.

    Paths and lists are taken too; they become texts and tuples.

    Raises:
        InvalidRequest: values cannot be used or contradict each other; all of them are named at once.
    """

    data: DataConfig
    schedule: ScheduleConfig
    autoencoder: AutoencoderJob | None = None
    denoiser: DenoiserJob | None = None
    unet: UNetJob | None = None
    lora: LoRAConfig | None = None
    control: ControlConfig | None = None
    optimizer: OptimizerConfig = OptimizerConfig()
    record: RecordConfig = RecordConfig()
    seed: int = 0
    device: str = ""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    checkpoint_activations: bool = False

    def __post_init__(self) -> None:
        problems: list[str] = []
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        for name, value in checked_values(TrainingConfig, given, "", problems).items():
            object.__setattr__(self, name, value)
        if problems := problems or _contradictions(self):
            raise InvalidRequest("these settings cannot be used:\n" + "\n".join(f"  {each}" for each in problems))

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, as they go into JSON."""
        values: dict[str, Any] = plain(self)
        return values


def _contradictions(config: TrainingConfig) -> list[str]:
    """Return what is wrong with settings that must agree with each other."""
    problems = []
    if [config.autoencoder, config.denoiser, config.unet].count(None) != 2:
        problems.append("give either [autoencoder], [denoiser] or [unet], which says what is trained")
    if config.unet is not None and config.lora is None:
        problems.append("unet: is the base of a LoRA; give [lora] too")
    if config.lora is not None and config.control is not None:
        problems.append("give either [lora] or [control]")
    for name in ("lora", "control"):
        if getattr(config, name) is not None:
            problems += _problems_of_base(config, name)
    if config.autoencoder is not None and config.autoencoder.crop > config.data.size:
        problems.append(f"autoencoder.crop: {config.autoencoder.crop} is larger than data.size {config.data.size}")
    if config.denoiser is not None and config.denoiser.beta_start > config.denoiser.beta_end:
        problems.append(
            f"denoiser.beta_start: {config.denoiser.beta_start} is above beta_end {config.denoiser.beta_end}"
        )
    if (config.schedule.decay == "step") != bool(config.schedule.milestones):
        problems.append('schedule.milestones: belong to schedule.decay = "step", and it needs them')
    return problems


def _problems_of_base(config: TrainingConfig, name: str) -> list[str]:
    """Return why what is trained cannot be the base of something smaller, which stays as it is."""
    problems, base = [], config.denoiser
    if config.autoencoder is not None:
        problems.append(f"{name}: needs a denoiser; give [denoiser] in the place of [autoencoder]")
    if name == "control" and config.unet is not None:
        problems.append("control: is trained for HunyuanDiT only; give [denoiser] in the place of [unet]")
    if base is not None and base.train_text_encoders:
        problems.append(f"denoiser.train_text_encoders: must be false with [{name}], whose base stays as it is")
    if base is not None and not isinstance(base.network, str):
        problems.append(f"denoiser.network: must be the file of a trained network, the base of [{name}]")
    return problems

"""What can be trained: the settings of each kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from diffsynth.training.settings import number


@dataclass(frozen=True, kw_only=True)
class AutoencoderJob:
    """Train the autoencoder between pixels and latents.

    Args:
        network: sizes of a new network, or the file of one to go on from.
        learns: "all", or the "decoder" alone: latents stay what they are, so denoisers trained on them stay good.
        crop: side in pixels of a square cut anywhere out of each picture; 0 takes whole pictures.
        l1: weight of the absolute error.
        l2: weight of the squared error.
        gradient: weight of the absolute error of differences between neighbouring pixels, at three sizes.
        perceptual: weight of the squared error of the encoder's own features, compared without gradient to them.
        kl: weight of the distance from a normal distribution, per latent value.
        initial_log_variance: of a new network's posterior; a low one lets it learn to draw before it learns to blur.
        latent_scale: saved networks are brought to latents that, times this, have zero mean and unit variance; not so
            where the decoder alone learns.
    """

    network: Mapping[str, Any] | str
    learns: Literal["all", "decoder"] = "all"
    crop: int = number(0, low=0)
    l1: float = number(1.0, low=0)
    l2: float = number(1.0, low=0)
    gradient: float = number(0.5, low=0)
    perceptual: float = number(0.0, low=0)
    kl: float = number(1e-6, low=0)
    initial_log_variance: float = number(-4.0, low=-30, high=20)
    latent_scale: float = number(0.13025, low=1e-6)


@dataclass(frozen=True, kw_only=True)
class DenoisingJob:
    """What the training of a denoiser depends on, whatever its family.

    Args:
        timesteps: how often each timestep is trained: all alike, or those of the middle more often.
        min_snr: limit of the signal-to-noise ratio in the weight of the loss (arXiv 2303.09556); 0 is no weighting.
        dropout: probability that a caption is left out, which guidance needs.
        cache: whether latents and, of frozen encoders, text features are computed once and kept.
        sample_prompts: what to draw on the sample sheets; empty takes the first captions of the data.
        sample_steps: of each drawing.
        sample_cfg_scale: guidance of each drawing.
    """

    timesteps: Literal["uniform", "logit_normal"] = "uniform"
    min_snr: float = number(0.0, low=0)
    dropout: float = number(0.1, low=0, high=1)
    cache: bool = True
    sample_prompts: tuple[str, ...] = ()
    sample_steps: int = number(20, low=1)
    sample_cfg_scale: float = number(5.0, low=0)


@dataclass(frozen=True, kw_only=True)
class DenoiserJob(DenoisingJob):
    """Train a HunyuanDiT, with its text encoders or over frozen ones; or take it as the base of something smaller.

    Args:
        autoencoder: the file of the autoencoder, which stays as it is.
        network: sizes of a new denoiser, or the file of one to go on from.
        clip: sizes of a new bilingual CLIP text encoder, or its file.
        t5: sizes of a new mT5 encoder, or its file.
        clip_tokenizer: vocab.txt or its folder; empty looks near the text encoder's file.
        t5_tokenizer: spiece.model or its folder; empty looks near the text encoder's file.
        train_text_encoders: whether the text encoders learn too; new ones must.
        text_rate: their learning rate, as a share of the denoiser's.
        prediction: what the network says: the velocity, the noise, or the flow from picture to noise.
        beta_start: first beta of the noise schedule, for velocity and noise.
        beta_end: last beta; the pipeline assumes 0.018 for networks without size condition, else 0.03.
        latent_scale: latents of the autoencoder times this have unit variance.

    The rest is that of `DenoisingJob`.
    """

    autoencoder: str
    network: Mapping[str, Any] | str
    clip: Mapping[str, Any] | str
    t5: Mapping[str, Any] | str
    clip_tokenizer: str = ""
    t5_tokenizer: str = ""
    train_text_encoders: bool = True
    text_rate: float = number(1.0, low=0)
    prediction: Literal["velocity", "epsilon", "flow"] = "velocity"
    beta_start: float = number(0.00085, low=1e-6, high=0.999)
    beta_end: float = number(0.018, low=1e-6, high=0.999)
    latent_scale: float = number(0.13025, low=1e-6)


@dataclass(frozen=True, kw_only=True)
class UNetJob(DenoisingJob):
    """Take Stable Diffusion 1.5 or SDXL as the base of a LoRA; which of them, the denoiser tells.

    Schedule and scale of the latents are those that its pipeline draws with.

    Args:
        files: a whole file, a Diffusers folder, or several files with one network each, as the manager loads them.
        clip_tokenizer: vocab.json or its folder; empty looks near the text encoder's file.
        prediction: what the network says; empty takes what the files say, else the noise.

    The rest is that of `DenoisingJob`.
    """

    files: tuple[str, ...]
    clip_tokenizer: str = ""
    prediction: Literal["", "epsilon", "velocity"] = ""


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Train a LoRA of the denoiser (arXiv 2106.09685): its networks stay as they are.

    Args:
        rank: of the change of each layer.
        alpha: the change is multiplied by this over the rank; 0 takes the rank, so that it is added as it is.
        layers: which layers it changes, by the ends of their names in published files, such as "Wqkv" or
            "blocks.0.attn1.Wqkv"; empty takes the projections of all attentions.
    """

    rank: int = number(16, low=1)
    alpha: float = number(0.0, low=0)
    layers: tuple[str, ...] = ()

    @property
    def scale(self) -> float:
        """Alpha over rank."""
        return self.alpha / self.rank if self.alpha else 1.0


@dataclass(frozen=True, kw_only=True)
class ControlConfig:
    """Train a control network of a HunyuanDiT (arXiv 2302.05543): the denoiser stays as it is.

    Args:
        network: the file of one to go on from; empty begins with the denoiser's first blocks and changes nothing yet.
        hint: what it is shown of each picture: its edges, as the pipeline's own detector finds them.
    """

    network: str = ""
    hint: Literal["canny"] = "canny"

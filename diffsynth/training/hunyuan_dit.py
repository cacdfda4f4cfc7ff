"""HunyuanDiT in training: its networks brought together, and what the denoiser is told."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffsynth.core.checkpoint import open_checkpoint
from diffsynth.errors import InvalidRequest, TokenizerNotFound
from diffsynth.models import autoencoder_kl, bert_clip, hunyuan_dit, mt5
from diffsynth.models.autoencoder_kl.model import AutoencoderKL
from diffsynth.models.bert_clip.model import BertClip
from diffsynth.models.hunyuan_dit.blocks import Block
from diffsynth.models.hunyuan_dit.condition import TextFeatures
from diffsynth.models.hunyuan_dit.config import HunyuanDiTConfig
from diffsynth.models.hunyuan_dit.model import HunyuanDiT
from diffsynth.models.hunyuan_dit.rope import Rope, build_rope
from diffsynth.models.mt5.model import MT5Encoder
from diffsynth.tokenizers.base import check_fits
from diffsynth.tokenizers.locate import locate_vocabulary
from diffsynth.tokenizers.sentencepiece import SentencePieceTokenizer
from diffsynth.tokenizers.wordpiece import WordPieceTokenizer
from diffsynth.training.buckets import Frame
from diffsynth.training.ensemble import Predict
from diffsynth.training.kinds import DenoiserJob
from diffsynth.training.networks import digest_of, load_for_training, make_network, network_problem
from diffsynth.training.objective import Objective
from diffsynth.training.text import TextEncoders, TextSide

logger = logging.getLogger(__name__)

TEXT_LENGTHS = ("text_len", "t5_len")
WORDS, PIECES = "tokenizer/vocab.txt", "mt5/spiece.model"  # where saved vocabularies lie


class HunyuanDiTEnsemble:
    """A HunyuanDiT, its text encoders and an autoencoder that fit each other.

    Args:
        job: settings.
        seed: of new weights.

    Raises:
        InvalidRequest: sizes make no network, do not fit, or a new text encoder is not to learn.
        CheckpointError: a file cannot be used.
        TokenizerNotFound: a vocabulary is nowhere.
    """

    family = hunyuan_dit.FAMILY
    blocks = (Block,)

    def __init__(self, job: DenoiserJob, seed: int) -> None:
        self.job = job
        self.objective = Objective(job.prediction, job.beta_start, job.beta_end, job.timesteps, job.min_snr)
        self.latent_scale = job.latent_scale
        self.denoiser, self.text, self.vae, self._vae_files = load_parts(job, seed)
        self._ropes: dict[tuple[int, int], Rope] = {}
        assumed = 0.03 if self.denoiser.config.size_conditioning else 0.018
        if job.prediction == "velocity" and job.beta_end != assumed:
            logger.warning(
                "denoiser.beta_end is %g, but a pipeline takes %g for this network unless told", job.beta_end, assumed
            )

    @property
    def modules(self) -> dict[str, nn.Module]:
        """All networks by name."""
        return {"denoiser": self.denoiser, **self.text.modules(), "autoencoder": self.vae}

    @property
    def multiple(self) -> int:
        """What the sides of pictures must be multiples of: the pixels of one patch of latents."""
        return self.vae.config.downscale * self.denoiser.config.patch_size

    @property
    def source(self) -> str:
        """The denoiser's file; empty for a new one."""
        return self.job.network if isinstance(self.job.network, str) else ""

    def digest(self, name: str) -> str:
        """Return the hash of the files of a network."""
        return digest_of(self._vae_files if name == "autoencoder" else open_checkpoint(self.source).files)

    def keep(self, texts: Sequence[str], device: torch.device, megabytes: int) -> bool:
        """Keep the features of texts if the encoders are frozen and there is room; return whether they are kept."""
        return self.text.keep(texts, device, megabytes)

    def told(self, texts: Sequence[str], frames: Sequence[Frame], size: tuple[int, int]) -> Predict:
        """Return the denoiser as it is told of B captions, for latents of a height and width."""
        features, rope, sizes = self.condition(texts, size)
        return lambda noisy, timestep: self.denoiser(noisy, timestep, features, rope, sizes)

    def condition(self, texts: Sequence[str], size: tuple[int, int]) -> tuple[TextFeatures, Rope, Tensor | None]:
        """Return what a network of this family is told: features of captions, positions, the size condition."""
        return self.text(texts, self._device), self.rope(size), self.size_condition(len(texts), size)

    def rope(self, size: tuple[int, int]) -> Rope:
        """Return the positions for latents of a height and width."""
        config = self.denoiser.config
        if size not in self._ropes:
            rows, columns = (side // config.patch_size for side in size)
            self._ropes[size] = build_rope(rows, columns, config.head_dim, device=self._device)
        return self._ropes[size]

    def size_condition(self, count: int, size: tuple[int, int]) -> Tensor | None:
        """Return the six numbers that versions 1.0 and 1.1 are told: no picture was larger than it is, none is cut."""
        if not self.denoiser.config.size_conditioning:
            return None
        height, width = (side * self.vae.config.downscale for side in size)
        told = [width, height, width, height, 0, 0]
        return torch.tensor([told] * count, dtype=torch.float32, device=self._device)

    @property
    def _device(self) -> torch.device:
        return next(self.denoiser.parameters()).device


def job_problems(job: DenoiserJob) -> list[str]:
    """Return what is wrong with files and sizes of networks, as far as that is seen without loading them."""
    families = {
        "autoencoder": autoencoder_kl.FAMILY,
        "network": hunyuan_dit.FAMILY,
        "clip": bert_clip.FAMILY,
        "t5": mt5.FAMILY,
    }
    problems = []
    for name, family in families.items():
        if problem := network_problem(family, getattr(job, name)):
            problems.append(f"denoiser.{name}: {problem}")
    for path, network, (name, kind) in (
        (job.clip_tokenizer, job.clip, ("clip", "wordpiece")),
        (job.t5_tokenizer, job.t5, ("t5", "sentencepiece")),
    ):
        try:
            _vocabulary(kind, path, network, name)
        except (InvalidRequest, TokenizerNotFound) as error:
            problems.append(str(error))
    if not job.train_text_encoders and not (isinstance(job.clip, str) and isinstance(job.t5, str)):
        problems.append("denoiser.train_text_encoders is false, but a text encoder is new; it has to learn.")
    return problems


def load_parts(job: DenoiserJob, seed: int) -> tuple[HunyuanDiT, TextEncoders, AutoencoderKL, tuple[Path, ...]]:
    """Make or load the networks; sizes that follow from another network or a vocabulary need not be given.

    Returns:
        The denoiser, the text encoders, the autoencoder and its files.

    Raises:
        InvalidRequest: sizes make no network, do not fit, or a new text encoder is not to learn.
        CheckpointError: a file cannot be used.
        TokenizerNotFound: a vocabulary is nowhere.
    """
    if problems := job_problems(job):
        raise InvalidRequest(" ".join(problems))
    vae, files = load_for_training(job.autoencoder, autoencoder_kl.FAMILY, AutoencoderKL)
    ready, lengths = None, HunyuanDiTConfig()
    if isinstance(job.network, str):
        ready = make_network(hunyuan_dit.FAMILY, job.network, HunyuanDiT, seed)
        lengths = ready.config
    else:
        lengths = replace(lengths, **{name: job.network[name] for name in TEXT_LENGTHS if name in job.network})
    words = _vocabulary("wordpiece", job.clip_tokenizer, job.clip, "clip")
    pieces = _vocabulary("sentencepiece", job.t5_tokenizer, job.t5, "t5")
    try:
        clip_tokenizer = WordPieceTokenizer(words, lengths.text_len)
        t5_tokenizer = SentencePieceTokenizer(pieces, lengths.t5_len)
    except ValueError as error:
        raise InvalidRequest(f"the denoiser's texts are too short: {error}.") from error
    clip = make_network(bert_clip.FAMILY, _with(job.clip, vocab_size=clip_tokenizer.size), BertClip, seed)
    t5 = make_network(mt5.FAMILY, _with(job.t5, vocab_size=t5_tokenizer.size), MT5Encoder, seed)
    derived = {
        "text_dim": clip.config.hidden_size,
        "t5_dim": t5.config.d_model,
        "in_channels": vae.config.latent_channels,
    }
    denoiser = ready
    if denoiser is None:
        denoiser = make_network(hunyuan_dit.FAMILY, _with(job.network, **derived), HunyuanDiT, seed)
    for name, size in derived.items():
        if getattr(denoiser.config, name) != size:
            raise InvalidRequest(
                f"the denoiser's {name} is {getattr(denoiser.config, name)}, but the other networks need {size}."
            )
    if clip.config.max_positions < lengths.text_len:
        raise InvalidRequest(
            f"clip has {clip.config.max_positions} positions, but the denoiser reads {lengths.text_len} tokens."
        )
    check_fits(clip_tokenizer, clip.config.vocab_size)
    check_fits(t5_tokenizer, t5.config.vocab_size)
    for module in (clip, t5):
        module.requires_grad_(job.train_text_encoders)
    text = TextEncoders(
        TextSide(clip, clip_tokenizer),
        TextSide(t5, t5_tokenizer),
        job.train_text_encoders,
        {WORDS: clip_tokenizer.source, PIECES: t5_tokenizer.source},
    )
    return denoiser, text, vae.eval(), files


def _with(given: Mapping[str, Any] | str, **derived: Any) -> Mapping[str, Any] | str:
    """Complete the sizes of a new network with those that others tell."""
    return given if isinstance(given, str) else {**derived, **given}


def _vocabulary(kind: Any, path: str, network: Mapping[str, Any] | str, name: str) -> Path:
    if path:
        return locate_vocabulary(kind, Path(path), Path(path))
    if isinstance(network, str):
        return locate_vocabulary(kind, Path(network))
    raise InvalidRequest(f"denoiser.{name}_tokenizer: a new text encoder needs the vocabulary it should learn.")

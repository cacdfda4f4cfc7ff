"""The networks of HunyuanDiT that learn as a whole, and the files they are written to."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from typing_extensions import override

from diffsynth.core.saving import save_network
from diffsynth.models import autoencoder_kl, bert_clip, hunyuan_dit, mt5
from diffsynth.training.ensemble import Student
from diffsynth.training.hunyuan_dit import HunyuanDiTEnsemble
from diffsynth.training.networks import copy_of

FAMILIES = {
    "denoiser": hunyuan_dit.FAMILY,
    "clip": bert_clip.FAMILY,
    "t5": mt5.FAMILY,
    "autoencoder": autoencoder_kl.FAMILY,
}
FILES = {
    "denoiser": "model/pytorch_model_ema.safetensors",
    "clip": "clip_text_encoder/pytorch_model.safetensors",
    "t5": "mt5/pytorch_model.safetensors",
    "autoencoder": "sdxl-vae-fp16-fix/diffusion_pytorch_model.safetensors",
}


class WholeNetworks(Student):
    """Has the denoiser learn, and the text encoders if wanted.

    Args:
        ensemble: the networks.
    """

    ensemble: HunyuanDiTEnsemble

    @property
    @override
    def networks(self) -> Mapping[str, nn.Module]:
        text = self.ensemble.text
        return {"denoiser": self.ensemble.denoiser, **(text.modules() if text.learning else {})}

    @property
    @override
    def rates(self) -> Mapping[str, float]:
        return dict.fromkeys(self.ensemble.text.modules(), self.ensemble.job.text_rate)

    @override
    def save(self, folder: Path, dtype: torch.dtype, metadata: Mapping[str, str], *, complete: bool) -> None:
        """Write networks where published files of HunyuanDiT lie, with the vocabularies."""
        for name, module in self.ensemble.modules.items():
            if complete or name in self.networks:
                family, layout = FAMILIES[name], FAMILIES[name].layouts[0].name
                twin = copy_of(module, family, dtype)
                save_network(twin, family, twin.config, folder / FILES[name], layout, metadata)
        for name, file in self.ensemble.text.vocabularies.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / name)

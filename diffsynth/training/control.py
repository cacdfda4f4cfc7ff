"""Training a control network: it sees the edges of each picture, and guides a denoiser that stays as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from diffsynth.core.saving import save_network
from diffsynth.errors import InvalidRequest
from diffsynth.models.hunyuan_dit import CONTROLNET_FAMILY
from diffsynth.models.hunyuan_dit.control import HunyuanDiTControlNet
from diffsynth.models.hunyuan_dit.model import HunyuanDiT
from diffsynth.pipelines.canny import canny
from diffsynth.training.buckets import Frame
from diffsynth.training.ensemble import Hint, Predict, Student
from diffsynth.training.hunyuan_dit import HunyuanDiTEnsemble
from diffsynth.training.kinds import ControlConfig
from diffsynth.training.networks import copy_of, load_for_training

FILE = "controlnet/pytorch_model_{hint}.safetensors"
LAYOUT = "original"


class ControlNetwork(Student):
    """A control network that learns beside the denoiser of an ensemble; all of the ensemble is frozen.

    Args:
        ensemble: the networks.
        config: settings.

    Raises:
        InvalidRequest: a control network to go on from does not fit the denoiser.
        CheckpointError: its file cannot be used.
    """

    ensemble: HunyuanDiTEnsemble

    def __init__(self, ensemble: HunyuanDiTEnsemble, config: ControlConfig) -> None:
        super().__init__(ensemble)
        self.config = config
        self.hint = HINTS[config.hint]
        self.freeze_ensemble()
        if config.network:
            self.network, _ = load_for_training(config.network, CONTROLNET_FAMILY, HunyuanDiTControlNet)
        else:
            self.network = first_blocks_of(ensemble.denoiser)
        if self.network.config != ensemble.denoiser.config:
            raise InvalidRequest(f"control.network: {config.network} does not fit the denoiser {ensemble.source}.")
        self.network.train().requires_grad_(requires_grad=True)

    @property
    @override
    def networks(self) -> Mapping[str, nn.Module]:
        return {"control": self.network}

    @override
    def told(
        self, texts: Sequence[str], frames: Sequence[Frame], size: tuple[int, int], hints: Tensor | None
    ) -> Predict:
        assert hints is not None
        features, rope, sizes = self.ensemble.condition(texts, size)

        def predict(noisy: Tensor, timestep: Tensor) -> Tensor:
            controls = self.network(noisy, timestep, hints, features, rope, sizes)
            said: Tensor = self.ensemble.denoiser(
                noisy, timestep, features, rope, sizes, controls=dict(enumerate(controls))
            )
            return said

        return predict

    @override
    def save(self, folder: Path, dtype: torch.dtype, metadata: Mapping[str, str], *, complete: bool) -> None:
        """Write the control network as it is published; the base has its own files."""
        path = folder / FILE.format(hint=self.config.hint)
        twin = copy_of(self.network, CONTROLNET_FAMILY, dtype)
        save_network(twin, CONTROLNET_FAMILY, twin.config, path, LAYOUT, metadata)

    @override
    def describe(self) -> dict[str, Any]:
        return {"base": self.base()}


def first_blocks_of(denoiser: HunyuanDiT) -> HunyuanDiTControlNet:
    """Return a control network with the weights of a denoiser's first blocks, which changes nothing yet."""
    network = HunyuanDiTControlNet(denoiser.config)
    own = network.state_dict()
    network.load_state_dict({name: denoiser.state_dict().get(name, weight) for name, weight in own.items()})
    return network


def edges(pixels: Tensor) -> Tensor:
    """Return the edges of pictures in white on black, both (B, 3, H, W) uint8."""
    found = [canny(np.ascontiguousarray(each.permute(1, 2, 0).numpy())) for each in pixels.cpu()]
    lines = torch.from_numpy(np.where(found, np.uint8(255), np.uint8(0)))
    return lines[:, None].expand(-1, 3, -1, -1).to(pixels.device)


HINTS = {"canny": Hint("canny", edges)}

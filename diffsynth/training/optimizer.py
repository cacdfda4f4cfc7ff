"""How weights change: groups, the learning rate at each step, clipping, and the moving average."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from diffsynth.training.config import OptimizerConfig, ScheduleConfig


def rate_factor(config: ScheduleConfig, step: int) -> float:
    """Return the learning rate of a step, counted from 0, as a share of the highest.

    It rises in a straight line over the warm-up, which ends at the full rate, then follows the decay; after the last
    step it stays as it is.
    """
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.decay == "constant":
        return 1.0
    if config.decay == "step":
        return config.factor ** sum(step >= milestone for milestone in config.milestones)
    length = max(config.steps - config.warmup, 1)
    progress = min((step - config.warmup) / length, 1.0)
    return config.final_rate + (1 - config.final_rate) * 0.5 * (1 + math.cos(math.pi * progress))


def named_weights(networks: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Return the weights that learn, each once, as ``network.name``."""
    return {
        f"{network}.{name}": weight
        for network, module in networks.items()
        for name, weight in module.named_parameters()
        if weight.requires_grad
    }


def make_optimizer(
    config: OptimizerConfig, networks: Mapping[str, nn.Module], rates: Mapping[str, float]
) -> torch.optim.AdamW:
    """Return AdamW over the weights that learn.

    Norms, biases and embeddings, which are what has fewer than two dimensions or belongs to an embedding, decay
    no further.

    Args:
        config: its settings.
        networks: by name.
        rates: learning rate of each network, as a share of ``config.learning_rate``; 1 if not named.
    """
    groups = []
    for name, module in networks.items():
        embeddings = {
            id(weight) for each in module.modules() if isinstance(each, nn.Embedding) for weight in each.parameters()
        }
        weights = [weight for weight in module.parameters() if weight.requires_grad]
        decays = [weight for weight in weights if weight.ndim > 1 and id(weight) not in embeddings]
        others = [weight for weight in weights if weight.ndim <= 1 or id(weight) in embeddings]
        for members, decay in ((decays, config.weight_decay), (others, 0.0)):
            if members:
                groups.append({"params": members, "weight_decay": decay, "share": rates.get(name, 1.0)})
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate; each group takes its share."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]


class MovingAverage:
    """The moving average of weights, in float32.

    Args:
        weights: what is averaged, by name.
        decay: at each step the average moves by ``1 - decay`` towards the weights, in early steps by more.
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        self._weights = list(weights.values())
        self.average = {name: weight.detach().float().clone() for name, weight in weights.items()}
        self._decay = decay

    def decay(self, step: int) -> float:
        """Return the decay of a step, counted from 0."""
        return min(self._decay, (1 + step) / (10 + step))

    def update(self, step: int) -> None:
        """Move towards the weights as they are after a step."""
        move = get_ema_multi_avg_fn(self.decay(step))  # type: ignore[no-untyped-call]
        move(list(self.average.values()), [weight.detach() for weight in self._weights], None)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange average and weights; a second time restores them."""
        for average, weight in zip(self.average.values(), self._weights, strict=True):
            kept = weight.detach().clone()
            weight.copy_(average)
            average.copy_(kept)


def moments(optimizer: torch.optim.Optimizer, weights: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return the optimizer's state as ``name.key``."""
    return {
        f"{name}.{key}": value
        for name, weight in weights.items()
        for key, value in optimizer.state.get(weight, {}).items()
    }


def set_moments(
    optimizer: torch.optim.Optimizer, weights: Mapping[str, nn.Parameter], state: Mapping[str, Tensor]
) -> None:
    """Give an optimizer the state that `moments` returned."""
    for name, weight in weights.items():
        inside: dict[str, Any] = {}
        for key in ("step", "exp_avg", "exp_avg_sq"):
            if (value := state.get(f"{name}.{key}")) is not None:
                inside[key] = value.clone() if key == "step" else value.to(weight.device, copy=True)
        optimizer.state[weight] = inside


def clip(weights: Iterable[nn.Parameter], longest: float) -> Tensor:
    """Shorten the gradient of all weights together to a length, and return the length it had."""
    found: Sequence[nn.Parameter] = list(weights)
    return nn.utils.clip_grad_norm_(found, longest if longest > 0 else math.inf)

"""Train networks: pictures with captions in, checkpoints that the model manager loads out.

The public names are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffsynth.training.config import (
        DataConfig,
        OptimizerConfig,
        RecordConfig,
        ScheduleConfig,
        TrainingConfig,
    )
    from diffsynth.training.dataset import Dataset, Example, ImageFolder
    from diffsynth.training.kinds import AutoencoderJob, ControlConfig, DenoiserJob, LoRAConfig, UNetJob
    from diffsynth.training.run import train
    from diffsynth.training.toml import read_config

__all__ = [
    "AutoencoderJob",
    "ControlConfig",
    "DataConfig",
    "Dataset",
    "DenoiserJob",
    "Example",
    "ImageFolder",
    "LoRAConfig",
    "OptimizerConfig",
    "RecordConfig",
    "ScheduleConfig",
    "TrainingConfig",
    "UNetJob",
    "read_config",
    "train",
]

_HOMES = {
    "AutoencoderJob": "kinds",
    "ControlConfig": "kinds",
    "DataConfig": "config",
    "Dataset": "dataset",
    "DenoiserJob": "kinds",
    "Example": "dataset",
    "ImageFolder": "dataset",
    "LoRAConfig": "kinds",
    "OptimizerConfig": "config",
    "RecordConfig": "config",
    "ScheduleConfig": "config",
    "TrainingConfig": "config",
    "UNetJob": "kinds",
    "read_config": "toml",
    "train": "run",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value

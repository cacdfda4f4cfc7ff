"""What differs between a run as it was started before and as it goes on now: some of it may change, some may not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffsynth.errors import InvalidRequest, printable

# What the numbers in the weights mean: with another value what was learnt would be lost.
MEANING = (
    "config.denoiser.prediction",
    "config.denoiser.beta_start",
    "config.denoiser.beta_end",
    "config.denoiser.latent_scale",
    "config.unet.prediction",
    "config.lora.alpha",
    "config.lora.rank",
    "config.lora.layers",
    "base.sha256",
)
HARMLESS = ("config.record.", "config.data.memory", "config.data.workers", "config.schedule.steps")
COMPARED = ("config", "device", "processes", "data", "autoencoder_sha256", "base", "versions")


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return what has other values now, by dotted name: the value before, and the value now.

    Names that only one side has are left out: a newer version has settings that an older one had not.

    Args:
        before: content of run.json.
        now: what it would be.
    """
    old, new = _flat({key: before.get(key) for key in COMPARED}), _flat({key: now.get(key) for key in COMPARED})
    return {
        name: [old[name], value]
        for name, value in new.items()
        if name in old and old[name] != value and not name.startswith(HARMLESS)
    }


def refuse(changed: Mapping[str, list[Any]], where: str) -> None:
    """Make sure that the weights of a run keep their meaning.

    Raises:
        InvalidRequest: they do not.
    """
    if found := [name for name in MEANING if name in changed]:
        lines = "\n".join("  {}: was {}, is {}".format(name.removeprefix("config."), *changed[name]) for name in found)
        raise InvalidRequest(
            f"the run in {where} cannot go on with settings that change what its network says:\n{lines}\n"
            "Take the values it was started with, or start another run from its checkpoint, in another folder."
        )


def told(changed: Mapping[str, list[Any]]) -> str:
    """Return changes for a message."""
    return ", ".join(f"{name} {printable(before)} → {printable(now)}" for name, (before, now) in changed.items())


def _flat(content: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in content.items():
        values |= _flat(value, f"{where}{key}.") if isinstance(value, Mapping) else {f"{where}{key}": value}
    return values

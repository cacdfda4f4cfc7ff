"""Settings of a run from a TOML file, everything that is wrong in it named at once."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from diffsynth.errors import InvalidRequest
from diffsynth.training.config import TrainingConfig
from diffsynth.training.settings import read_settings

tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")


def read_config(path: str | Path) -> TrainingConfig:
    """Read the settings of a run from a TOML file.

    Raises:
        InvalidRequest: the file is no TOML, or keys or values cannot be used; all of them are named at once.
        OSError: the file cannot be read.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path} is no TOML file: {error}.") from error
    problems: list[str] = []
    config: TrainingConfig | None = read_settings(TrainingConfig, content, "", problems)
    if config is None or problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise InvalidRequest(f"{path} cannot be used:\n{lines}")
    return config

"""Settings of a run from a TOML file, everything that is wrong in it named at once."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from diffsynth.errors import InvalidRequest, listed, printable
from diffsynth.training.config import TrainingConfig, range_problem

tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")


def read_config(path: str | Path) -> TrainingConfig:
    """Read the settings of a run from a TOML file.

    Raises:
        InvalidRequest: the file is no TOML, or keys or values cannot be used; all of them are named at once.
        OSError: the file cannot be read.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path} is no TOML file: {error}.") from error
    problems: list[str] = []
    config: TrainingConfig | None = _read(TrainingConfig, content, "", problems)
    if config is None or problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise InvalidRequest(f"{path} cannot be used:\n{lines}")
    return config


def _read(kind: type[Any], content: Mapping[str, Any], where: str, problems: list[str]) -> Any:
    """Make a settings object of a TOML table; None, and more problems, if that cannot be done."""
    before = len(problems)
    known, hints = {each.name: each for each in fields(kind)}, get_type_hints(kind)
    for name in content.keys() - known.keys():
        near = get_close_matches(name, known, n=1) or sorted(known)
        problems.append(f"{where}{printable(name)}: there is no such setting; known are {listed(near, 30)}")
    values = {}
    for name, each in known.items():
        if name in content:
            value = _convert(hints[name], content[name], where + name, problems)
            if value is not None and (problem := range_problem(each, value, where + name)):
                problems.append(problem)
            values[name] = value
        elif each.default is MISSING and each.default_factory is MISSING:
            problems.append(f"{where}{name}: is missing")
    if len(problems) > before:
        return None
    try:
        return kind(**values)
    except InvalidRequest as error:
        problems.append(str(error))
        return None


def _convert(hint: Any, value: Any, where: str, problems: list[str]) -> Any:
    """Return a TOML value as the type a setting has, or None and one more problem."""
    if get_origin(hint) in (Union, UnionType):
        choices = [choice for choice in get_args(hint) if choice is not type(None)]
        fitting = [choice for choice in choices if isinstance(value, _plain_type(choice))]
        hint = (fitting or choices)[0]
    if is_dataclass(hint) and isinstance(hint, type) and isinstance(value, dict):
        return _read(hint, value, f"{where}.", problems)
    if get_origin(hint) is Literal:
        if value in get_args(hint):
            return value
        problems.append(f"{where}: must be one of {listed(get_args(hint), 20)}, not {printable(value)}")
    elif get_origin(hint) is tuple and isinstance(value, list):
        inside = [each for each in get_args(hint) if each is not ...]
        if len(get_args(hint)) == len(inside) and len(value) != len(inside):
            problems.append(f"{where}: needs {len(inside)} values, not {len(value)}")
            return None
        kinds = inside if len(inside) == len(value) else inside[:1] * len(value)
        return tuple(_convert(*pair, where, problems) for pair in zip(kinds, value, strict=True))
    elif hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif isinstance(value, _plain_type(hint)) and (hint is bool) == isinstance(value, bool):
        return value
    else:
        problems.append(f"{where}: must be {_type_name(hint)}, not {printable(repr(value))}")
    return None


def _plain_type(hint: Any) -> type:
    """Return the type that a TOML value has where a setting has this type."""
    origin = get_origin(hint) or hint
    if origin is Mapping or is_dataclass(origin):
        return dict
    return list if origin is tuple else origin


def _type_name(hint: Any) -> str:
    names = {
        dict: "a table",
        list: "a list",
        str: "a text",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
    }
    return names[_plain_type(hint)]

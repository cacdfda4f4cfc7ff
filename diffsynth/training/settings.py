"""How settings are declared, and checked against what they may be: the same for TOML files and for Python."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import MISSING, Field, field, fields, is_dataclass
from difflib import get_close_matches
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from diffsynth.errors import InvalidRequest, listed, printable


def number(default: Any = MISSING, *, low: float = float("-inf"), high: float = float("inf"), multiple: int = 1) -> Any:
    """Declare a finite number, or several, that must lie in a closed range, and be a multiple of something."""
    metadata = {"range": (low, high), "multiple": multiple}
    return field(metadata=metadata) if default is MISSING else field(default=default, metadata=metadata)


def read_settings(kind: type[Any], content: Mapping[str, Any], where: str, problems: list[str]) -> Any:
    """Make a settings object of named values; None, and more problems, if that cannot be done.

    Args:
        kind: a frozen dataclass of settings.
        content: by name; values are of the types that TOML has, or those of the settings.
        where: what names in messages begin with.
        problems: what is wrong is added here.
    """
    before = len(problems)
    values = checked_values(kind, content, where, problems)
    if len(problems) > before:
        return None
    try:
        return kind(**values)
    except InvalidRequest as error:
        problems.append(str(error))
        return None


def checked_values(kind: type[Any], content: Mapping[str, Any], where: str, problems: list[str]) -> dict[str, Any]:
    """Return the values of a settings object, each of its setting's type; add what is wrong to ``problems``."""
    known, hints = {each.name: each for each in fields(kind)}, get_type_hints(kind)
    for name in sorted(content.keys() - known.keys()):
        near = get_close_matches(name, known, n=1) or sorted(known)
        problems.append(f"{where}{printable(name)}: there is no such setting; known are {listed(near, 30)}")
    values = {}
    for name, each in known.items():
        if name in content:
            value = _convert(hints[name], content[name], where + name, problems)
            if value is not None and (problem := _number_problem(each, value)):
                problems.append(f"{where}{name}: must be {problem}, not {printable(content[name])}")
            values[name] = value
        elif each.default is MISSING and each.default_factory is MISSING:
            problems.append(f"{where}{name}: is missing")
    return values


def plain(value: Any) -> Any:
    """Return settings, or one of their values, as it goes into JSON."""
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(each) for each in value]
    return value if value is None or isinstance(value, (str, int, float)) else str(value)


def _number_problem(setting: Field[Any], value: Any) -> str | None:
    """Return what the numbers of a setting must be, if they are not."""
    low, high = setting.metadata.get("range", (None, None))
    if low is None:
        return None
    numbers = value if isinstance(value, tuple) else (value,)
    if any(each is None for each in numbers):
        return None  # which is reported as what it is
    if not all(math.isfinite(each) for each in numbers):
        return "finite"
    if not all(low <= each <= high for each in numbers):
        return f"at least {low}" if high == float("inf") else f"from {low} to {high}"
    multiple = setting.metadata["multiple"]
    return f"a multiple of {multiple}" if any(each % multiple for each in numbers if multiple > 1) else None


def _convert(hint: Any, value: Any, where: str, problems: list[str]) -> Any:
    """Return a value as the type that a setting has, or None and one more problem."""
    if get_origin(hint) in (Union, UnionType):
        if value is None and type(None) in get_args(hint):
            return None
        choices = [choice for choice in get_args(hint) if choice is not type(None)]
        fitting = [choice for choice in choices if isinstance(value, _plain_types(choice))]
        hint = (fitting or choices)[0]
    if isinstance(value, os.PathLike) and hint is str:
        return os.fspath(value)
    if is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, hint):
            value = {each.name: getattr(value, each.name) for each in fields(hint)}
        if isinstance(value, Mapping):
            return read_settings(hint, value, f"{where}.", problems)
    if get_origin(hint) is Literal:
        if value in get_args(hint):
            return value
        problems.append(f"{where}: must be one of {listed(get_args(hint), 20)}, not {printable(value)}")
    elif get_origin(hint) is tuple and isinstance(value, (list, tuple)):
        return _convert_each(hint, value, where, problems)
    elif hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif isinstance(value, _plain_types(hint)) and (hint is bool) == isinstance(value, bool):
        return value
    else:
        problems.append(f"{where}: must be {_type_name(hint)}, not {printable(repr(value))}")
    return None


def _convert_each(hint: Any, values: list[Any] | tuple[Any, ...], where: str, problems: list[str]) -> Any:
    inside = [each for each in get_args(hint) if each is not ...]
    if ... not in get_args(hint) and len(values) != len(inside):
        problems.append(f"{where}: needs {len(inside)} values, not {len(values)}")
        return None
    kinds = inside if ... not in get_args(hint) else inside * len(values)
    return tuple(_convert(*pair, where, problems) for pair in zip(kinds, values, strict=True))


def _plain_types(hint: Any) -> tuple[Any, ...]:
    """Return the types that a value may have where a setting has this type."""
    origin = get_origin(hint) or hint
    if origin is Mapping or is_dataclass(origin):
        return (Mapping, origin)
    if origin is tuple:
        return (list, tuple)
    return (str, os.PathLike) if origin is str else (origin,)


def _type_name(hint: Any) -> str:
    names = {
        Mapping: "a table",
        list: "a list",
        str: "a text",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
    }
    return names[_plain_types(hint)[0]]

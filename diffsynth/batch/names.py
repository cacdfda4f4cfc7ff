"""File names of images, from a template such as ``{index:06d}-{seed}.png``; always inside the output folder."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Mapping
from pathlib import PurePosixPath
from string import Formatter
from typing import Any

from diffsynth.errors import InvalidRequest, printable

USUAL = "{index:06d}-{seed}.png"
OWN = ("index", "row", "key", "prompt", "seed")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
UNPRINTABLE = re.compile(r"[\x00-\x1f\ud800-\udfff]")
DRIVE = re.compile(r"[A-Za-z]:")
PLAIN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_ .-]{,100}\.(png|jpg|jpeg|webp)")  # nothing is wrong with these
LONGEST = 255  # bytes of a name, on nearly every file system
LONGEST_PATH = 800  # characters, with its folders; systems stop at 1024 or 4096 bytes, the output folder included
UNSAFE = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]+')


class NameTemplate:
    """Makes names of images.

    Args:
        text: fields in braces: index and row (from 0), seed, key, prompt (its first 40 characters), or a setting.
        settings: names of settings.

    Raises:
        InvalidRequest: it has other fields, or does not end as a picture does.
    """

    def __init__(self, text: str, settings: Mapping[str, Any]) -> None:
        if not isinstance(text, str):
            raise InvalidRequest(f"names must be a template such as {USUAL}, not {printable(repr(text))}.")
        self.text = text
        try:
            fields = [name for _, name, _, _ in Formatter().parse(text) if name is not None]
        except ValueError as error:
            raise InvalidRequest(f"the name {printable(text)!r} is no template: {error}.") from error
        for name in fields:
            if name not in OWN and name not in settings:
                raise InvalidRequest(
                    f"the name {printable(text)!r} has a field {printable(name)!r}; "
                    f"known are: {', '.join(dict.fromkeys((*OWN, *settings)))}."
                )
        self.fields = frozenset(fields)
        check_suffix(text)

    def fill(self, values: Mapping[str, Any]) -> str:
        """Return the name of an image.

        Raises:
            InvalidRequest: it leads out of the folder, or is too long.
        """
        safe = {name: _safe(name, value) for name, value in values.items() if name in self.fields}
        try:
            name = self.text.format_map(safe)
        except (ValueError, TypeError, LookupError, AttributeError, MemoryError, OverflowError) as error:
            raise InvalidRequest(
                f"the name {printable(self.text)!r} cannot be filled in: {printable(error) or 'it is too long'}."
            ) from error
        return checked(name)


def _safe(name: str, value: Any) -> Any:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    text = UNSAFE.sub("_", str(value)).strip(" .")
    return (text[:40] if name == "prompt" else text).strip() or "_"


def check_suffix(name: str) -> None:
    """Raise InvalidRequest unless a name ends as a picture's does."""
    if PurePosixPath(name).suffix.lower() not in SUFFIXES:
        raise InvalidRequest(f"the name {printable(name)!r} must end in one of {', '.join(SUFFIXES)}.")


def checked(name: str) -> str:
    """Return a relative name, as it is written in ledgers.

    Raises:
        InvalidRequest: it leads out of the folder, or cannot be a file's.
    """
    if PLAIN.fullmatch(name):
        return name
    path = name.replace(os.sep, "/")
    parts = [part for part in path.split("/") if part != "."]
    if UNPRINTABLE.search(name):
        raise InvalidRequest(f"the name {printable(name)!r} has characters that no file's name should have.")
    if not parts or not all(parts) or ".." in parts or DRIVE.match(name):
        raise InvalidRequest(f"the name {printable(name)!r} must stay inside the output folder.")
    if len(path) > LONGEST // 4 and any(len(os.fsencode(part)) > LONGEST for part in parts):
        raise InvalidRequest(f"the name {printable(name)!r} has a part of more than {LONGEST} bytes.")
    if len(path) > LONGEST_PATH:
        raise InvalidRequest(f"the name {printable(name)!r} has more than {LONGEST_PATH} characters.")
    if parts[-1].startswith(".") or any(part.endswith(".jsonl") for part in parts):
        raise InvalidRequest(f"the name {printable(name)!r} is one that runs use themselves.")
    return "/".join(parts)


def folded(name: str) -> str:
    """Return what is the same for names that are one name where case, or the spelling of accents, is ignored."""
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())

"""What environment variables say about downloads; they are read at each call, not on import."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from diffsynth.errors import InvalidRequest, printable

YES = ("1", "true", "yes", "on")
HIDDEN = ("HF_TOKEN", "MODELSCOPE_API_TOKEN")


@dataclass(frozen=True)
class Patience:
    """How long a hub is waited for.

    Attributes:
        probe: seconds for a hub to accept a connection.
        silence: seconds without a byte after which a request is given up.
        attempts: how often the same thing is tried without getting further.
        pause: seconds before the second attempt; doubled for each further one.
        longest: most seconds between two attempts, whatever a hub asks for.
    """

    probe: float = 3.0
    silence: float = 30.0
    attempts: int = 5
    pause: float = 0.5
    longest: float = 60.0

    @classmethod
    def from_environment(cls) -> Patience:
        """Take ``DIFFSYNTH_DOWNLOAD_TIMEOUT`` (seconds of silence) and ``DIFFSYNTH_DOWNLOAD_ATTEMPTS``.

        Raises:
            InvalidRequest: one of them is no positive number.
        """
        return cls(
            silence=_number("DIFFSYNTH_DOWNLOAD_TIMEOUT", cls.silence),
            attempts=int(_number("DIFFSYNTH_DOWNLOAD_ATTEMPTS", cls.attempts, int)),
        )


def is_offline(asked: bool | None = None) -> bool:
    """Return whether no hub may be asked: as the caller says, else ``DIFFSYNTH_OFFLINE``, else ``HF_HUB_OFFLINE``."""
    if asked is not None:
        return asked
    value = os.environ.get("DIFFSYNTH_OFFLINE") or os.environ.get("HF_HUB_OFFLINE", "")
    return value.strip().lower() in YES


def hugging_face_endpoint() -> str:
    """Return the address of Hugging Face or of the mirror that ``HF_ENDPOINT`` names."""
    return _address("HF_ENDPOINT", "https://huggingface.co")


def modelscope_endpoint() -> str:
    """Return the address of ModelScope, or what ``MODELSCOPE_ENDPOINT`` names."""
    return _address("MODELSCOPE_ENDPOINT", "https://modelscope.cn")


def without_password(address: str) -> str:
    """Return an address as it may be shown."""
    return printable(re.sub(r"(?<=//)[^/]*@", "(hidden)@", address), 200)


def hugging_face_cache() -> Path:
    """Return the folder where huggingface_hub keeps what it fetched."""
    folder = os.environ.get("HF_HUB_CACHE")
    return Path(folder).expanduser() if folder else _hugging_face_home() / "hub"


def modelscope_cache() -> Path:
    """Return the folder where modelscope keeps what it fetched."""
    return Path(os.environ.get("MODELSCOPE_CACHE") or "~/.cache/modelscope").expanduser()


def described() -> Iterator[tuple[str, str, str]]:
    """Yield the name, the value and the origin of every setting; tokens are not shown."""
    patience = Patience.from_environment()
    effective: tuple[tuple[str, Callable[[], object]], ...] = (
        ("HF_ENDPOINT", hugging_face_endpoint),
        ("HF_HOME", _hugging_face_home),
        ("HF_HUB_CACHE", hugging_face_cache),
        ("HF_TOKEN", lambda: _saved(_hugging_face_home() / "token")),
        ("MODELSCOPE_ENDPOINT", modelscope_endpoint),
        ("MODELSCOPE_CACHE", modelscope_cache),
        ("MODELSCOPE_API_TOKEN", lambda: _saved(_modelscope_home() / "credentials" / "cookies")),
        ("HF_HUB_OFFLINE", lambda: "0"),
        ("DIFFSYNTH_OFFLINE", lambda: "1" if is_offline() else "0"),
        ("DIFFSYNTH_DOWNLOAD_TIMEOUT", lambda: f"{patience.silence:g}"),
        ("DIFFSYNTH_DOWNLOAD_ATTEMPTS", lambda: patience.attempts),
    )
    for name, value in effective:
        given = os.environ.get(name)
        if given:
            yield name, "(hidden)" if name in HIDDEN else without_password(given), "environment"
        elif name == "HF_HUB_CACHE" and os.environ.get("HF_HOME"):
            yield name, str(value()), "HF_HOME"
        elif name == "DIFFSYNTH_OFFLINE" and is_offline():
            yield name, str(value()), "HF_HUB_OFFLINE"
        elif name in HIDDEN:
            saved = str(value())
            yield name, "(hidden)" if saved else "(not set)", saved
        else:
            yield name, str(value()), "default"


def _address(name: str, usual: str) -> str:
    value = os.environ.get(name, "").strip().rstrip("/") or usual
    return value if "://" in value else f"https://{value}"


def _hugging_face_home() -> Path:
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return Path(os.environ.get("HF_HOME") or caches / "huggingface").expanduser()


def _modelscope_home() -> Path:
    return Path(os.environ.get("MODELSCOPE_HOME") or "~/.modelscope").expanduser()


def _saved(path: Path) -> str:
    return f"file {path}" if path.is_file() else ""


def _number(name: str, usual: float, kind: Callable[[str], float] = float) -> float:
    text = os.environ.get(name, "").strip()
    if not text:
        return usual
    try:
        value = kind(text)
    except ValueError:
        value = 0
    if not 0 < value < 1e6:
        raise InvalidRequest(f"{name} must be a number above 0, not {printable(text)!r}.")
    return value

"""The two hubs behind one face: list a repository, open a file from a byte on.

Addresses, tokens, listings and connections are those of the hubs' own clients, huggingface_hub and modelscope_hub.
What the clients do badly after that (checks, retries, resuming) is done the same way for both, in ``transfer``.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import cached_property
from importlib import import_module
from typing import Any, Protocol

from diffsynth import __version__
from diffsynth.errors import printable
from diffsynth.hub.listing import Listing, RemoteFile
from diffsynth.hub.patience import Disturbed, Hiccup, HubDown, NoSuchRange, Refusal
from diffsynth.hub.settings import hugging_face_endpoint, modelscope_endpoint

AGENT = f"diffsynth/{__version__}"
PIECE = 1 << 18  # bytes that are asked of a connection at a time
RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
# what clients raise on answers that are nothing they know
NONSENSE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
TRANSIENT = (408, 425, 429, 500, 502, 503, 504, 507, 509, 520, 521, 522, 523, 524, 529)


@dataclass(frozen=True)
class Head:
    """How a hub's answer begins.

    Attributes:
        start: the byte of the file that comes first; None if the answer does not say.
        total: bytes of the whole file; None if the answer does not say.
        kind: the content type.
    """

    start: int | None
    total: int | None
    kind: str

    @classmethod
    def of(cls, status: int, headers: Mapping[str, str]) -> Head:
        """Read the head of a successful answer."""
        kind = headers.get("Content-Type", "")
        if status == 206:
            found = RANGE.fullmatch(headers.get("Content-Range", "").strip())
            if found is None:
                return cls(None, None, kind)
            return cls(int(found[1]), int(found[3]) if found[3] != "*" else None, kind)
        plain = headers.get("Content-Encoding", "identity") in ("", "identity")
        length = headers.get("Content-Length", "")
        return cls(0, int(length) if plain and length.isdigit() else None, kind)


class Source(Protocol):
    """A hub."""

    name: str
    endpoint: str
    token_variable: str

    def listing(self, repository: str, revision: str | None) -> Listing:
        """Return what a repository holds.

        Raises:
            Refusal: it will not be told; the client has tried again by itself.
            Disturbed: try again.
        """

    def read(self, repository: str, revision: str | None, path: str, start: int) -> Generator[Head | bytes, None, None]:
        """Yield the head of the answer, then the bytes of a file from ``start`` on.

        Raises:
            Refusal: it will not be given.
            Hiccup: try again.
        """


@dataclass
class HuggingFace:
    """Hugging Face, or the mirror that ``HF_ENDPOINT`` names."""

    name: str = "HuggingFace"
    endpoint: str = field(default_factory=hugging_face_endpoint)
    token_variable: str = "HF_TOKEN"

    def listing(self, repository: str, revision: str | None) -> Listing:
        """Return what a repository holds; sizes, and a sha256 or a git id, come with it."""
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        try:
            with self._telling():
                entries = HfApi(endpoint=self.endpoint).list_repo_tree(repository, recursive=True, revision=revision)
                return Listing(
                    tuple(
                        RemoteFile(entry.path, entry.size, entry.lfs.sha256)
                        if entry.lfs
                        else RemoteFile(entry.path, entry.size, git_id=entry.blob_id)
                        for entry in entries
                        if isinstance(entry, RepoFile)
                    )
                )
        except Disturbed:
            raise
        except Hiccup as hiccup:
            raise Refusal(f"{hiccup}, several times in a row") from hiccup  # the client has tried that often

    def read(self, repository: str, revision: str | None, path: str, start: int) -> Generator[Head | bytes, None, None]:
        """Yield the head of the answer, then bytes; another host that it is sent on to gets no token."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        with self._telling() as client:
            url = hf_hub_url(repository, path, revision=revision, endpoint=self.endpoint)
            headers = {**build_hf_headers(library_name="diffsynth", library_version=__version__), **_wanted(start)}
            with client.stream("GET", url, headers=headers, follow_redirects=True) as answer:
                if answer.status_code >= 400:
                    raise failure(answer.status_code, answer.headers, self.token_variable)
                yield Head.of(answer.status_code, answer.headers)
                plain = answer.headers.get("Content-Encoding", "identity") == "identity"
                yield from answer.iter_raw() if plain else answer.iter_bytes()

    @contextmanager
    def _telling(self) -> Iterator[Any]:
        """Give the client, and turn what it raises into our own kinds."""
        from huggingface_hub import get_session
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

        try:
            client = get_session()
        except (ImportError, OSError, ValueError) as error:  # a proxy or certificates that it cannot use
            raise HubDown(f"its client cannot work with the settings of this machine ({short(error)})") from error
        http = import_module(type(client).__module__.partition(".")[0])  # httpx, or its successor
        try:
            with _undisturbed(client, http.ConnectError):
                yield client
        except OfflineModeIsEnabled as error:
            raise HubDown("HF_HUB_OFFLINE was set when huggingface_hub was imported") from error
        except HfHubHTTPError as error:
            answer = getattr(error, "response", None)
            if answer is None:
                raise Hiccup(short(error)) from error
            raise failure(answer.status_code, answer.headers, self.token_variable) from error
        except NONSENSE as error:
            raise Refusal(f"the answer is none of a hub ({short(error)})") from error
        except (http.HTTPError, http.StreamError, http.InvalidURL, OSError, RuntimeError) as error:
            raise Hiccup(f"the connection failed ({short(error)})") from error


@contextmanager
def _undisturbed(client: object, own: type[Exception]) -> Iterator[None]:
    """Tell apart what happens because another thread closed the client that all threads share.

    huggingface_hub does so where a listing cannot connect; that thread itself, and nobody else, gets the error ``own``.
    """
    from huggingface_hub import get_session

    try:
        yield
    except Exception as error:
        if isinstance(error, (own, Hiccup, Refusal)) or get_session() is client:
            raise
        raise Disturbed(f"all connections of this process were closed ({short(error)})") from error


@dataclass
class ModelScope:
    """ModelScope, or what ``MODELSCOPE_ENDPOINT`` names."""

    name: str = "ModelScope"
    endpoint: str = field(default_factory=modelscope_endpoint)
    token_variable: str = "MODELSCOPE_API_TOKEN"

    @cached_property
    def _api(self) -> Any:
        from modelscope_hub import HubApi, HubConfig

        return HubApi(HubConfig(endpoint=self.endpoint), user_agent=AGENT)

    @cached_property
    def _files(self) -> Any:
        """The client without a token: its session would send the token's cookie to other hosts of the same domain."""
        from modelscope_hub import HubApi, HubConfig

        return HubApi(HubConfig(endpoint=self.endpoint, token=""), user_agent=AGENT)

    def listing(self, repository: str, revision: str | None) -> Listing:
        """Return what a repository holds; every file has a size and a sha256."""
        try:
            with self._telling():
                entries = self._api.list_repo_files(repository, "model", revision=revision or "master")
                return Listing(
                    tuple(
                        RemoteFile(entry.path, int(entry.size), entry.sha256 or "")
                        for entry in entries
                        if not entry.is_dir
                    )
                )
        except Hiccup as hiccup:
            raise Refusal(f"{hiccup}, several times in a row") from hiccup  # the client has tried that often

    def read(self, repository: str, revision: str | None, path: str, start: int) -> Generator[Head | bytes, None, None]:
        """Yield the head of the answer, then bytes; another host that it is sent on to gets no token."""
        headers = _wanted(start)
        with self._telling():
            if token := self._api.legacy.token:  # both are left out when the answer sends us to another host
                headers |= {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"}
            answer = self._files.legacy.download_stream(
                repository, "model", path, revision or "master", headers=headers
            )
            with closing(answer):
                yield Head.of(answer.status_code, answer.headers)
                while piece := answer.raw.read1(PIECE, decode_content=True):
                    yield piece

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Turn what the client raises into our own two kinds."""
        from modelscope_hub import APIError, HubError, NetworkError, RequestTimeoutError
        from requests import JSONDecodeError
        from urllib3.exceptions import HTTPError

        try:
            yield
        except APIError as error:
            seconds = getattr(error, "retry_after", None)
            headers = {} if seconds is None else {"Retry-After": str(seconds)}
            raise failure(error.status_code or 0, headers, self.token_variable) from error
        except JSONDecodeError as error:
            raise Refusal(f"the answer is none of a hub ({short(error)})") from error
        except (NetworkError, RequestTimeoutError, OSError, HTTPError) as error:  # those of requests are OSErrors
            raise Hiccup(f"the connection failed ({short(error)})") from error
        except (HubError, *NONSENSE) as error:
            raise Refusal(f"the answer is none of a hub ({short(error)})") from error


SOURCES: Mapping[str, Callable[[], Source]] = {"ModelScope": ModelScope, "HuggingFace": HuggingFace}


def failure(status: int, headers: Mapping[str, str], token_variable: str) -> Hiccup | Refusal:
    """Return what an HTTP status means for us."""
    if status == 416:
        return NoSuchRange("HTTP 416")
    if status in TRANSIENT:
        return Hiccup(f"HTTP {status}", _seconds(headers.get("Retry-After", "")))
    if status in (401, 403):
        return Refusal(
            f"access refused (HTTP {status}): the repository is not there, or private, or its terms must be accepted "
            f"on its page; {token_variable} gives a token"
        )
    if status in (404, 410):
        return Refusal(f"it is not there (HTTP {status})")
    return Refusal(f"HTTP {status}")


def _seconds(text: str) -> float | None:
    """Return how long a ``Retry-After`` header asks to wait: it holds seconds, or a date."""
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def short(error: BaseException) -> str:
    """Return an error as a few words on one line."""
    return printable(f"{type(error).__name__}: {error}".split("\n")[0], 160)


def _wanted(start: int) -> dict[str, str]:
    """Return the headers that ask for plain bytes from ``start`` on."""
    return {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})

"""Both hubs in one small server on the loopback interface, for the real clients, with faults on demand.

It speaks the parts of the two interfaces that listing and downloading need. Large files are redirected to another
host name of the same server, as the hubs do with their storage.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import parse_qs, quote, unquote, urlsplit

from typing_extensions import Self

MODELSCOPE = r"^GET /(api/v1|cdn/ms)/"
HUGGING_FACE = r"^GET /(?!api/v1/|cdn/ms/)"
LISTING = {"ModelScope": r"/repo/files", "HuggingFace": r"/tree/"}
FILE = {"ModelScope": r"^GET /(api/v1/.*/repo\?|cdn/ms).*", "HuggingFace": r"^GET /(.*/resolve/|cdn/hf).*"}
ON_BODY = {"drop", "short", "long", "corrupt", "no_range", "bad_range", "lying_range", "html", "stall", "slow", "empty"}
Content = bytes | Path


@dataclass
class Fault:
    """Something that goes wrong.

    Attributes:
        kind: one of those above, or ``silent``, ``status``, ``refuse``, ``bad_listing``, ``hostile``,
            ``hidden``.
        match: regular expression for ``GET /path?query``.
        times: for how many requests; -1 is for ever.
        share: how much of the body is sent first, 0 to 1.
        code: the status.
        retry_after: the header.
        seconds: how long a stall lasts.
        name: the file that a hostile listing adds.
    """

    kind: str
    match: str = ""
    times: int = 1
    share: float = 0.5
    code: int = 503
    retry_after: str = ""
    seconds: float = 30.0
    name: str = "../../escaped.bin"


@dataclass
class Request:
    """One request as it was answered."""

    line: str
    range: str
    token: str
    host: str
    agent: str
    status: int = 0
    sent: int = 0


@dataclass(frozen=True)
class Entry:
    """One file of a repository."""

    path: str
    content: Content

    @property
    def size(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    def read(self) -> bytes:
        return self.content if isinstance(self.content, bytes) else self.content.read_bytes()

    @property
    def large(self) -> bool:
        return self.size > 10_000 or self.path.endswith((".bin", ".pt", ".safetensors"))


class Hub:
    """The server; use it in a ``with`` block.

    Args:
        repositories: ``owner/name`` → file name → content.
        token: what is let in; empty lets everybody in.
    """

    def __init__(self, repositories: Mapping[str, Mapping[str, Content]], token: str = "") -> None:
        self.publish(repositories)
        self.token = token
        self.log: list[Request] = []
        self.faults: list[Fault] = []
        self.lock = threading.Lock()
        self.stopped = threading.Event()
        self._hashes: dict[tuple[str, str, int], tuple[str, str]] = {}
        hub = self

        class Bound(Handler):
            pass

        Bound.hub = hub
        self._server = QuietServer(("127.0.0.1", 0), Bound)
        port = self._server.server_address[1]
        self.url, self.storage = f"http://127.0.0.1:{port}", f"http://localhost:{port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()

    def publish(self, repositories: Mapping[str, Mapping[str, Content]]) -> None:
        """Hold these repositories from now on."""
        self.repositories: dict[str, dict[str, Content]] = {name: dict(files) for name, files in repositories.items()}

    def fault(self, kind: str, match: str = "", times: int = 1, **options: object) -> Fault:
        """Let something go wrong from now on."""
        fault = Fault(kind, match, times, **options)  # type: ignore[arg-type]
        self.faults.append(fault)
        return fault

    def env(self, folder: Path) -> dict[str, str]:
        """Return the environment that sends both clients here, with caches of their own."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(folder / "hf"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "MODELSCOPE_ENDPOINT": self.url,
            "MODELSCOPE_CACHE": str(folder / "modelscope"),
            "MODELSCOPE_HOME": str(folder / "modelscope-home"),
            "DIFFSYNTH_CACHE": str(folder / "diffsynth"),
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }

    def requests(self, pattern: str) -> list[Request]:
        """Return the requests whose line fits a pattern."""
        return [request for request in list(self.log) if re.search(pattern, request.line)]

    def hashes(self, entry: Entry) -> tuple[str, str]:
        """Return the sha256 and the git id of a file."""
        stamp = 0 if isinstance(entry.content, bytes) else entry.content.stat().st_mtime_ns
        key = (entry.path, str(id(entry.content)), stamp)
        if key not in self._hashes:
            data = entry.read()
            git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            self._hashes[key] = (hashlib.sha256(data).hexdigest(), git)
        return self._hashes[key]

    def take(self, line: str, sends_body: bool) -> Fault | None:
        """Return the fault for a request, used up by one."""
        with self.lock:
            for fault in self.faults:
                if fault.times and re.search(fault.match, line) and (sends_body or fault.kind not in ON_BODY):
                    fault.times -= fault.times > 0
                    return fault
        return None


def share(fault: Fault | None, body: bytes) -> int:
    """Return how many bytes are sent: a share of them, but one at least, so that whoever goes on gets to the end."""
    return len(body) if fault is None else min(len(body), max(int(len(body) * fault.share), fault.share > 0))


class QuietServer(ThreadingHTTPServer):
    """A server to which a client that hangs up is no news."""

    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing."""


@dataclass
class Reply:
    """What is to be sent."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


def json_reply(value: object) -> Reply:
    """Return a value as JSON."""
    return Reply(200, {"Content-Type": "application/json"}, json.dumps(value).encode())


Answer = Callable[["Fault | None"], Reply]


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    hub: Hub
    protocol_version = "HTTP/1.1"
    timeout = 60

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Answer a request."""
        parts = urlsplit(self.path)
        line = f"{self.command} {unquote(self.path)}"
        cookie = re.search(r"m_session_id=([^;]+)", self.headers.get("Cookie", ""))
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or (cookie[1] if cookie else "")
        self.entry = Request(
            line, self.headers.get("Range", ""), token, self.headers.get("Host", ""), self.headers.get("User-Agent", "")
        )
        self.hub.log.append(self.entry)
        query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        path = [unquote(part) for part in parts.path.strip("/").split("/")]
        with suppress(OSError):
            self.answer(path, query, line)
            return
        self.close_connection = True

    do_HEAD = do_GET  # noqa: N815 - the name that the server looks for

    def answer(self, path: list[str], query: dict[str, str], line: str) -> None:
        """Route a request."""
        entry, answered = self.route(path, query)
        redirected = entry is not None and entry.large and path[0] != "cdn"
        fault = self.hub.take(line, sends_body=entry is not None and not redirected)
        if fault is not None and fault.kind == "refuse":
            return self.hang_up()
        if fault is not None and fault.kind == "status":
            headers = {"Retry-After": fault.retry_after} if fault.retry_after else {}
            return self.send(Reply(fault.code, headers, b'{"error": "injected"}'))
        if fault is not None and fault.kind == "silent":
            self.hub.stopped.wait(fault.seconds)
            return self.hang_up()
        if answered is not None:
            return self.send(answered(fault))
        assert entry is not None
        sha256, git = self.hub.hashes(entry)
        if redirected:
            hub = "ms" if path[0] == "api" else "hf"
            place = f"{self.hub.storage}/cdn/{hub}/{sha256}?name={quote(entry.path)}"
            linked = {"X-Linked-ETag": f'"{sha256}"', "X-Linked-Size": str(entry.size), "X-Repo-Commit": "c" * 40}
            return self.send(Reply(302, {"Location": place, "ETag": f'"{git}"', **linked}))
        return self.send_file(entry, fault, {"ETag": f'"{git}"', "X-Repo-Commit": "c" * 40})

    def route(self, path: list[str], query: dict[str, str]) -> tuple[Entry | None, Answer | None]:
        """Return the file that is asked for, or an answer."""
        if path[0] == "cdn":
            for files in self.hub.repositories.values():
                for name, content in files.items():
                    entry = Entry(name, content)
                    if name == query.get("name") and self.hub.hashes(entry)[0] == path[2]:
                        return entry, None
            return None, lambda fault: Reply(404)
        modelscope = path[:3] == ["api", "v1", "models"]
        named = path[3:5] if modelscope else path[2:4] if path[0] == "api" else path[:2]
        repository = "/".join(named)
        held = self.hub.repositories.get(repository)
        if held is None or (self.hub.token and self.entry.token != self.hub.token):
            code = 404 if modelscope else 401
            body = b'{"Code": 404, "Message": "not found"}'
            return None, lambda fault: Reply(code, {"X-Error-Code": "RepoNotFound"}, body)
        entries = [Entry(name, content) for name, content in held.items()]
        if modelscope and path[5:] == ["repo", "files"]:
            return None, lambda fault: self.modelscope_listing(entries, fault)
        if not modelscope and path[0] == "api" and path[4] == "tree":
            return None, lambda fault: self.hugging_face_listing(entries, fault)
        wanted = query.get("FilePath", "") if modelscope else "/".join(path[4:])
        found = next((entry for entry in entries if entry.path == wanted), None)
        if found is not None:
            return found, None
        return None, lambda fault: Reply(404, {"X-Error-Code": "EntryNotFound"}, b'{"error": "not found"}')

    def modelscope_listing(self, entries: list[Entry], fault: Fault | None) -> Reply:
        """Return the files as ModelScope lists them."""
        rows = []
        for entry in self.with_hostile(entries, fault):
            sha256 = "0" * 64 if fault and fault.kind == "bad_listing" else self.hub.hashes(entry)[0]
            rows.append({"Type": "blob", "Path": entry.path, "Name": entry.path, "Size": entry.size, "Sha256": sha256})
        return self.listed({"Code": 200, "Data": {"Files": rows}, "Success": True}, fault)

    def hugging_face_listing(self, entries: list[Entry], fault: Fault | None) -> Reply:
        """Return the files as Hugging Face lists them."""
        rows = []
        for entry in self.with_hostile(entries, fault):
            sha256, git = ("0" * 64, "0" * 40) if fault and fault.kind == "bad_listing" else self.hub.hashes(entry)
            row: dict[str, object] = {"type": "file", "path": entry.path, "size": entry.size, "oid": git}
            if entry.large:
                row["lfs"] = {"oid": sha256, "size": entry.size, "pointerSize": 130}
            rows.append(row)
        return self.listed(rows, fault)

    @staticmethod
    def with_hostile(entries: list[Entry], fault: Fault | None) -> list[Entry]:
        """Add a file whose name leads elsewhere, or leave all out."""
        if fault and fault.kind == "hidden":
            return []
        return [Entry(fault.name, b"hostile"), *entries] if fault and fault.kind == "hostile" else entries

    @staticmethod
    def listed(rows: object, fault: Fault | None) -> Reply:
        """Return a listing, or a web page in its place."""
        if fault is not None and fault.kind == "portal":
            return Reply(200, {"Content-Type": "text/html"}, b"<html>please log in</html>")
        return json_reply(rows)

    def send_file(self, entry: Entry, fault: Fault | None, headers: dict[str, str]) -> None:
        """Send a file, or a part of it, as a fault has it."""
        kind = fault.kind if fault else ""
        data = entry.read()
        start, status = 0, 200
        if (asked := re.fullmatch(r"bytes=(\d+)-", self.entry.range)) and kind != "no_range":
            start, status = int(asked[1]), 206
            if start >= len(data):
                self.send(Reply(416, {"Content-Range": f"bytes */{len(data)}"}))
                return
        told = start
        if status == 206 and kind in ("bad_range", "lying_range"):
            told, start = (0, 0) if kind == "bad_range" else (start, 0)
        body = data[start : start + len(data) - told]
        if kind == "html":
            status, body, headers = 200, b"<html>please log in</html>", {"Content-Type": "text/html"}
        elif kind == "empty":
            status, body = 200, b""
        elif kind == "short":
            body = body[: share(fault, body)]
        elif kind == "long":
            body += b"\0" * 100
        elif kind == "corrupt":
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 0xFF]) + body[middle + 1 :]
        if status == 206:
            headers["Content-Range"] = f"bytes {told}-{len(data) - 1}/{len(data)}"
        self.head(Reply(status, headers), len(body))
        if self.command == "HEAD":
            return
        limit = share(fault, body) if kind in ("drop", "stall") else len(body)
        for at in range(0, limit, 1 << 16):
            piece = body[at : min(at + (1 << 16), limit)]
            self.wfile.write(piece)
            self.entry.sent += len(piece)
            if kind == "slow":
                time.sleep(0.02)
        if fault is not None and kind == "stall":
            self.wfile.flush()
            self.hub.stopped.wait(fault.seconds)
        if limit < len(body):
            self.hang_up()

    def send(self, reply: Reply) -> None:
        """Send a whole answer."""
        self.head(reply, len(reply.body))
        if self.command != "HEAD":
            self.wfile.write(reply.body)
            self.entry.sent = len(reply.body)

    def head(self, reply: Reply, length: int) -> None:
        """Send the head of an answer."""
        self.entry.status = reply.status
        self.send_response(reply.status)
        for name, value in {**reply.headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()

    def hang_up(self) -> None:
        """Close the connection."""
        self.close_connection = True
        with suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(2)

"""A hub on loopback: it answers the routes that the real client asks of huggingface.co, from directories on this disk.

What is published is a commit; `main` is the last one of a repository. It can be told to break connections in mid-answer,
to answer 5xx, to be slow, to gate a repository and to stop; `requests` holds what it was asked.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support import ROOT
from tests.support.pushed import Taken

_API = re.compile(
    r"/api/(datasets|models)/((?:[^/]+/)?[^/]+?)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?"
)
_RESOLVE = re.compile(r"/(datasets/)?((?:[^/]+/)?[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class Repository:
    commits: dict[str, Path] = field(default_factory=dict)
    main: str = ""
    gated: bool = False
    token: str | None = None
    """Who does not bring it is not told that the repository exists."""


@dataclass
class LoopbackHub:
    """Serves while the block of `running` lasts; `stop` and `start` in between keep its port."""

    port: int = 0
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None, str | None]] = field(default_factory=list)
    """Method, path, range, authorization."""
    breaks: dict[str, int] = field(default_factory=dict)
    """Files of which so many answers more end in the middle; a negative number: all."""
    refusals: dict[str, list[int]] = field(default_factory=dict)
    """Files whose next answers are these status codes."""
    taken: Taken | None = None
    """What is pushed; without it nothing is taken."""
    delay: float = 0.0
    """Seconds before each answer with bytes of a file."""
    _server: Any = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def publish(self, kind: str, name: str, directory: Path) -> str:
        """A new commit of `datasets` or `models` name: the files of a directory, which must then stay as they are."""
        facts = "".join(f"{path} {digest(directory / path)}\n" for path in files_of(directory))
        commit = hashlib.sha1(facts.encode()).hexdigest()
        repository = self.repositories.setdefault((kind, name), Repository())
        repository.commits[commit] = directory
        repository.main = commit
        return commit

    def environment(self, home: Path) -> dict[str, str]:
        """What a process needs so that the real client asks here."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        return {
            **clean,
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "PYTHONPATH": str(ROOT),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
        }

    def start(self) -> None:
        class Bound(_Handler):
            hub = self

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Bound)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()

    @contextlib.contextmanager
    def running(self) -> Iterator[LoopbackHub]:
        self.start()
        try:
            yield self
        finally:
            self.stop()

    def bytes_asked(self, name: str) -> int:
        """Bytes of a file that were asked for, by its ranges."""
        spans = [span for _, path, span, _ in self.requests if path.endswith(name) and span]
        pairs = [span.removeprefix("bytes=").split("-") for span in spans]
        return sum(int(end) + 1 - int(start) for start, end in pairs)


def files_of(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


_DIGESTS: dict[tuple[str, int, int], str] = {}


def digest(path: Path) -> str:
    status = path.stat()
    key = (str(path), status.st_size, status.st_mtime_ns)
    if key not in _DIGESTS:
        with path.open("rb") as file:
            _DIGESTS[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _DIGESTS[key]


class _Refused(Exception):
    def __init__(self, status: int, code: str) -> None:
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LoopbackHub

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        address = urlsplit(self.path)
        path = unquote(address.path)
        self.hub.requests.append(
            (self.command, path, self.headers.get("Range"), self.headers.get("Authorization"))
        )
        if self.hub._server is None:  # stopped: a connection that was kept alive is cut too
            self.close_connection = True
            return
        try:
            if self.hub.taken is not None and (
                answer := self.hub.taken.answer(
                    self.hub, self.command, path, self.headers.get("Authorization"), body
                )
            ):
                status, value = answer
                self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})
            elif match := _RESOLVE.fullmatch(path):
                self._file("datasets" if match[1] else "models", match[2], match[3], match[4])
            elif match := _API.fullmatch(path):
                kind, name, what, revision, below = match.groups()
                self._json(self._told(kind, name, what, revision, below or "", parse_qs(address.query), body))
            else:
                raise _Refused(404, "EntryNotFound")
        except _Refused as refusal:
            self._send(refusal.status, b"", {"X-Error-Code": refusal.code, "X-Error-Message": refusal.code})
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _told(
        self,
        kind: str,
        name: str,
        what: str | None,
        revision: str | None,
        below: str,
        query: Any,
        body: bytes,
    ) -> Any:
        commit, directory = self._commit(kind, name, revision or "main", gate=False)
        files = files_of(directory)
        if what in (None, "revision"):
            siblings = [{"rfilename": path} for path in files]
            private = self.hub.taken is not None and self.hub.taken.visibility.get(name) == "private"
            gated = self.hub.repositories[kind, name].gated
            return {
                "id": name,
                "sha": commit,
                "siblings": siblings,
                "gated": gated,
                "private": private,
                "tags": [],
            }
        if what == "paths-info":
            wanted = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode())["paths"]
            found = [self._entry(directory, path) for path in wanted if path in files]
            return found + [_folder(path) for path in wanted if _within(files, path)]
        inside = [path for path in files if not below or path.startswith(f"{below}/")]
        if below and not inside:
            raise _Refused(404, "EntryNotFound")
        entries: dict[str, Any] = {}
        for path in inside:
            rest = path.removeprefix(f"{below}/" if below else "")
            for depth in range(1, rest.count("/") + 1):
                folder = "/".join([*([below] if below else []), *rest.split("/")[:depth]])
                entries[folder] = _folder(folder)
            entries[path] = self._entry(directory, path)
        deep = query.get("recursive", ["false"])[0].lower() in ("true", "1")
        level = below.count("/") + 1 if below else 0
        return [entry for path, entry in entries.items() if deep or path.count("/") == level]

    def _entry(self, directory: Path, path: str) -> dict[str, Any]:
        size, sha256 = (directory / path).stat().st_size, digest(directory / path)
        entry = {"type": "file", "path": path, "size": size, "oid": sha256[:40]}
        if path.endswith(".md") or size < 500:
            return entry
        return {**entry, "lfs": {"oid": sha256, "size": size, "pointerSize": 134}}

    def _commit(self, kind: str, name: str, revision: str, *, gate: bool) -> tuple[str, Path]:
        repository = self.hub.repositories.get((kind, name))
        given = self.headers.get("Authorization")
        if repository is None or (repository.token and given != f"Bearer {repository.token}"):
            raise _Refused(401 if given is None else 404, "RepoNotFound")
        if gate and repository.gated:
            raise _Refused(401 if given is None else 403, "GatedRepo")
        commit = repository.main if revision == "main" else revision
        if commit not in repository.commits:
            raise _Refused(404, "RevisionNotFound")
        return commit, repository.commits[commit]

    def _file(self, kind: str, name: str, revision: str, path: str) -> None:
        commit, directory = self._commit(kind, name, revision, gate=True)
        file = directory / path
        if not file.is_file():
            raise _Refused(404, "EntryNotFound")
        if self.command == "GET" and self.hub.refusals.get(path):
            raise _Refused(self.hub.refusals[path].pop(0), "ServerError")
        size, sha256 = file.stat().st_size, digest(file)
        headers = {"ETag": f'"{sha256}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        start, end, status = 0, size, 200
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            start, end, status = int(match[1]), min(size, int(match[2] or size - 1) + 1), 206
            if start >= size:
                raise _Refused(416, "RangeNotSatisfiable")
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        if self.command == "HEAD":
            self._send(status, b"", {**headers, "Content-Length": str(end - start)})
            return
        time.sleep(self.hub.delay)
        with file.open("rb") as bytes_:
            bytes_.seek(start)
            data = bytes_.read(end - start)
        left = self.hub.breaks.get(path, 0)
        if left and len(data) > 1:
            self.hub.breaks[path] = left - 1
            self._send(status, data[: len(data) // 2], {**headers, "Content-Length": str(len(data))})
            self.close_connection = True
            return
        self._send(status, data, headers)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        if self.hub._server is None:
            self.close_connection = True


def _within(files: list[str], folder: str) -> bool:
    return any(path.startswith(f"{folder}/") for path in files)


def _folder(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0}

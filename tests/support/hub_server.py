"""A small hub on this machine: model information, resolve with redirects and tags, ranges, gates; and its faults."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE = 1000
"""Files of this many bytes are kept in large-file storage, as the hub does with weights."""


@dataclass
class Repository:
    """Files of one commit."""

    commit: str
    files: dict[str, bytes]
    gated: bool = False
    branches: tuple[str, ...] = ("main",)


@dataclass
class Seen:
    """A request that the server got."""

    method: str
    path: str
    authorization: str | None
    range: str | None
    host: str


@dataclass
class Hub:
    """What the server has and how it misbehaves. Change it while it runs."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    plain: dict[str, bytes] = field(default_factory=dict)
    """Files under /plain/, without any of the hub's headers."""
    accounts: dict[str, bool] = field(default_factory=dict)
    """Tokens, and whether their account accepted the licences."""
    requests: list[Seen] = field(default_factory=list)
    sent: int = 0
    """Bytes of large files that were sent."""
    stop_after: int | None = None
    """Bytes of a large file after which the server hangs until ``release``."""
    cut_after: int | None = None
    """Bytes of a large file after which the connection is closed, each time."""
    damage: Callable[[bytes], bytes] = bytes
    """What happens to the content on its way."""
    ranges: bool = True
    page: bytes | None = None
    """What every question about a repository is answered with, as a captive portal does."""
    release: threading.Event = field(default_factory=threading.Event)
    address: str = ""

    def add(self, name: str, files: dict[str, bytes], **about: object) -> Repository:
        commit = hashlib.sha1(name.encode()).hexdigest()
        self.repositories[name] = Repository(commit, files, **about)  # type: ignore[arg-type]
        return self.repositories[name]

    def asked_for(self, part: str, method: str = "GET") -> list[Seen]:
        return [one for one in self.requests if part in one.path and one.method == method]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def blob(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def describe(name: str, content: bytes) -> dict[str, object]:
    about = {"rfilename": name, "size": len(content), "blobId": blob(content)}
    if len(content) >= LARGE:
        about["blobId"] = blob(b"pointer" + content[:10])
        about["lfs"] = {"size": len(content), "sha256": sha256(content), "pointerSize": 135}
        about["xetHash"] = sha256(content)
    return about


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        get = self.headers.get
        self.hub.requests.append(
            Seen(self.command, path, get("authorization"), get("range"), get("host", "")),
        )
        kind = "datasets/" if path.startswith(("/api/datasets/", "/datasets/")) else ""
        if path.startswith("/api/") and self.hub.page is not None:
            self._send(200, {"Content-Type": "text/html"}, self.hub.page)
        elif path.startswith(api := f"/api/{kind or 'models/'}"):
            name, revision = path.removeprefix(api).split("/revision/")
            self._info(f"{kind}{name}", revision)
        elif path.startswith("/storage/"):
            content = next(
                c for r in self.hub.repositories.values() for c in r.files.values() if sha256(c) == path.split("/")[2]
            )
            self._bytes(content, {})
        elif path.startswith("/plain/"):
            content = self.hub.plain.get(path.removeprefix("/plain/"))
            if content is None:
                self._refuse(404, "")
            else:
                self._bytes(content, {"ETag": '"any"'})
        elif "/resolve/" in path:
            name, _, rest = path[1:].partition("/resolve/")
            self._resolve(name, *rest.split("/", 1))
        else:
            self._refuse(404, "EntryNotFound")

    def _find(self, name: str, revision: str) -> Repository | None:
        repository = self.hub.repositories.get(name)
        if repository is None:
            self._refuse(401, "RepoNotFound")
        elif revision not in (repository.commit, *repository.branches):
            self._refuse(404, "RevisionNotFound")
        else:
            return repository
        return None

    def _account(self) -> str:
        return (self.headers.get("authorization") or "").removeprefix("Bearer ")

    def _info(self, name: str, revision: str) -> None:
        if self._account() and self._account() not in self.hub.accounts:
            self._refuse(401, "", "Invalid credentials in Authorization header")
        elif repository := self._find(name, revision):
            siblings = [describe(file, content) for file, content in repository.files.items()]
            about = {"id": name, "sha": repository.commit, "private": False, "siblings": siblings}
            self._send(200, {"Content-Type": "application/json"}, json.dumps(about).encode())

    def _resolve(self, name: str, revision: str, file: str) -> None:
        repository = self._find(name, revision)
        if repository is None:
            return
        if repository.gated and not self.hub.accounts.get(self._account()):
            self._refuse(403 if self._account() else 401, "GatedRepo")
            return
        content = repository.files.get(file)
        if content is None:
            self._refuse(404, "EntryNotFound")
        elif len(content) < LARGE:
            self._bytes(content, {"ETag": f'"{blob(content)}"', "X-Repo-Commit": repository.commit})
        else:
            # The storage is another host, as the hub's is: the token must not follow there.
            storage = f"http://localhost:{self.server.server_address[1]}/storage/{sha256(content)}"
            self._send(
                302,
                {
                    "Location": storage,
                    "X-Repo-Commit": repository.commit,
                    "X-Linked-Etag": f'"{sha256(content)}"',
                    "X-Linked-Size": str(len(content)),
                    "X-Xet-Hash": sha256(content),
                    "Link": f'<{self.hub.address}/api/models/{name}/xet-read-token/main>; rel="xet-auth"',
                },
                b"",
            )

    def _refuse(self, status: int, code: str, message: str = "refused") -> None:
        self._send(status, {"X-Error-Code": code, "X-Error-Message": message}, b"{}")

    def _bytes(self, content: bytes, headers: dict[str, str]) -> None:
        status, start = 200, 0
        asked = self.headers.get("range")
        if asked and self.hub.ranges:
            start = int(asked.removeprefix("bytes=").split("-")[0])
            status = 206
            headers = {**headers, "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        self._send(status, headers, self.hub.damage(content)[start:], large=len(content) >= LARGE)

    def _send(self, status: int, headers: dict[str, str], body: bytes, large: bool = False) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        limit = self.hub.cut_after or self.hub.stop_after
        if large and limit is not None and len(body) > limit:
            self.wfile.write(body[:limit])
            self.wfile.flush()
            self.hub.sent += limit
            if self.hub.cut_after is not None:
                self.close_connection = True
                return
            self.hub.release.wait(60)
            body = body[limit:]
        try:
            self.wfile.write(body)
            self.hub.sent += len(body) if large else 0
        except OSError:
            self.close_connection = True  # the other side was killed


def serve() -> tuple[Hub, ThreadingHTTPServer]:
    """Start a hub on a free port of this machine; ``server.shutdown()`` ends it."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return hub, server


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until a condition holds, or fail."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)

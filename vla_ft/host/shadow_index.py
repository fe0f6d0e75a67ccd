"""A package index of one wheel on loopback, so that a lock can name a torch build whose index is out of reach.

Resolving needs a wheel's name, hash and metadata, not the wheel: with the metadata kept beside the lock, ``uv`` copies
the hash into the lock and downloads nothing. The same page serves every machine, so the lock does not depend on whether
torch's own index answered today.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote

from vla_ft.environment.table import Environment
from vla_ft.errors import UserError

METADATA = "torch.metadata"
"""File beside the lock: the wheel's core metadata, its dependencies in the main."""


def has_shadow(environment: Environment) -> bool:
    """Whether an environment's torch is not on the default index, so that its metadata lies beside the lock."""
    return (environment.folder / METADATA).is_file()


@contextmanager
def shadow_index(environment: Environment) -> Iterator[str]:
    """Serve the environment's torch wheel as a simple index; yields the index's address, closed on leaving."""
    path = environment.folder / METADATA
    metadata = path.read_bytes()
    stated = next((line[9:] for line in metadata.decode().splitlines() if line.startswith("Version: ")), None)
    if stated != environment.torch:
        raise UserError(
            f"{path} describes torch {stated}, environment.toml pins {environment.torch}. "
            "Copy the METADATA of the pinned wheel there."
        )
    pages = _pages(environment, metadata)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = pages.get(self.path)
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", found[0] if found else "text/plain")
            self.end_headers()
            self.wfile.write(found[1] if found else b"")

        def log_message(self, format: str, *args: object) -> None:
            """Requests are not worth a line each."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/simple"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _pages(environment: Environment, metadata: bytes) -> dict[str, tuple[str, bytes]]:
    """Path -> (content type, body): the project page and the wheel's metadata. The wheel itself is not there."""
    wheel = quote(environment.torch_wheel)
    digest = hashlib.sha256(metadata).hexdigest()
    link = (
        f'<a href="/files/{wheel}#sha256={environment.torch_sha256}" '
        f'data-core-metadata="sha256={digest}">{environment.torch_wheel}</a>'
    )
    page = f"<!DOCTYPE html><html><body>{link}</body></html>".encode()
    return {
        "/simple/torch/": ("text/html", page),
        f"/files/{wheel}.metadata": ("application/octet-stream", metadata),
    }

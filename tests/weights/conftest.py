"""A hub on this machine, an empty folder for weights, and no token or setting of the user's."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import hub_server
import pytest


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of all fetched weights."""
    monkeypatch.setenv("VLA_FT_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path / "weights"


@pytest.fixture
def hub(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_server.Hub]:
    """A running hub that ``HF_ENDPOINT`` names."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    found, server = hub_server.serve()
    monkeypatch.setenv("HF_ENDPOINT", found.address)
    monkeypatch.setenv("NO_PROXY", "*")
    hasty = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})  # it waits a second before it tries again
    monkeypatch.setattr("huggingface_hub.file_download.time", hasty)
    yield found
    found.release.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def said() -> list[str]:
    """What was said on screen; ``said.append`` is what says it."""
    return []

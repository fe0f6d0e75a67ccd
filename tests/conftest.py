"""Options and fixtures for the whole suite."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as vla_ft.cli does, before anything imports torch
if "PYTEST_XDIST_WORKER" in os.environ:  # one of several on this machine's cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# What tests compute must not outlive them in the user's own cache.
_cache = tempfile.TemporaryDirectory(prefix="vla-ft-test-cache-")
os.environ["VLA_FT_CACHE"] = _cache.name

TESTS = Path(__file__).resolve().parent


def existing_folder(text: str) -> Path:
    """The folder that a command-line word names."""
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"'{text}' is no folder")
    return path.resolve()


def default_golden_root() -> Path:
    """The shared folder beside the repository if it is there, else the small files that are committed."""
    shared = TESTS.parent.parent / "shared" / "golden"
    return shared if shared.is_dir() else TESTS / "golden" / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden-root",
        metavar="DIR",
        type=existing_folder,
        default=default_golden_root(),
        help="golden numbers to test against; default: ../shared/golden if it is there, else tests/golden/data",
    )


@pytest.fixture(scope="session")
def golden_root(pytestconfig: pytest.Config) -> Path:
    """Folder with the golden numbers, one sub-folder a policy or format."""
    return pytestconfig.getoption("--golden-root")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests under the mark ``gpu`` run where there is a card, and are skipped by name elsewhere."""
    if item.get_closest_marker("gpu") is not None:
        torch = pytest.importorskip("torch")
        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA card")

"""A golden test takes ``golden`` (a ``golden_files.Golden``) and names its files by a mark:
``@pytest.mark.golden_files("act/detrvae_*")``. It runs once per matching case under ``--golden-root``.
"""

from __future__ import annotations

from pathlib import Path

import golden_files
import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "golden_files(*patterns): run once per golden case that matches a pattern")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cases = golden_files.list_cases(metafunc.config.getoption("--golden-root"))
    if "golden_case" in metafunc.fixturenames:
        mark = metafunc.definition.get_closest_marker("golden_files")
        module = Path(str(metafunc.module.__file__)).name
        if mark is not None:
            cases = golden_files.cases_for(module, mark.args, cases)
        metafunc.parametrize("golden_case", cases)


@pytest.fixture
def golden(golden_root: Path, golden_case: str) -> golden_files.Golden:
    """The case's JSON and tensors."""
    return golden_files.load(golden_root, golden_case)

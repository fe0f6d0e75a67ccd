"""Every golden file is either tested or skipped by name; none is passed over in silence."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

import golden_files
import pytest


def test_case_is_covered(golden_case: str) -> None:
    answer = golden_files.coverage_of(golden_case)
    if not answer.endswith(".py"):
        pytest.skip(f"{golden_case}: {answer}")
    module = Path(__file__).parent / answer
    if not module.is_file():
        pytest.skip(f"{golden_case}: {answer} is not in this checkout")
    text = module.read_text()
    patterns = re.findall(r'"([a-z_0-9]+/[^"\s]+)"', text)
    named = golden_case.split("/")[1] in text or any(fnmatch.fnmatchcase(golden_case, p) for p in patterns)
    assert named, f"{answer} should test {golden_case} but names it nowhere"


def test_required_cases_are_here(golden_root: Path) -> None:
    """And committed, for a clone alone: there a test without its case passes with "got empty parameter set"."""
    for root in (golden_root, Path(__file__).parent / "data"):
        assert not set(golden_files.REQUIRED) - set(golden_files.list_cases(root)), root


def test_a_required_case_that_is_missing_is_run_and_fails(tmp_path: Path) -> None:
    (tmp_path / "pizero").mkdir()
    found = golden_files.cases_for("test_pizero_model.py", ["pizero/flow_un*", "pizero/flow_new"], [])
    assert found == ["pizero/flow_untied"]
    with pytest.raises(FileNotFoundError):
        golden_files.load(tmp_path, found[0])
    assert golden_files.cases_for("test_pizero_model.py", ["pizero/train_full"], []) == []
    assert golden_files.cases_for("test_act_model.py", ["act/*"], ["act/detrvae_x", "act/npy"]) == ["act/detrvae_x"]


def test_unknown_names_have_a_reason() -> None:
    assert golden_files.coverage_of("act/some_new_file") == "no test knows act/some_new_file"


def test_cases_join_json_tensors_and_folders(tmp_path: Path) -> None:
    for name in ("a.json", "a.safetensors", "b_expected.json", "c.pt", "README.md"):
        (tmp_path / "act" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "act" / name).touch()
    (tmp_path / "act" / "b").mkdir()
    assert golden_files.list_cases(tmp_path) == ["act/a", "act/b", "act/c"]

"""Every row of the ACT guide's troubleshooting tables is a condition that is detected, and a test provokes it.

The table below is row -> file -> test. Rows that need a card are provoked by a recorded text (``replayed``).
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
ROWS = {
    "CUDA out of memory": ("training/test_known_errors.py", "test_out_of_memory_names_the_batch_and_the_plan"),
    "Dataset not found": ("data/test_format_registry.py", "test_names_are_checked"),
    "No module named 'policy'": ("training/test_known_errors.py", "test_python_says_it_the_way_we_read_it"),
    "Loss not decreasing": ("training/test_symptoms.py", "test_loss_not_decreasing"),
    "Training very slow": ("training/test_symptoms.py", "test_a_real_run_that_waits_for_its_data_says_so_once"),
    "KL loss too high": ("training/test_symptoms.py", "test_kl_too_high"),
    "WandB not logging": ("training/test_tracking.py", "test_a_wandb_login_counts_as_well_as_a_key"),
    "CUDA error: no kernel image": ("training/test_known_errors.py", "test_causes_and_mends"),
    "GPU not detected": ("test_devices.py", "test_why_no_card_is_found"),
    "Rollout length mismatch": ("data/test_npy_format.py", "test_every_rule_is_told_under_the_guides_name"),
    "Invalid observation format": ("data/test_npy_format.py", "test_every_rule_is_told_under_the_guides_name"),
    "Loss exploding": ("training/test_symptoms.py", "test_loss_exploding"),
    "NaN in data": ("training/test_trainer.py", "test_nan_actions_are_found_before_training"),
    "NaN in a batch": ("training/test_symptoms.py", "test_numbers_that_are_not_finite_in_the_samples_are_named"),
    "Loss that is not finite": (
        "training/test_trainer.py",
        "test_a_loss_that_is_not_finite_stops_before_the_weights_change",
    ),
    "Slow convergence, encoder frozen?": (
        "training/test_symptoms.py",
        "test_slow_convergence_tells_whether_the_encoder_is_frozen",
    ),
}
REPLAYED = {"CUDA out of memory", "CUDA error: no kernel image"}
"""Rows whose test raises the recorded text in place of a card's failure."""


@pytest.mark.parametrize("row", ROWS)
def test_a_test_provokes_the_row(row):
    file, name = ROWS[row]
    tree = ast.parse((TESTS / file).read_text())
    (test,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    assert any(can_fail(node) for node in ast.walk(test)), f"{name} asserts nothing"
    marks = " ".join(ast.unparse(mark) for mark in test.decorator_list)
    assert "nightly" not in marks and "skip" not in marks, f"{name} does not run with the others"
    if row in REPLAYED:
        assert "replayed" in (ast.get_docstring(tree) or ""), f"{file} should say that {row} is replayed"


def can_fail(node: ast.AST) -> bool:
    """Whether a piece of a test looks at something: ``assert``, or ``pytest.raises``."""
    return isinstance(node, ast.Assert) or (isinstance(node, ast.Attribute) and node.attr == "raises")

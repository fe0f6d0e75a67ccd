"""The CI matrix is the table, reshaped."""

from __future__ import annotations

import json

import pytest

from vla_ft.environment.table import load_table
from vla_ft.errors import UserError
from vla_ft.host.matrix import matrix

TABLE = load_table()


def test_every_environment_is_built_with_its_lock():
    rows = matrix(TABLE)["build"]["include"]
    assert [row["environment"] for row in rows] == ["cpu", "cu118", "cu126", "cu128"]
    assert all(row["lock"] == TABLE.environment(row["environment"]).lock_hash for row in rows)
    assert json.loads(json.dumps(rows)) == rows


def test_every_card_is_in_one_gpu_row_of_its_architecture():
    rows = matrix(TABLE)["gpu"]["include"]
    named = [(name, row["environment"], row["sm"]) for row in rows for name in row["cards"].split()]
    assert sorted(named) == sorted((card.name, card.environment, card.sm) for card in TABLE.cards)
    assert all(row["runs-on"][-2:] == ["gpu", row["sm"]] for row in rows)
    keys = [(row["environment"], row["sm"]) for row in rows]
    assert len(keys) == len(set(keys)) and ("cu118", "sm_86") in keys and ("cu126", "sm_86") in keys


def test_runners_with_named_cards():
    rows = matrix(TABLE, ["RTX 5090", "a100"])["gpu"]["include"]
    assert [(row["environment"], row["runs-on"][-1]) for row in rows] == [("cu128", "rtx5090"), ("cu126", "a100")]
    with pytest.raises(UserError, match="Unknown card"):
        matrix(TABLE, ["rtx9999"])

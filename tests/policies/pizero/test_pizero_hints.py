"""A newcomer's mistakes: each answer says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from vla_ft.config import load_run_config
from vla_ft.errors import UserError
from vla_ft.policies.pizero.translate import translate

TRAIN = Path(__file__).parents[3] / "examples" / "open_pi_zero" / "config" / "train"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "train_vlm=False",
            r"'train_vlm'\. That is open-pi-zero's; here: False: `freeze=\[vlm\]`\..*from-open-pi-zero",
        ),
        ("data.train.dataset_mix=random", r"'data\.train\.dataset_mix'\..*`data\.path=mock data\.mock\.content=noise"),
        ("action_lr=1e-4", r"'action_lr'\..*`optimizer\.groups\.action\.lr`"),
        ("quantize=True", r"'quantize'\..*4-bit weights are not offered"),
        ("freze=[vlm]", r"^Unknown key 'freze'\. Did you mean 'freeze'\?"),
    ],
)
def test_open_pi_zeros_keys_on_our_command_line(word: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_run_config(["recipe=pizero-mock", word])


def test_only_its_own_policy_speaks_of_them() -> None:
    with pytest.raises(UserError) as mistake:
        load_run_config(["recipe=act-mock", "train_vlm=False"])
    assert "open-pi-zero" not in str(mistake.value)


def test_an_environment_variable_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLA_LOG_DIR", raising=False)
    with pytest.raises(UserError, match=r"needs the environment variable VLA_LOG_DIR: export VLA_LOG_DIR=\.\.\. first"):
        translate(str(TRAIN / "finetune.yaml"))

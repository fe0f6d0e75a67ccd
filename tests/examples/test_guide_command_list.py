"""The guide's commands from the committed list, which is there in CI too: each has an outcome, and each is understood.

Where the guide is here, the list is compared with it, and ``test_guide_commands`` types every one.
"""

from __future__ import annotations

import shlex

import pytest
from guide_project import PROJECT, TINY, script
from guide_text import GUIDE, Substitutions, blocks, commands, committed_commands
from omegaconf import OmegaConf

from policy.act.translator import read_guide_config, translate

TRAINING = [command for command in committed_commands() if "scripts/train_act.py" in command]


def test_there_are_as_many_as_the_guide_has():
    assert len(committed_commands()) == 20 and len(TRAINING) == 9
    assert len(set(committed_commands())) == 20


@pytest.mark.skipif(not GUIDE.is_file(), reason=f"the guide is not here: {GUIDE}")
def test_the_list_is_the_guides():
    found = [command for block in blocks("bash") for command in commands(block)]
    assert list(dict.fromkeys(found)) == committed_commands()


def test_every_row_is_needed_and_no_place_of_the_authors_is_left():
    table = Substitutions(on_card=False)
    typed = [table.typed(command, TINY) for command in committed_commands()]
    assert not any("/path/to" in line or "/home_shared" in line or "cuda " in line for line in typed)
    # The last two are in the guide's Python alone.
    assert set(table.stale()) <= {"torch.device('cuda')", "act-train-1000.pth"}


@pytest.mark.parametrize("documented", TRAINING)
def test_a_documented_training_command_becomes_a_run(documented, demos, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr("policy.act.weights.find_state", lambda weights: tmp_path)
    words = shlex.split(documented)
    words = words[words.index("scripts/train_act.py") + 1 :]
    words[words.index("--dataset_dir") + 1] = str(demos)
    called = script()
    options, rest = called._parser().parse_known_args(words)
    flags = called.read_flags(options)
    run = translate(read_guide_config(PROJECT / options.config, called.overrides(rest)), flags).run
    assert (run.policy, run.device, run.output) == ("act", "cuda", words[words.index("--output_dir") + 1])
    assert (run.logging.wandb == "offline") == ("--wandb_project" in words)
    assert run.resume == (str(tmp_path) if "--resume_from" in words else "auto")


def test_the_other_commands_name_what_is_here():
    for command in committed_commands():
        for word in shlex.split(command):
            if word.startswith(("configs/", "scripts/", "./", "sweep.yaml")):
                assert (PROJECT / word).is_file(), command
    assert OmegaConf.load(PROJECT / "sweep.yaml").program == "scripts/train_act.py"

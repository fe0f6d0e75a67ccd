"""Whatever a run says in the guide's project, the keys that it offers can be typed there."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import torch
from guide_project import PROJECT, TINY, script, train_act

from policy.act.advice import in_guide_words, own_keys
from policy.act.translator import FLAGS, GUIDE_WORDS, Flags, _run_config, read_guide_config, translate
from vla_ft.config import LoggingConfig, load_run_config
from vla_ft.data.formats.registry import open_dataset
from vla_ft.errors import UserError
from vla_ft.training import known_errors, wandb_run
from vla_ft.training.symptoms import JUDGES, Symptoms

CONFIG = PROJECT / "configs" / "policy_act.yaml"


def line(step: int, action: float, kl: float = 0.01, **more: float) -> dict[str, float]:
    return {"step": step, "action_loss": action, "kl_loss": kl, "total_loss": action + 10 * kl, **more}


LEARNING = [line(10 * i, 0.8 * 0.983**i + 0.02) for i in range(1, 300)]
BAD_RUNS = {
    "exploding": LEARNING[:99] + [line(1000 + 10 * i, 0.2 * 2**i) for i in range(1, 9)],
    "not_decreasing": [line(10 * i, 0.8) for i in range(1, 300)],
    "slow_convergence": [line(10 * i, 0.8 - 0.0006 * i) for i in range(1, 300)],
    "kl_too_high": [line(10 * i, 0.5 * 0.975**i + 0.1, kl=3.0) for i in range(1, 200)],
    "waiting_for_data": [one | {"waiting_share": 0.6, "gpu_utilization": 31.0} for one in LEARNING],
    "idle_card": [one | {"gpu_utilization": 22.0} for one in LEARNING],
}


@pytest.fixture
def run(demos, tmp_path):
    words = ["encoder.freeze=false", "batch_size=8", "num_workers=3"]
    return translate(
        read_guide_config(CONFIG, words), Flags(output_dir=str(tmp_path), device="cpu", dataset_dir=str(demos))
    ).run


def symptom(run, lines) -> str:
    said: list[str] = []
    symptoms = Symptoms(run, ("backbone", "action"), said.append)
    for one in lines:
        symptoms.look(one)
    return said[0]


def refusals(tmp_path) -> list[str]:
    """What readers and W&B say of mistakes that are made in this project."""
    np.save(tmp_path / "observations.npy", np.array([{"state": np.zeros(2)}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "actions.npy", np.zeros((1, 2)))
    np.save(tmp_path / "rollout_length.npy", np.array([1]))
    (tmp_path / "empty").mkdir()
    said = []
    for place, options in ((tmp_path, {}), (tmp_path / "empty", {}), (tmp_path / "none", {})):
        with pytest.raises(UserError) as mistake:
            open_dataset(place, **options)
        said.append(str(mistake.value))
    said.append(str(wandb_run.note(LoggingConfig(project="mine"))))
    return said


def errors(run) -> list[str]:
    """Every answer to a known error of torch and CUDA, with and without a run, from the table's own functions."""
    small = dataclasses.replace(run, batch=dataclasses.replace(run.batch, per_device=1))
    return [
        answer("Tried to allocate 2.00 GiB", one) for _, answer in known_errors._KNOWN for one in (run, small, None)
    ]


def offered_keys_can_be_typed(said: str, demos) -> int:
    """Assert it of a sentence; how many it offers."""
    # Commands are typed as they stand, and two flags are Docker's.
    plain = re.sub(r"`[^`]*`|vla-ft data convert .*|--ipc=host|--shm-size", "", said)
    left = [word for word in re.findall(r"(?<![\w.])[a-z_]+\.[a-z_.]*[a-z_]", plain) if word in own_keys()]
    assert not left, f"{left} is no key of the guide: {said}"
    assert not re.search(r"(?<![\w.-])(?:\w+\.)*\w+=", plain.replace("WANDB_MODE=", "").replace("batch=", "")), said
    found = re.findall(r"--(\w+(?:\.\w+)*)(?:=([^\s,;)]*[^\s,;).]))?", plain)
    known = {action for one in script()._parser()._actions for action in one.option_strings}
    for key, value in found:
        if f"--{key}" in known:
            continue
        if value:
            config = read_guide_config(CONFIG, ["encoder.freeze=false", f"{key}={value}"])
            _run_config(config, Flags(output_dir="x", device="cpu"), str(demos), steps_per_epoch=1, processes=1)
        else:
            assert key in GUIDE_WORDS.values() or key.removeprefix("vla_ft.") in own_keys(), said
    return len(found)


@pytest.mark.parametrize("name", BAD_RUNS)
def test_symptoms_offer_the_guides_keys(run, demos, name):
    plain = symptom(run, BAD_RUNS[name])
    assert any(key in plain for key in own_keys() if "." in key)
    offered_keys_can_be_typed(in_guide_words(plain), demos)


def test_every_symptom_is_tried():
    assert {judge.__name__ for judge in JUDGES} == set(BAD_RUNS)


def test_the_words_themselves(run):
    def said(name: str) -> str:
        return in_guide_words(symptom(run, BAD_RUNS[name]))

    assert "Lower lr (now 1e-05; try 5e-06) or reduce kl_weight (now 10; try 5)" in said("not_decreasing")
    assert "needs --encoder.freeze=true (parts here" in said("slow_convergence")
    assert "set --vla_ft.optimizer.clip_grad_norm=1, " in said("exploding")
    assert "Raise num_workers (now 3 per process)" in said("waiting_for_data")
    assert "raise batch_size (now 8), or set --vla_ft.compile=true." in said("idle_card")
    memory = in_guide_words(str(known_errors.explain(torch.OutOfMemoryError("CUDA out of memory."), run)))
    assert "batch_size is 8: try --batch_size=4 --vla_ft.batch.accumulation=2, the same global batch" in memory
    assert "`vla-ft plan recipe=act card=NAME`" in memory
    assert (
        in_guide_words("resume=runs/x/checkpoints/step_00000004.")
        == "--vla_ft.resume=runs/x/checkpoints/step_00000004."
    )
    assert in_guide_words("Free space or choose another output=.") == "Free space or choose another --output_dir."
    assert in_guide_words("data.json, --lr=3, 'policy', output") == "data.json, --lr=3, 'policy', output"


def test_errors_and_refusals_offer_the_guides_keys(run, demos, tmp_path):
    sentences = [*errors(run), *refusals(tmp_path), wandb_run._MEND]
    offered = [offered_keys_can_be_typed(in_guide_words(said), demos) for said in sentences]
    assert sum(offered) > 10
    assert any("--allow_pickle=true" in in_guide_words(said) for said in sentences)


def test_words_of_the_guide_are_keys_of_both_sides():
    from policy.act.translator import GuideConfig

    plain = dataclasses.asdict(GuideConfig())
    for own, word in GUIDE_WORDS.items():
        assert own in own_keys(), own
        section: object = plain
        for part in word.split("."):
            section = section[part]
    assert set(FLAGS) <= own_keys()
    assert {f"--{flag}" for flag in FLAGS.values()} <= {
        o for a in script()._parser()._actions for o in a.option_strings
    }


def test_the_recipe_of_a_run_is_one_that_can_be_typed(run):
    assert load_run_config([f"recipe={run.recipe}", "data.path=mock"]).policy == "act"


@pytest.mark.parametrize(
    ("word", "instead"),
    [("vla_ft.optimizer.lr=1e-3", "write lr"), ("vla_ft.steps=5", "write num_epochs"),
     ("vla_ft.model.chunk_size=3", "write chunk_size"), ("vla_ft.output=x", "write output_dir")],
)  # fmt: skip
def test_a_key_that_the_guide_has_a_word_for_is_refused_under_vla_ft(word, instead):
    with pytest.raises(UserError, match=f"{re.escape(word.partition('=')[0])} is not read.*{instead}"):
        read_guide_config(CONFIG, [word])


def test_mistakes_and_warnings_of_a_run_are_said_in_these_words(tmp_path, demos, capfd, monkeypatch):
    from vla_ft.training import symptoms, trainer

    monkeypatch.setattr(symptoms.Symptoms, "look", lambda self, line: self._say("Lower optimizer.lr, or engine=fsdp2"))
    words = ["--dataset_dir", demos, "--output_dir", tmp_path / "run", "--device", "cpu"]

    def out_of_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    assert train_act(words, [*TINY, "--num_epochs=1"]) == 0
    assert "vla-ft: Lower lr, or --vla_ft.engine=fsdp2\n" in capfd.readouterr().err
    monkeypatch.setattr(trainer, "update", out_of_memory)
    assert train_act([*words[:-3], tmp_path / "other", *words[-2:]]) == 2
    assert "batch_size is 8: try --batch_size=4 --vla_ft.batch.accumulation=2" in capfd.readouterr().err

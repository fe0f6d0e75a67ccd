"""The guide's rows on a run that goes badly: each is provoked, said once, and names cause and mend."""

from __future__ import annotations

import io
import math
import time

import pytest
from narrow_trunk import narrow_trunk
from rich.console import Console
from tiny_runs import TINY

from vla_ft.config import RunConfig, load_run_config
from vla_ft.errors import UserError
from vla_ft.training import trainer
from vla_ft.training.symptoms import JUDGES, History, Symptoms

PARTS = ("backbone", "action")


def config(*words: str) -> RunConfig:
    return load_run_config(
        [*TINY, "optimizer.lr=1e-5", "output=x", "freeze=[]", "optimizer.clip_grad_norm=null", *words]
    )


def line(step: int, action: float, kl: float = 0.01, **more: float) -> dict[str, float]:
    return {"step": step, "action_loss": action, "kl_loss": kl, "total_loss": action + 10 * kl, **more}


def said(lines, *words: str, before=()) -> list[str]:
    """What a run with these lines says, over 10 updates each."""
    found: list[str] = []
    symptoms = Symptoms(config(*words), PARTS, found.append)
    symptoms.remember(before)
    for one in lines:
        symptoms.look(one)
    return found


def learning(count: int = 300) -> list[dict[str, float]]:
    return [line(10 * i, 0.8 * math.exp(-i / 60) + 0.02, waiting_share=0.05) for i in range(1, count)]


def test_a_run_that_learns_says_nothing():
    assert said(learning()) == []
    fast = [one | {"gpu_utilization": 95.0} for one in learning()]
    assert said(fast) == []


def test_a_converged_run_is_not_a_flat_one():
    assert said(learning() + [line(3000 + i, 0.02) for i in range(500)]) == []


def test_loss_not_decreasing():
    (one,) = said([line(10 * i, 0.8 + 0.01 * (i % 3)) for i in range(1, 300)])
    assert one.startswith("Loss not decreasing: after 1,000 updates 100% of the first loss is left")
    for mend in ("Lower optimizer.lr (now 1e-05; try 5e-06)", "model.kl_weight (now 10; try 5)", "vla-ft data check"):
        assert mend in one


def test_slow_convergence_tells_whether_the_encoder_is_frozen():
    slowly = [line(10 * i, 0.8 - 0.0006 * i) for i in range(1, 300)]
    (one,) = said(slowly)
    assert one.startswith("Slow convergence: after 2,000 updates 8")
    assert "Raise optimizer.lr (now 1e-05; try 5e-05)" in one and "reduce model.kl_weight (now 10; try 5)" in one
    assert "Nothing is frozen" in one and "freeze=[...] (parts here: backbone, action)" in one
    (other,) = said(slowly, "freeze=[backbone]")
    assert "Frozen: backbone." in other


def test_loss_exploding():
    lines = learning(100) + [line(1000 + 10 * i, 0.2 * 2**i) for i in range(1, 9)]
    (one,) = said(lines)
    assert one.startswith("Loss exploding: ") and "it was 0." in one
    for mend in ("Lower optimizer.lr (now 1e-05; try 1e-06)", "optimizer.clip_grad_norm=1", "vla-ft data check"):
        assert mend in one
    (clipped,) = said(lines, "optimizer.clip_grad_norm=1")
    assert "set optimizer.clip_grad_norm" not in clipped


def test_a_single_bad_batch_is_no_explosion():
    assert said([*learning(100), line(1001, 50.0), *learning(300)[100:]]) == []


def test_kl_too_high():
    (one,) = said([line(10 * i, 0.5 * math.exp(-i / 40) + 0.1, kl=3.0) for i in range(1, 200)])
    assert one.startswith("KL loss too high: 99% of the loss is the KL term (kl_loss 3) after 500 updates")
    assert "reduce model.kl_weight (now 10; try 5)" in one


def test_the_high_kl_of_a_beginning_is_no_symptom():
    assert said([line(10 * i, 0.8 * math.exp(-i / 60), kl=20 * math.exp(-i / 8)) for i in range(1, 200)]) == []


def test_waiting_for_batches():
    (one,) = said([one | {"waiting_share": 0.62, "gpu_utilization": 31.0} for one in learning()], "data.workers=2")
    assert one.startswith("Training very slow: 62% of the time is spent waiting for batches and the card is busy 31 %")
    for mend in ("data.workers (now 2 per process)", "data.image_size", "frozen_features.parts"):
        assert mend in one


def test_a_card_that_is_not_busy_although_batches_are_ready():
    (one,) = said([one | {"gpu_utilization": 22.0} for one in learning()])
    assert one.startswith("Training very slow for this card: it is busy 22 % of the time")
    assert "batch.per_device (now 2)" in one and "compile=true" in one


def test_a_continued_run_looks_back_and_judges_only_what_is_new():
    flat = [line(10 * i, 0.8) for i in range(1, 300)]
    assert said([], before=flat) == []
    (one,) = said([line(3000, 0.8)], before=flat)
    assert "Loss not decreasing: after 3,000 updates" in one


def test_lines_without_a_training_loss_do_not_count():
    history = History()
    history.add({"step": 5, "val_loss": 1.0})
    assert history.count == 0 and math.isnan(history.now("total_loss"))


def test_every_judge_states_its_threshold():
    assert all(judge.__doc__ and any(c.isdigit() or "ten" in judge.__doc__ for c in judge.__doc__) for judge in JUDGES)


def test_a_real_run_that_waits_for_its_data_says_so_once(tmp_path, monkeypatch, capsys):
    """The loader is in the training process itself and made slow: the whole path, from the clock to the words."""
    usual = trainer.training_batches

    def slow(run, engine):
        for batch in usual(run, engine):
            time.sleep(0.1)
            yield batch

    monkeypatch.setattr(trainer, "training_batches", slow)
    words = ["steps=14", "batch.accumulation=1", "validation.every=99", "checkpoint.every=99", "logging.project=mine"]
    with narrow_trunk():
        trainer.train(load_run_config([*TINY, f"output={tmp_path}", *words]), Console(file=io.StringIO()))
    text = capsys.readouterr().err  # whatever console the caller gave
    assert text.count("Training very slow: ") == 1
    assert "Raise data.workers (now 0 per process)" in text
    assert "WandB is not logging: logging.project=mine is set, but logging.wandb=off" in text


def test_numbers_that_are_not_finite_in_the_samples_are_named(tmp_path, monkeypatch):
    usual = trainer.training_batches

    def spoiled(run, engine):
        for batch in usual(run, engine):
            batch["proprio"][0, 3] = float("nan")
            yield batch

    monkeypatch.setattr(trainer, "training_batches", spoiled)
    words = ["steps=2", "batch.accumulation=1"]
    told = r"Update 1 is not finite .*Its batch holds .*The samples themselves are not finite: proprio"
    with narrow_trunk(), pytest.raises(UserError, match=told):
        trainer.train(load_run_config([*TINY, f"output={tmp_path}", *words]))

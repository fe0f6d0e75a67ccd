"""Held-out numbers: of windows and steps, not of the batches in which they happen to come."""

from __future__ import annotations

import pytest
import torch
from narrow_trunk import narrow_trunk
from tiny_runs import TINY

from vla_ft.config import load_run_config
from vla_ft.errors import UserError
from vla_ft.training.trainer import train
from vla_ft.training.validation import COUNT, SAMPLES, STEPS, _by_dataset, _means, mean_of_dims

FROZEN = ("steps=1", "validation.every=1", "validation.samples=100", "batch.accumulation=1", "schedule.warmup_steps=0",
          "optimizer.lr=1e-30", "data.validation_fraction=0.5", "data.mock.min_length=7")  # fmt: skip


def held_out(output, *words):
    """The held-out numbers of a run whose weights stay what they were at the start."""
    with narrow_trunk():
        report = train(load_run_config([*TINY, f"output={output}", *FROZEN, *words]))
    return {name: value for name, value in report.metrics.items() if name.startswith("validation/")}


@pytest.mark.parametrize("latent", ["zero", "posterior"])
def test_numbers_do_not_depend_on_the_batch_size(tmp_path, latent):
    words = [f"model.eval_latent={latent}"]
    numbers = [held_out(tmp_path / str(size), f"batch.per_device={size}", *words) for size in (1, 3, 5)]
    # A posterior's noise is drawn batch by batch, so that its errors are others.
    compared = ("validation/kl",) if latent == "posterior" else tuple(numbers[0])
    for name in compared:
        assert [one[name] for one in numbers] == pytest.approx([numbers[0][name]] * 3, rel=1e-5), name
    if latent == "zero":
        assert numbers[0]["validation/loss"] == pytest.approx(numbers[0]["validation/action_l1"], rel=1e-5)
    else:
        kl, l1 = numbers[2]["validation/kl"], numbers[2]["validation/l1"]
        assert numbers[2]["validation/loss"] == pytest.approx(l1 + 10 * kl, rel=1e-5)


def test_a_share_of_which_nothing_was_held_out_is_said_and_refused_in_a_sweep(tmp_path, capfd, monkeypatch):
    one = ("data.mock.episodes=1", "steps=1", "validation.every=1")
    with narrow_trunk():
        report = train(load_run_config([*TINY, f"output={tmp_path / 'one'}", *one]))
        assert "val_loss" not in report.metrics
        said = capfd.readouterr().err
        assert "nothing is held out" in said and "data.validation_fraction=0.2" in said and "1 episode" in said
        monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
        with pytest.raises(UserError, match=r"sweep.*val_loss"):
            train(load_run_config([*TINY, f"output={tmp_path / 'trial'}", *one]))
        monkeypatch.delenv("WANDB_SWEEP_ID")
        train(load_run_config([*TINY, f"output={tmp_path / 'none'}", *one, "data.validation_fraction=0"]))
    assert "held out" not in capfd.readouterr().err


def test_a_mean_is_over_the_dimensions_that_a_robot_has():
    error = torch.zeros(2, 3, 128)
    error[0, :, [0, 1]], error[1, :, 60] = 0.5, torch.tensor([1.0, 2.0, 3.0])
    dims = torch.zeros(2, 128)
    dims[0, [0, 1, 2, 3]], dims[1, 60] = 1, 1
    assert mean_of_dims(error, dims).tolist() == [[0.25] * 3, [1.0, 2.0, 3.0]]
    assert mean_of_dims(error, None)[1].tolist() == pytest.approx([1 / 128, 2 / 128, 3 / 128])


class Alone:
    """An engine of one process, as far as means are concerned."""

    device = torch.device("cpu")

    def broadcast(self, value):
        return value

    def sum(self, values):
        return values


def test_a_measure_of_each_sample_is_told_by_dataset():
    names, totals = ("a", "b", "c"), {COUNT[SAMPLES]: 5.0, COUNT[STEPS]: 9.0, ("loss", SAMPLES): 10.0}
    batches = [([1.0, 2.0, 6.0], [0, 1, 0]), ([5.0, 2.0], [0, 0])]
    for values, numbers in batches:
        for key, value in _by_dataset("sample_mse", torch.tensor(values), torch.tensor(numbers), names).items():
            totals[key] = totals.get(key, 0.0) + value
    means = _means(totals, Alone(), "validation")
    assert means == {"validation/loss": 2.0, "validation/a_sample_mse": 3.5, "validation/b_sample_mse": 2.0}

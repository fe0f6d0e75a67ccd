"""Exported weights equal the trained ones, adapters merged, from files that may be several."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from engine_runs import single
from narrow_trunk import narrow_trunk
from safetensors.torch import load_file, save_file

from vla_ft.checkpoints import STATISTICS, write_manifest
from vla_ft.cli import main
from vla_ft.data.statistics import DatasetStatistics
from vla_ft.deployment.predictor import Predictor
from vla_ft.deployment.weights import TrainedWeights, build_plain, read_facts
from vla_ft.errors import UserError
from vla_ft.policies.registry import load_policy
from vla_ft.tensor_stream import Entry, TensorReader, TensorWriter
from vla_ft.training.preparation import prepare_model

STEP = "step_00000003"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run with adapters and no average, whose action part is float32."""
    output = tmp_path_factory.mktemp("run")
    single(output, "steps=3", "lora.action.rank=2", "lora.action.alpha=6", "freeze=[backbone]", "ema=null",
           "optimizer.lr=0.05", "schedule.name=constant")  # fmt: skip
    return output


def split(folder):
    """Lay the weights of a checkpoint out over several files, as large ones are."""
    with TensorReader(folder, "model") as reader:
        tensors = {name: reader.tensor(name) for name in reader.entries}
    (folder / "model.safetensors").unlink()
    writer = TensorWriter(folder, "model", [Entry(n, tuple(t.shape), t.dtype) for n, t in tensors.items()], 2**14)
    for value in tensors.values():
        writer.write(value)
    writer.finish()
    assert len(list(folder.glob("model-*"))) > 2
    (folder / "manifest.json").unlink()
    write_manifest(folder, {"step": 3, "policy": "act"})


def test_merged_weights_predict_what_the_adapters_predict(run, tmp_path):
    checkpoint = run / "checkpoints" / STEP
    config, description = read_facts(checkpoint)
    statistics = DatasetStatistics.load(checkpoint / STATISTICS)
    sample = {"image_top": np.full((32, 32, 3), 90, np.uint8), "proprio": np.zeros(description.proprio_dim)}
    with narrow_trunk():
        merged = Predictor.load(run)
        adapted = build_plain(config, description)
        prepare_model(adapted, config)
        adapted.load_state_dict(load_file(checkpoint / "model.safetensors"))
        processor = load_policy("act").build_processor(config.model, description, statistics)
        expected = Predictor(config, description, processor, adapted, torch.device("cpu")).predict(sample)
        np.testing.assert_allclose(merged.predict(sample), expected, atol=1e-6)
        fresh = dict(build_plain(config, description).named_parameters())
    kept = dict(merged.model.named_parameters())
    assert fresh.keys() == kept.keys()
    ups = [v for n, v in load_file(checkpoint / "model.safetensors").items() if ".lora_B." in n]
    assert any(v.abs().max() > 0.01 for v in ups), "the adapters hardly trained: nothing was tested"


def test_one_command_and_split_files(run, tmp_path, capsys):
    assert main(["export", f"checkpoint={run}", f"output={tmp_path / 'one.safetensors'}"]) == 0
    assert "the last weights of step 3, adapters of action merged" in capsys.readouterr().out
    split(run / "checkpoints" / STEP)
    words = [f"checkpoint={run}", f"output={tmp_path / 'two.safetensors'}"]
    assert main(["export", *words]) == 0
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    half = tmp_path / "half.safetensors"
    assert main(["export", f"checkpoint={run}", f"output={half}", "dtype=bf16"]) == 0
    assert {value.dtype for value in load_file(half).values()} == {torch.bfloat16}
    with narrow_trunk():
        Predictor.load(run)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half.safetensors", "one.safetensors",
                                                                "two.safetensors"]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("weights=average",), "holds no average"),
        (("output=x.pth",), "must end in .safetensors"),
        (("output=nowhere/x.safetensors",), "its folder does not exist"),
        (("wieghts=last",), "Did you mean 'weights'?"),
    ],
)
def test_mistakes(run, tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(["export", f"checkpoint={run}", "output=y.safetensors", *words]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_whose_layer_shares_its_weight_is_refused(run, tmp_path):
    """Tied layers appear under one name; merging by the other's adapter would leave that one out."""
    step = shutil.copytree(run / "checkpoints" / STEP, tmp_path / STEP)
    with TensorReader(step, "model") as reader:
        tensors = {name: reader.tensor(name) for name in reader.entries}
    for file in step.glob("model*"):  # one file, or several with an index
        file.unlink()
    lost = next(name for name in tensors if name.endswith(".base_layer.weight"))
    save_file({name: value for name, value in tensors.items() if name != lost}, step / "model.safetensors")
    config, description = read_facts(step)
    with narrow_trunk(), pytest.raises(UserError, match="shared with another layer"):
        TrainedWeights(step, build_plain(config, description), config)

"""From a dataset alone to a recipe that trains, in every format, with what could not be known said."""

from __future__ import annotations

import dataclasses
import sys
import types

import numpy as np
import pytest
from any_format import DESCRIPTION, FORMATS, break_episode, write_set

from vla_ft.cli import main
from vla_ft.config import DataConfig, load_run_config, read_recipe
from vla_ft.data.formats.registry import open_dataset
from vla_ft.data.sample import DatasetDescription
from vla_ft.data.statistics import DatasetStatistics, compute_statistics, statistics_cache
from vla_ft.data.wrapping import WrappedReader
from vla_ft.inspection.unknowns import unknowns
from vla_ft.policies import act, registry

NARROW = (
    "steps=2", "batch.per_device=2", "model.hidden_dim=16", "model.heads=2", "model.feedforward_dim=16",
    "model.encoder_layers=1", "model.decoder_layers=1", "model.vae_encoder_layers=1", "data.workers=0",
    "freeze=[backbone]", "logging.every=1", "validation.samples=2",
)  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VLA_FT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VLA_FT_RUNS", str(tmp_path / "runs"))


def drafted(path, tmp_path, *words):
    """The exit code, and the file's text where there is one."""
    file = tmp_path / "mine.yaml"
    code = main(["recipe", "from-data", str(path), "policy=act", f"output={file}", *words])
    return code, file.read_text() if file.is_file() else ""


@pytest.mark.parametrize("format", FORMATS)
def test_the_recipe_trains_as_it_is(tmp_path, capsys, format):
    path = write_set(tmp_path / "set", format)
    code, text = drafted(path, tmp_path)
    said = capsys.readouterr().out
    assert code == 0, said
    config = load_run_config([f"recipe={tmp_path / 'mine.yaml'}"])
    assert (config.data.path, config.data.format) == (str(path), format)
    assert config.data.cameras == ("top", "wrist")
    assert config.model.chunk_size == 5, "one second"
    assert config.batch.per_device == 8 and config.steps == 20000
    assert "5 Hz" in text and "top 32x40, wrist 32x40" in text
    kept = list(statistics_cache().glob("*.json"))
    assert len(kept) == 1 and kept[0].name in text
    assert main(["train", f"recipe={tmp_path / 'mine.yaml'}", *NARROW]) == 0
    used = tmp_path / "runs" / "mine" / "checkpoints" / "step_00000002" / "statistics.json"
    assert DatasetStatistics.load(used).source_hash == kept[0].stem, "the run finds the statistics"
    knows_all = format in ("npy", "npz", "rlds")
    assert ("whether actions are joints" in said) == (format == "lerobot")
    assert ("what the dimensions of action are called" in said) == (format == "aloha_hdf5")
    assert ("the units of action" in said) == (not knows_all)
    assert all(line.strip("- ")[:40] in text for line in said.splitlines() if line.startswith("  - "))


def test_what_the_user_says_is_in_the_recipe_and_no_longer_unknown(tmp_path, capsys):
    path = write_set(tmp_path / "set", "lerobot")
    words = (
        "data.action_kind=joint",
        "data.action_mode=absolute",
        "data.cameras=[wrist]",
        "data.validation_fraction=0",
    )
    assert drafted(path, tmp_path, *words)[0] == 0
    assert "whether actions" not in capsys.readouterr().out
    data = load_run_config([f"recipe={tmp_path / 'mine.yaml'}"]).data
    assert (data.action_kind, data.action_mode, data.cameras) == ("joint", "absolute", ("wrist",))
    assert data.validation_fraction == 0


def test_an_assumed_rate_is_written_and_said(tmp_path, capsys):
    import h5py

    path = write_set(tmp_path / "set", "aloha_hdf5")
    for file in path.glob("*.hdf5"):
        with h5py.File(file, "r+") as episode:
            del episode.attrs["fps"], episode.attrs["language_instruction"]
    code, text = drafted(path, tmp_path)
    said = capsys.readouterr().out
    assert code == 0 and "fps: 50.0  # assumed" in text
    assert "fps is assumed: 50" in said and "no episode has an instruction" in said
    assert "4 of 4 episodes are shorter than a chunk of 50 steps" in said


def test_a_mixture(tmp_path, capsys):
    for name in ("left", "right"):
        write_set(tmp_path / "sets" / name, "npz")
    words = ("data.mix.left.path=left", "data.mix.right.weight=2")
    assert drafted(tmp_path / "sets", tmp_path, *words)[0] == 0, capsys.readouterr()
    data = load_run_config([f"recipe={tmp_path / 'mine.yaml'}"]).data
    assert data.mix["right"].weight == 2 and data.mix["left"].path == "left"


def test_damage_is_an_error_or_a_note(tmp_path, capsys):
    path = write_set(tmp_path / "set", "npz")
    break_episode(path, "npz", 1)
    code, text = drafted(path, tmp_path)
    assert (code, text) == (2, "") and "episode_000001.npz" in capsys.readouterr().err
    code, text = drafted(path, tmp_path, "data.on_damage=skip")
    assert code == 0 and "on_damage: skip" in text and "1 of 4 episodes left out" in text


def test_mistakes_leave_no_file(tmp_path, capsys):
    path = write_set(tmp_path / "set", "npz")
    (tmp_path / "mine.yaml").write_text("mine")
    assert drafted(path, tmp_path) == (2, "mine")
    assert main(["recipe", "from-data", "policy=act"]) == 2
    assert main(["recipe", "from-dta", str(path)]) == 2
    assert main(["recipe", "from-data", str(path), "policy=atc", f"output={tmp_path / 'x.yaml'}"]) == 2
    assert main(["recipe", "from-data", str(path), "policy=act", "base=nothing", f"output={tmp_path / 'x.yaml'}"]) == 2
    said = capsys.readouterr().err
    for sentence in ("exists already", "takes one dataset", "Did you mean 'from-data'", "'act'", "Unknown recipe"):
        assert sentence in said
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["mine.yaml"]


def test_a_policy_without_suggestions_has_its_defaults(tmp_path, monkeypatch, capsys):
    silent = types.ModuleType("silent_policy")
    for name in ("Config", "build_model", "build_processor", "load_weights"):
        setattr(silent, name, getattr(act, name))
    monkeypatch.setitem(sys.modules, "silent_policy", silent)
    monkeypatch.setitem(registry.POLICIES, "silent", "silent_policy")
    path = write_set(tmp_path / "set", "npz")
    assert main(["recipe", "from-data", str(path), "policy=silent", f"output={tmp_path / 'mine.yaml'}"]) == 0
    config = load_run_config([f"recipe={tmp_path / 'mine.yaml'}"])
    assert config.model == act.Config() and config.policy == "silent"
    assert "makes no suggestions" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("size", "fps", "expected"),
    [
        ((480, 640), 50.0, {"chunk_size": 50, "image_size": None}),
        ((1080, 1920), 29.97, {"chunk_size": 30, "image_size": [480, 856]}),
        ((224, 224), 0.0, {"image_size": None}),
        ((224, 224), 0.2, {"chunk_size": 1, "image_size": None}),
    ],
)
def test_what_act_suggests(size, fps, expected):
    about = DatasetDescription.from_json({**DESCRIPTION.to_json(), "cameras": {"top": size}, "fps": fps})
    statistics = DatasetStatistics(features={}, source_hash="")
    assert act.suggest(about, statistics) == expected
    assert np.all(np.array(expected["image_size"] or [8]) % 8 == 0)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, False),
        ({"gripper_dims": ()}, False),  # its name says it
        ({"gripper_dims": (), "action_names": ("x", "y", "z")}, True),
        ({"gripper_dims": (), "gripper": "unknown"}, True),
    ],
)
def test_a_gripper_that_no_dimension_is_marked_as(tmp_path, change, told):
    reader = WrappedReader(open_dataset(write_set(tmp_path / "set", "npz")))
    reader.description = dataclasses.replace(reader.description, **change)
    notes = unknowns(reader, compute_statistics(reader, [0]), None)
    assert any("which action is the gripper" in note for note in notes) == told


def test_options_may_be_written_with_dashes(tmp_path):
    path, file = write_set(tmp_path / "set", "npz"), tmp_path / "mine.yaml"
    words = ["--policy", "act", f"--output={file}", "--data.fps", "7"]
    assert main(["recipe", "from-data", str(path), *words]) == 0
    assert load_run_config([f"recipe={file}"]).policy == "act"


def pizero_set(tmp_path, **words):
    """A mock set in npz, of one camera of 48x64."""
    given = {"episodes": 2, "min_length": 6, "max_length": 7, "action_dim": 7, "format": "npz", **words}
    texts = [f"{key}={value}" for key, value in given.items()]
    assert main(["data", "mock", f"output={tmp_path / 'sets'}", *texts]) == 0
    return next((tmp_path / "sets").glob("mock_*"))


@pytest.mark.parametrize(
    ("words", "start", "periods"),
    [
        ({}, "pizero-bridge", 10000.0),
        ({"action_dim": 14}, "paligemma-3b-pt-224", 100.0),
        ({"content": "noise", "proprio_dim": 9}, "paligemma-3b-pt-224", 100.0),
        ({"content": "noise", "proprio_dim": 8}, "paligemma-3b-pt-224", 100.0),
    ],
)
def test_a_recipe_of_pizero_starts_with_weights_that_fit(tmp_path, capsys, words, start, periods):
    path, file = pizero_set(tmp_path, **words), tmp_path / "mine.yaml"
    assert main(["recipe", "from-data", str(path), "policy=pizero", f"output={file}"]) == 0, capsys.readouterr().err
    said, config = capsys.readouterr().out, load_run_config([f"recipe={file}"])
    width = words.get("action_dim", 7)
    assert (config.model.action_dim, config.model.proprio_dim) == (width, words.get("proprio_dim", width))
    assert config.init.path == start
    assert (config.model.expert_rope_theta, config.model.time_period) == (periods, periods)
    assert config.data.image_size == (224, 224) and config.data.augmentation == "pizero"
    assert ("starts from PaliGemma with fresh experts" in said) == (start != "pizero-bridge")
    assert ("movements of the end effector, this data's actions are others" in said) == (start == "pizero-bridge")


def test_a_word_that_says_the_default_is_not_overruled_by_the_base(tmp_path, capsys):
    """pizero-finetune augments and has 4 workers: what was said stands, also where it is the default."""
    path, file, usual = pizero_set(tmp_path), tmp_path / "mine.yaml", DataConfig(path="mock")
    assert usual.augmentation == "none" and usual.workers != read_recipe("pizero-finetune")["data"]["workers"]
    words = ["recipe", "from-data", str(path), "policy=pizero", f"output={file}", f"data.workers={usual.workers}"]
    assert main([*words, "--data.augmentation=none"]) == 0, capsys.readouterr().err
    data = load_run_config([f"recipe={file}"]).data
    assert (data.augmentation, data.workers, data.image_size) == ("none", usual.workers, (224, 224))
    assert "augmentation: none" in file.read_text()


def test_pizero_on_fractals_dimensions_starts_from_fractal():
    from vla_ft.data.standardize.base import ACTION_NAMES, POSE_QUATERNION
    from vla_ft.policies import pizero

    units = {"action_units": ("",) * 7, "proprio_units": ("",) * 8}
    about = dataclasses.replace(DESCRIPTION, action_names=ACTION_NAMES, proprio_names=POSE_QUATERNION, **units)
    base, notes = pizero.adapt(read_recipe("pizero-finetune"), about)
    assert base["init"] == {"path": "pizero-fractal", "layout": "open-pi-zero"} and notes == []
    own = {**base, "init": {"path": "paligemma-3b-pt-224", "layout": "paligemma"}}
    assert pizero.adapt(own, about) == (own, [])


def test_pizero_asks_which_of_two_cameras(tmp_path, capsys):
    path = pizero_set(tmp_path, cameras="[front,wrist]")
    words = ["recipe", "from-data", str(path), "policy=pizero", f"output={tmp_path / 'mine.yaml'}"]
    assert main(words) == 2 and "data.cameras=[front]" in capsys.readouterr().err
    assert main([*words, "data.cameras=[wrist]"]) == 0

"""``load_vla`` and ``predict_action`` as the document calls them, on small published files."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cogact_examples import HORIZON, model, publish, samples
from PIL import Image

from vla_ft.errors import UserError
from vla_ft.policies.cogact import build_processor
from vla_ft.policies.cogact.inference import CogActVla, in_units, load_vla
from vla_ft.weights.catalogue import find_entry
from vla_ft.weights.places import FileRecord, Record, place_of

ROOT = Path(__file__).parents[3]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A published run of a small model that knows two datasets."""
    publish(tmp_path / "run", model(), names=("arm", "other"))
    return tmp_path / "run"


def picture(seed: int = 0, size: tuple[int, int] = (40, 32)) -> Image.Image:
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def loaded(run: Path, **settings: Any) -> CogActVla:
    return load_vla(run, tokenizer="stand-in", **settings)


def act(vla: CogActVla, seed: int = 0, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """One step from the middle of the diffusion: more would drive what a random head predicts against the bounds."""
    torch.manual_seed(seed)
    options = {"num_ddim_steps": 1, **options}
    return vla.predict_action(picture(), "move sponge near apple", unnorm_key="arm", **options)


def test_the_documents_call(run: Path) -> None:
    vla = load_vla(
        str(run), load_for_training=False, action_model_type="DiT-mock", future_action_window_size=HORIZON - 1,
        tokenizer="stand-in",
    )  # fmt: skip
    vla.to("cpu").eval()
    actions, normalized = act(vla, cfg_scale=1.5, use_ddim=True, num_ddim_steps=10)
    assert actions.shape == normalized.shape == (HORIZON, 7)
    assert np.abs(normalized).max() <= 1 and set(np.unique(normalized[:, 6])) <= {0.0, 1.0}
    np.testing.assert_allclose(actions[:, :6], normalized[:, :6] + 2, atol=1e-6)
    assert np.array_equal(actions[:, 6], normalized[:, 6])
    assert not any(p.requires_grad for p in vla.parameters()) and not any(p.is_meta for p in vla.parameters())
    assert vla.get_action_dim("arm") == 7 and vla.get_action_stats("arm")["q99"] == [3.0] * 7


def test_the_vision_language_model_in_half(run: Path) -> None:
    vla = loaded(run)
    whole, _ = act(vla)
    vla.vlm = vla.vlm.to(torch.bfloat16)
    half, _ = act(vla)
    assert vla.head.positional_embedding.dtype == torch.float32
    assert 0 < np.abs(half - whole)[:, :6].max() < 0.2


def test_options_change_what_they_name(run: Path) -> None:
    vla = loaded(run)
    usual = act(vla)[1]
    assert np.array_equal(act(vla)[1], usual), "the same seed"
    for options in ({"cfg_scale": 1.0}, {"num_ddim_steps": 2}, {"use_ddim": False}):
        assert not np.array_equal(act(vla, **options)[1], usual), options
    assert np.array_equal(act(vla)[1], usual), "no sampler is left over from another call"
    with pytest.raises(UserError, match="DDIM cannot take 11 of 100"):
        act(vla, num_ddim_steps=11)


def test_a_batch_is_its_samples(run: Path) -> None:
    vla = loaded(run)
    noise = torch.randn(2, HORIZON, 7, generator=torch.Generator().manual_seed(0))
    told = ["close the drawer", "put the carrot on the very large plate"]
    pictures = [picture(1), picture(2, (64, 64))]
    actions, normalized = vla.predict_action_batch(pictures, told, "other", num_ddim_steps=1, noise=noise)
    assert actions.shape == (2, HORIZON, 7)
    for i in range(2):
        alone = vla.predict_action(pictures[i], told[i], "other", num_ddim_steps=1, noise=noise[i : i + 1])
        assert len(np.unique(alone[1])) > 10
        np.testing.assert_allclose(alone[1], normalized[i], atol=1e-5)
    with pytest.raises(UserError, match="2 pictures with 1 instructions"):
        vla.predict_action_batch(pictures, told[:1], "other")


def test_it_predicts_what_the_trained_policy_predicts(run: Path) -> None:
    """The processor's batch and the published call go through the same numbers."""
    from cogact_examples import batch, description, small_config, statistics

    vla = loaded(run)
    sample = samples(1)[0]
    noise = torch.randn(1, HORIZON, 7, generator=torch.Generator().manual_seed(3))
    trained = model().eval()
    with torch.no_grad():
        raw = trained.denoise(trained.cognition(batch(1)), noise, num_ddim_steps=1)
    expected = build_processor(small_config(), description(), statistics()).unnormalize(raw)[0]
    image = Image.fromarray(sample["observation"]["image_primary"][0])
    told = sample["task"]["language_instruction"]
    actions, _ = vla.predict_action(image, told, "arm", num_ddim_steps=1, noise=noise)
    np.testing.assert_allclose(actions, expected, atol=1e-5)


def test_for_training(run: Path) -> None:
    vla = loaded(run, load_for_training=True)
    trained = [name for name, p in vla.named_parameters() if p.requires_grad]
    assert vla.training and trained and "vlm.llm.lm_head.weight" not in trained
    with pytest.raises(UserError, match="Unknown unnorm_key 'bridge'"):
        vla.predict_action(picture(), "go", "bridge")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"action_model_type": "DiT-B"}, "holds the head DiT-mock, the configuration DiT-B"),
        ({"future_action_window_size": 15}, "predicts 4 actions, the configuration 16"),
    ],
)
def test_what_does_not_match_the_weights(run: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        loaded(run, **settings)


def test_bad_input_is_named(run: Path) -> None:
    vla = loaded(run, max_tokens=30)
    for bad, seen in ((picture().convert("L"), "mode L"), (picture().convert("RGBA"), "mode RGBA"), (None, "NoneType")):
        with pytest.raises(UserError, match=f"{seen}; CogACT sees RGB"):
            vla.predict_action(bad, "go", "arm")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"Whose units\? This model knows arm, other"):
        vla.predict_action(picture(), "go")
    with pytest.raises(UserError, match="Did you mean 'other'"):
        vla.predict_action(picture(), "go", "othr")
    with pytest.raises(UserError, match="the model takes 30"):
        vla.predict_action(picture(), "go " * 50, "arm")
    vla.norm_stats["narrow"] = {"action": {key: [0.0] * 6 for key in ("q01", "q99")}}
    with pytest.raises(UserError, match="'narrow' have 6 action dimensions, the model 7"):
        vla.predict_action(picture(), "go", "narrow")


def test_a_run_without_statistics_is_refused(run: Path) -> None:
    statistics = run / "dataset_statistics.json"
    statistics.write_text("[]")
    with pytest.raises(UserError, match="no statistics by dataset"):
        loaded(run)
    statistics.write_text("{")
    with pytest.raises(UserError, match="is no JSON"):
        loaded(run)
    statistics.unlink()
    with pytest.raises(UserError, match=r"no dataset_statistics\.json in .*format=cogact"):
        loaded(run)
    parts = torch.load(run / "checkpoints/CogACT-Tiny.pt", weights_only=True)["model"]
    del parts["action_model"]
    with pytest.raises(UserError, match="layout 'prismatic', without a published head"):
        loaded(publish(run / "vlm", model(), parts))


def test_by_the_name_that_it_was_fetched_by(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLA_FT_WEIGHTS", str(tmp_path / "weights"))
    with pytest.raises(UserError, match="vla-ft fetch cogact-base"):
        load_vla("CogACT/CogACT-Base")
    entry = find_entry("cogact-base")
    folder = place_of(entry)
    folder.parent.mkdir(parents=True)
    run.rename(folder)
    (folder / "checkpoints/CogACT-Tiny.pt").rename(folder / entry.load)
    files = {name: FileRecord(bytes=(folder / name).stat().st_size) for name in entry.files}
    Record("cogact-base", "", None, "", entry.load, "pinned", files, complete=True).write(folder)
    for name in ("CogACT/CogACT-Base", "cogact-base"):
        assert load_vla(name, tokenizer="stand-in").config.action_model_type == "DiT-mock"
    with pytest.raises(UserError, match="llama-2-tokenizer"):
        load_vla("cogact-base")


def test_without_a_mask_everything_is_scaled() -> None:
    entry = {"action": {"mean": [0] * 7, "q01": [0.0] * 7, "q99": [2.0] * 7}}
    actions, normalized = in_units(np.full((1, 7), 0.6, np.float32), entry)
    assert normalized[0].tolist() == pytest.approx([0.6] * 6 + [1]) and actions[0].tolist() == pytest.approx(
        [1.6] * 6 + [2]
    )


def test_the_documents_import_works_in_the_example_folder(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples" / "cogact")
    try:
        vla = importlib.import_module("vla").load_vla(str(run), load_for_training=False, tokenizer="stand-in")
    finally:
        sys.modules.pop("vla", None)
    assert isinstance(vla, CogActVla) and vla.config.horizon == HORIZON

"""config.json of published weights, in both forms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vla_ft.errors import UserError
from vla_ft.policies.rdt.config import Config, LanguageConfig, VisionConfig
from vla_ft.policies.rdt.published_config import published_values, read_config, refuse_other

pytestmark = pytest.mark.golden_files("rdt/hub_config_example")


def tiny(**changes: object) -> Config:
    return Config(
        **{
            "hidden_size": 64,
            "depth": 3,
            "heads": 4,
            "chunk_size": 8,
            "vision": VisionConfig(image_size=28, hidden_size=20, depth=1, heads=2, feedforward_dim=8),
            "language": LanguageConfig(width=24, max_tokens=12),
            **changes,
        }
    )


def test_flat_form_is_read_and_written(golden_root: Path, golden_case: str) -> None:
    path = golden_root / f"{golden_case}.json"
    values = read_config(path)
    assert values == published_values(tiny()) == json.loads(path.read_text())
    refuse_other(values, tiny(), "the file")


def test_nested_form_is_the_same(golden_root: Path, golden_case: str, tmp_path: Path) -> None:
    flat = json.loads((golden_root / f"{golden_case}.json").read_text())
    inside = {key: flat.pop(key) for key in ("rdt", "noise_scheduler", "ema", "lang_adaptor", "img_adaptor")}
    nested = tmp_path / "config.json"
    nested.write_text(json.dumps({**flat, "config": inside}))
    assert read_config(nested) == read_config(golden_root / f"{golden_case}.json")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"heads": 8}, "rdt.num_heads 4 .here 8."),
        ({"prediction": "epsilon"}, "noise_scheduler.prediction_type 'sample'"),
        ({"train_steps": 500}, "num_train_timesteps 1000"),
    ],
)
def test_what_weights_cannot_show_is_refused(
    golden_root: Path, golden_case: str, change: dict[str, object], told: str
) -> None:
    values = read_config(golden_root / f"{golden_case}.json")
    with pytest.raises(UserError, match=told):
        refuse_other(values, tiny(**change), "the file")


def test_solver_steps_are_free(golden_root: Path, golden_case: str) -> None:
    refuse_other(read_config(golden_root / f"{golden_case}.json"), tiny(inference_steps=10), "the file")

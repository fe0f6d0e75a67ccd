"""Two small ACT checkpoints with drawn weights, and the observations to run them on.

``python lerobot_export_case.py DIR`` writes them, their exports and the observations, for ``run_in_lerobot.py``.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from vla_ft.checkpoints import CONFIGURATION, DESCRIPTION, STATISTICS, write_json, write_manifest
from vla_ft.config import RunConfig, load_run_config
from vla_ft.data.sample import DatasetDescription
from vla_ft.data.statistics import DatasetStatistics, FeatureStatistics
from vla_ft.deployment.export import ExportConfig, export
from vla_ft.deployment.weights import build_plain

CASES = {
    # What LeRobot is of, how the run was configured, how many observations.
    "lerobot": (
        "model.decoder_layers=2", "model.chunk_size=5", "execution.steps=3", "model.image_size=[40,48]",
    ),
    # Of seven layers the first is read, as published; another activation; the average of all chunks.
    "lerobot03": (
        "model.decoder_layers=3", "model.decoder_output=first", "model.chunk_size=4", "model.camera_layout=width",
        "model.pad_head=true", "model.activation=gelu", "model.kl_reduction=mean", "model.image_size=null",
        "execution.temporal_ensemble=true", "execution.ensemble_coefficient=0.05",
    ),
}  # fmt: skip
"""Export format -> what its run was configured with."""
COUNT = 8
DESCRIPTION_OF_BOTH = DatasetDescription(
    name="drawn", fps=10.0, cameras={"left": (40, 48), "right": (40, 48)}, action_names=("a", "b", "c"),
    action_units=("rad",) * 3, proprio_names=("d", "e", "f", "g"), proprio_units=("rad",) * 4, action_kind="joint",
    action_mode="absolute", gripper="none",
)  # fmt: skip


def configuration(name: str) -> RunConfig:
    """The run of a case."""
    small = (
        "model.hidden_dim=16", "model.heads=2", "model.feedforward_dim=24", "model.encoder_layers=1",
        "model.vae_encoder_layers=1", "model.latent_dim=4", "output=drawn", "ema=null",
    )  # fmt: skip
    return load_run_config(["recipe=act-mock", *small, *CASES[name]])


def write_checkpoint(folder: Path, name: str) -> Path:
    """A checkpoint folder as the trainer leaves it, as far as prediction reads it."""
    folder.mkdir(parents=True)
    run = configuration(name)
    model = build_plain(run, DESCRIPTION_OF_BOTH)
    random = np.random.RandomState(7)
    save_file({key: _draw(random, key, value) for key, value in sorted(model.state_dict().items())},
              folder / "model.safetensors")  # fmt: skip
    write_json(folder / CONFIGURATION, run.to_dict())
    write_json(folder / DESCRIPTION, DESCRIPTION_OF_BOTH.to_json())
    _statistics().save(folder / STATISTICS)
    write_manifest(folder, {"step": 5, "policy": "act"})
    return folder


def observations() -> dict[str, torch.Tensor]:
    """By LeRobot's names: joints float32 [n, 4] in robot units, images uint8 [n, 40, 48, 3]."""
    random = np.random.RandomState(11)
    found = {"observation.state": torch.from_numpy(random.normal(0.3, 0.5, (COUNT, 4)).astype(np.float32))}
    for camera in DESCRIPTION_OF_BOTH.cameras:
        pixels = random.randint(0, 256, (COUNT, 40, 48, 3)).astype(np.uint8)
        found[f"observation.images.{camera}"] = torch.from_numpy(pixels)
    return found


def _draw(random: np.random.RandomState, key: str, value: torch.Tensor) -> torch.Tensor:
    """By the rule of the golden files: variances above a half, scales about one, the rest by fan-in."""
    z = random.standard_normal(size=tuple(value.shape))
    if key.endswith("running_var"):
        z = 0.5 + np.abs(z)
    elif z.ndim == 1:
        z = (1 + 0.1 * z) if key.endswith("weight") and not key.endswith("bias") else 0.1 * z
    else:
        z = z * np.sqrt(2 / np.prod(z.shape[1:]))
    return torch.from_numpy(np.asarray(z, dtype=np.float32))


def _statistics() -> DatasetStatistics:
    """Numbers with a constant dimension each, where our floor of the standard deviation matters."""

    def feature(names: tuple[str, ...], mean: list[float], std: list[float]) -> FeatureStatistics:
        arrays = {"mean": np.array(mean, np.float32), "std": np.array(std, np.float32)}
        bounds = dict.fromkeys(("min", "max", "q01", "q99"), arrays["mean"])
        return FeatureStatistics(**arrays, **bounds, count=50, names=names)

    about = DESCRIPTION_OF_BOTH
    features = {
        "action": feature(about.action_names, [0.1, -0.4, 2.0], [0.3, 1.7, 0.0]),
        "proprio": feature(about.proprio_names, [0.2, 0.0, -1.0, 0.5], [0.5, 0.0, 0.2, 1.5]),
    }
    return DatasetStatistics(features=features, source_hash="drawn", episodes=1)


def main() -> None:
    root = Path(sys.argv[1])
    for name in CASES:
        checkpoint = write_checkpoint(root / f"{name}_checkpoint", name)
        print(export(ExportConfig(checkpoint=str(checkpoint), output=str(root / name), format=name)))
    save_file(observations(), root / "observations.safetensors")
    print(json.dumps(dataclasses.asdict(DESCRIPTION_OF_BOTH)["cameras"]))


if __name__ == "__main__":
    main()

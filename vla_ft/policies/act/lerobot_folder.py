"""Opens a folder of LeRobot's ``act`` policy, of either generation, as a ``Published`` policy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla_ft.data.sample import IMAGE_PREFIX, DatasetDescription
from vla_ft.data.statistics import DatasetStatistics, FeatureStatistics
from vla_ft.errors import UserError
from vla_ft.policies.act import lerobot
from vla_ft.policies.act.pixels import IMAGENET_MEAN, IMAGENET_STD
from vla_ft.policies.published import Published
from vla_ft.policies.tensor_files import open_tensors

Numbers = Mapping[str, np.ndarray]
"""Statistic (``mean``, ``std``, ``min``...) -> float32 array of a feature."""
_WITHOUT_EFFECT = ("rename_observations_processor", "to_batch_processor", "device_processor")
_NORMALIZE, _UNNORMALIZE = "normalizer_processor", "unnormalizer_processor"
_OLD_NUMBERS = ("mean", "std", "min", "max")
_BOUNDS = {"MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90")}
_TYPES = {lerobot.STATE: "STATE", lerobot.ENVIRONMENT: "ENV", lerobot.ACTION: "ACTION"}


@dataclass(frozen=True)
class _Scaling:
    """How a folder normalises: statistics and modes by feature, for what goes in and for actions that come out."""

    inputs: Mapping[str, Numbers]
    outputs: Mapping[str, Numbers]
    modes: Mapping[str, str]
    epsilon: float
    renames: Mapping[str, str]

    def affine(self, feature: str, kind: str, width: int, out: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Mean and scale float32 [width] by which ``(x - mean) / (scale + epsilon)`` is LeRobot's normalisation.

        ``out``: such that ``x * scale + mean`` is its inverse, which differs where a dimension is constant. A feature
        without statistics passes unchanged, as there.
        """
        mode = self.modes.get(kind, "IDENTITY")
        numbers = (self.outputs if out else self.inputs).get(feature, {})
        if mode == "IDENTITY" or not numbers:
            return np.zeros(width, np.float32), np.ones(width, np.float32)
        names = ("mean", "std") if mode == "MEAN_STD" else _BOUNDS.get(mode)
        if names is None or any(name not in numbers for name in names):
            raise UserError(f"{feature} is normalised by {mode}, and the folder has {', '.join(numbers)} of it alone.")
        first, second = (np.asarray(numbers[name], np.float32).reshape(-1) for name in names)
        if first.shape != (width,) or not np.isfinite([first, second]).all():
            raise UserError(
                f"The statistics of {feature} are {len(first)} numbers, finite: "
                f"{bool(np.isfinite([first, second]).all())}; expected {width} finite ones. Without them the robot "
                "would get wrong actions: copy the folder again, or save the policy with its dataset's statistics."
            )
        return (first, second) if mode == "MEAN_STD" else self._between(first, second, out)

    @staticmethod
    def _between(low: np.ndarray, high: np.ndarray, out: bool) -> tuple[np.ndarray, np.ndarray]:
        """``2 (x - low) / (high - low) - 1``. Where both are equal, LeRobot divides by almost nothing: going in, the
        one value becomes -1; coming out, everything becomes that value."""
        constant = low == high
        middle, half = (low + high) / 2, (high - low) / 2
        if out:
            return middle, half
        return np.where(constant, low + 1, middle), np.where(constant, np.float32(1), half)


def open_published(folder: Path) -> Published:
    """The policy of a folder. Raises UserError for one that is damaged, or that is not normalised as it says."""
    values = _read_json(folder / lerobot.CONFIG_FILE)
    scaling = _scaling(folder, values)
    if scaling is None:
        raise UserError(
            f"{folder} has neither {lerobot.PREPROCESSOR_FILE} nor statistics in {lerobot.WEIGHTS_FILE}: actions could "
            "not be brought to robot units. Copy the whole folder, or give it as init.path to train from its weights."
        )
    values = lerobot.DEFAULTS | values
    return Published(
        policy="act",
        settings=_settings(values, scaling),
        description=_description(folder, values),
        statistics=_statistics(folder, values, scaling),
        folder=folder,
        layout="lerobot",
        actions_per_chunk=_actions(values),
        ensemble=values["temporal_ensemble_coeff"],
        renames=scaling.renames,
    )


def published_settings(folder: Path) -> dict[str, Any]:
    """The ``model`` settings of a folder alone, for weights to start from. Raises UserError."""
    values = _read_json(folder / lerobot.CONFIG_FILE)
    return _settings(lerobot.DEFAULTS | values, _scaling(folder, values))


def _settings(values: Mapping[str, Any], scaling: _Scaling | None) -> dict[str, Any]:
    settings = lerobot.our_settings(dict(values))
    if scaling is None:
        return settings
    pixels = {}
    for feature in _cameras(values).values():
        mean, std = scaling.affine(feature, "VISUAL", 3)
        pixels[lerobot.our_key(feature).removeprefix(IMAGE_PREFIX)] = (tuple(mean.tolist()), tuple(std.tolist()))
    usual = np.asarray((IMAGENET_MEAN, IMAGENET_STD), np.float32)
    if not all(np.allclose(pair, usual, rtol=1e-6) for pair in pixels.values()):
        settings["pixel_statistics"] = pixels
    return settings | {"std_epsilon": scaling.epsilon}


def _actions(values: Mapping[str, Any]) -> int:
    steps, chunk = values["n_action_steps"], values["chunk_size"]
    if not 1 <= steps <= chunk:
        raise UserError(f"n_action_steps is {steps}, expected 1 to chunk_size, {chunk}.")
    if values["temporal_ensemble_coeff"] is not None and steps != 1:
        raise UserError(f"temporal_ensemble_coeff asks at every step: n_action_steps must be 1, it is {steps}.")
    return int(steps)


def _cameras(values: Mapping[str, Any]) -> dict[str, str]:
    """Our camera name -> feature. Raises UserError where two would be the same."""
    found: dict[str, str] = {}
    for feature, about in values.get("input_features", {}).items():
        if about["type"] == "VISUAL":
            name = lerobot.our_key(feature).removeprefix(IMAGE_PREFIX)
            if name in found:
                raise UserError(f"{feature} and {found[name]} would both be the camera '{name}'. Rename one of them.")
            found[name] = feature
    return found


def _width(values: Mapping[str, Any], feature: str) -> int:
    group = values.get("output_features" if feature == lerobot.ACTION else "input_features", {})
    return int(group[feature]["shape"][0]) if feature in group else 0


def _description(folder: Path, values: Mapping[str, Any]) -> DatasetDescription:
    def names(word: str, feature: str) -> tuple[str, ...]:
        return tuple(f"{word}_{number}" for number in range(_width(values, feature)))

    action, proprio = names("action", lerobot.ACTION), names("state", lerobot.STATE)
    if not action:
        raise UserError(f"{folder / lerobot.CONFIG_FILE} names no output feature 'action'. Copy the folder again.")
    shapes = {name: values["input_features"][feature]["shape"] for name, feature in _cameras(values).items()}
    return DatasetDescription(
        name=folder.name,
        cameras={name: (int(shape[1]), int(shape[2])) for name, shape in shapes.items()},
        action_names=action,
        action_units=("unknown",) * len(action),
        proprio_names=proprio,
        proprio_units=("unknown",) * len(proprio),
        action_kind="unknown",
        action_mode="unknown",
        gripper="unknown",
        fps=0.0,
        environment_names=names("environment", lerobot.ENVIRONMENT),
    )


def _statistics(folder: Path, values: Mapping[str, Any], scaling: _Scaling) -> DatasetStatistics:
    """Mean and scale as ``std``; what the folder does not tell is NaN, never a guess."""
    features = {}
    for key in ("action", "proprio", "env_state"):
        feature = lerobot.feature_name(key)
        width = _width(values, feature)
        if key == "env_state" and not width:
            continue
        mean, scale = scaling.affine(feature, _TYPES[feature], width, out=key == "action")
        word = {"action": "action", "proprio": "state", "env_state": "environment"}[key]
        known = scaling.inputs.get(feature, {})
        others = {n: np.asarray(known.get(n, np.full(width, np.nan)), np.float32) for n in ("min", "max", "q01", "q99")}
        names = tuple(f"{word}_{number}" for number in range(width))
        features[key] = FeatureStatistics(mean=mean, std=scale, count=0, names=names, **others)
    digest = hashlib.sha256((folder / lerobot.CONFIG_FILE).read_bytes()).hexdigest()
    return DatasetStatistics(features=features, source_hash=f"lerobot {digest}")


def _scaling(folder: Path, values: Mapping[str, Any]) -> _Scaling | None:
    """Of the newer generation's processor files, or of the older one's weights; None where there is neither."""
    if (folder / lerobot.PREPROCESSOR_FILE).is_file():
        return _newer(folder)
    old = {n: t for n, t in open_tensors(folder).items() if n.startswith(lerobot.OLD_STATISTICS)}
    if not old:
        return None
    features = [*values.get("input_features", {}), *values.get("output_features", {})]

    def numbers(part: str) -> dict[str, Numbers]:
        found: dict[str, Numbers] = {}
        for feature in features:
            names = {number: lerobot.old_buffer(part, feature, number) for number in _OLD_NUMBERS}
            found[feature] = {number: old[name].numpy() for number, name in names.items() if name in old}
        return {feature: entry for feature, entry in found.items() if entry}

    modes = values.get("normalization_mapping", {})
    inputs, outputs = numbers(lerobot.OLD_STATISTICS[0]), numbers(lerobot.OLD_STATISTICS[2])
    return _Scaling(inputs, outputs, modes, lerobot.EPSILON, {})


def _newer(folder: Path) -> _Scaling:
    before = _steps(folder / lerobot.PREPROCESSOR_FILE, _NORMALIZE)
    after = _steps(folder / lerobot.POSTPROCESSOR_FILE, _UNNORMALIZE)
    inputs, about = _state(folder, before[_NORMALIZE])
    outputs, _ = _state(folder, after[_UNNORMALIZE])
    renames = before.get(_WITHOUT_EFFECT[0], {}).get("config", {}).get("rename_map", {})
    return _Scaling(inputs, outputs, about.get("norm_map", {}), float(about.get("eps", lerobot.EPSILON)), renames)


def _steps(path: Path, needed: str) -> dict[str, dict[str, Any]]:
    """The steps of a processor file by name. Raises UserError for one whose effect would be lost."""
    steps = {}
    for step in _read_json(path).get("steps", []):
        name = step.get("registry_name") or step.get("class", "without a name")
        if name not in (*_WITHOUT_EFFECT, needed):
            raise UserError(
                f"{path} has a step '{name}', which is not known here: leaving it out would change the actions. Known: "
                f"{', '.join((*_WITHOUT_EFFECT, needed))}. Run this policy with LeRobot."
            )
        steps[name] = step
    if needed not in steps:
        raise UserError(f"{path} has no step {needed}: numbers would stay un-normalised. Copy the folder again.")
    return steps


def _state(folder: Path, step: Mapping[str, Any]) -> tuple[dict[str, Numbers], Mapping[str, Any]]:
    """Statistics by feature, and the configuration of a step. Raises UserError where it has none and needs them."""
    about = step.get("config", {})
    if "state_file" not in step:
        if any(mode != "IDENTITY" for mode in about.get("norm_map", {}).values()):
            raise UserError(f"{folder} normalises by statistics that it lacks (no state_file). Copy it again, whole.")
        return {}, about
    if Path(step["state_file"]).name != step["state_file"]:
        raise UserError(f"{folder} names the file '{step['state_file']}' outside its folder. It was not read.")
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in open_tensors(folder / step["state_file"]).items():
        feature, _, number = name.rpartition(".")
        found.setdefault(feature, {})[number] = tensor.float().numpy()
    return dict(found), about


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing. Copy the policy's folder again, whole.") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}). Copy the policy's folder again.") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds {type(values).__name__}, expected a JSON object. Copy the folder again.")
    return values

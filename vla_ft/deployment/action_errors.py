"""Action error of a policy on recorded episodes: by horizon step and by joint, normalised and in robot units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch

from vla_ft.config import ExecutionConfig
from vla_ft.data.formats.base import EpisodeReader
from vla_ft.data.loading import evenly_spaced
from vla_ft.data.sample import Sample
from vla_ft.data.windows import WindowIndex, build_sample
from vla_ft.deployment.execution import chunk_execution, describe
from vla_ft.deployment.predictor import Predictor
from vla_ft.errors import UserError

GUESSES = ("policy", "repeat_last_action")
"""What is compared with the recorded actions: the policy, and the action just before the chunk, held."""


def action_errors(
    predictor: Predictor, reader: EpisodeReader, episodes: np.ndarray, samples: int, batch: int
) -> dict[str, Any]:
    """Mean absolute errors over evenly spaced windows; steps past an episode's end are left out.

    For each of ``GUESSES``, in robot units and (``..._normalized``) in the policy's own normalised units: a list by
    horizon step under its name, ``..._mean`` over everything, ``..._per_joint`` and ``..._per_joint_and_step`` by the
    action's names. Windows at an episode's start have no action before them and are left out.
    """
    window, windows = predictor.processor.window, WindowIndex(reader.lengths, episodes)
    places = [windows.locate(int(i)) for i in evenly_spaced(len(windows), samples)]
    places = [(episode, step) for episode, step in places if step + window.offset(reader) >= 1]
    if not places:
        raise UserError("No window of these episodes has an action before it: they are too short to evaluate on.")
    sums: dict[str, np.ndarray] = {}
    counts = np.zeros(window.action_horizon)
    for start in range(0, len(places), batch):
        part = places[start : start + batch]
        read = [build_sample(reader, e, s, window, predictor.processor.keys) for e, s in part]
        last = np.stack([_previous_action(reader, e, s + window.offset(reader)) for e, s in part])
        real = np.stack([sample["action_pad_mask"] for sample in read])
        for key, error in _absolute_errors(predictor, read, last).items():
            sums[key] = sums.get(key, 0.0) + (error * real[..., None]).sum(0)
        counts += real.sum(0)
    numbers: dict[str, Any] = {"windows": len(places)}
    for key, total in sums.items():
        numbers |= _means(key, total, counts, reader.description.action_names)
    return numbers


def _absolute_errors(predictor: Predictor, samples: Sequence[Sample], last: np.ndarray) -> dict[str, np.ndarray]:
    """|guess - recorded| [n, horizon, A] by the names of the result; ``last`` float32 [n, 1, A]."""
    target = np.stack([sample["action"] for sample in samples])
    held, by_action = np.broadcast_to(last, target.shape), predictor.processor.by_action
    chunks, batch = predictor.predict_normalized(samples)
    repeated = [cast(Sample, {**sample, "action": one}) for sample, one in zip(samples, held, strict=True)]
    normalized = [one["action"].float().cpu() for one in (batch, predictor.processor.collate(repeated))]
    return {
        "policy": np.abs(predictor.processor.unnormalize(chunks) - target),
        "repeat_last_action": np.abs(held - target),
        "policy_normalized": by_action(torch.abs(chunks.cpu() - normalized[0]).numpy()),
        "repeat_last_action_normalized": by_action(torch.abs(normalized[1] - normalized[0]).numpy()),
    }


def _means(key: str, total: np.ndarray, counts: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Means of summed errors [horizon, A] over ``counts`` [horizon] windows."""
    by_step = total / np.maximum(counts, 1)[:, None]
    by_joint = total.sum(0) / counts.sum()
    return {
        f"{key}_mean": float(by_joint.mean()),
        key: by_step.mean(1).tolist(),
        f"{key}_per_joint": dict(zip(names, by_joint.tolist(), strict=True)),
        f"{key}_per_joint_and_step": {name: by_step[:, i].tolist() for i, name in enumerate(names)},
    }


def executed_errors(
    predictor: Predictor, reader: EpisodeReader, episodes: np.ndarray, config: ExecutionConfig, samples: int
) -> dict[str, Any]:
    """Mean absolute error of the actions that ``config`` would execute along whole episodes, in robot units.

    The recorded observations are shown, whatever would have been done: this compares ways of executing chunks, it does
    not stand for a robot. Episodes are taken in order until ``samples`` steps have been compared.
    """
    processor = predictor.processor
    execution = chunk_execution(config, processor.window.action_horizon)
    errors: list[np.ndarray] = []
    for episode in episodes:
        execution.reset()
        for step in range(int(reader.lengths[episode])):
            sample = build_sample(reader, int(episode), step, processor.window, processor.keys)
            action = execution.step(lambda seen=sample: predictor.predict_samples([seen])[0])  # type: ignore[misc]
            if sample["action_pad_mask"][0]:
                errors.append(np.abs(action - sample["action"][0]))
        if len(errors) >= samples:
            break
    by_joint = np.mean(errors, axis=0)
    return {
        "executed": describe(config),
        "executed_steps": len(errors),
        "executed_mean": float(by_joint.mean()),
        "executed_per_joint": dict(zip(reader.description.action_names, by_joint.tolist(), strict=True)),
    }


def _previous_action(reader: EpisodeReader, episode: int, start: int) -> np.ndarray:
    """float32 [1, A]: the action just before the chunk that starts at step ``start``."""
    return reader.read(episode, np.array([start - 1]), ("action",))["action"]

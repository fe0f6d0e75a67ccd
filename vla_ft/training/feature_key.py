"""What cached features were computed from, and in which of it another run differs, in words."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vla_ft.checkpoints import write_json
from vla_ft.config import RunConfig
from vla_ft.data.content import FileContent, hash_files
from vla_ft.data.formats.base import EpisodeReader
from vla_ft.data.sample import IMAGE_PREFIX
from vla_ft.policies.base import FrozenFeatures, Model, Processor
from vla_ft.policies.frozen_parts import weights_hash

_SOURCES = "sources.json"
"""Sizes, times and hashes of the data's files, so that unchanged ones are not read at every start."""
_NAMES = {
    "weights": "the part's weights",
    "episodes": "the episodes",
    "instructions": "the instructions",
    "statistics": "the statistics that proprioception is normalised by",
    "scope": "what a feature depends on",
    "inputs": "the inputs",
    "outputs": "the features",
    "observation_steps": "the observation window",
    "cameras": "the cameras",
    "tokens": "the numbers that instructions become (another tokenizer)",
    "stored": "the stored type",
    "torch": "the version of torch",
}
_SHOWN = 12
"""Characters of a hash that a message shows."""


def build_key(
    config: RunConfig,
    device: torch.device,
    reader: EpisodeReader,
    model: Model,
    processor: Processor,
    part: str,
    declared: FrozenFeatures,
    folder: Path,
) -> dict[str, Any]:
    """Everything that decides the features, in JSON types: hashes of weights and data files, and settings in words.

    ``files`` has the SHA-256 of every file that observations are read from, so that images recorded anew are noticed;
    hashes are remembered in ``folder``. Raises OSError.
    """
    key: dict[str, Any] = {
        "policy": config.policy,
        "part": part,
        "weights": weights_hash(model.get_submodule(declared.module)),
        "settings": declared.settings,
        "scope": declared.scope,
        "inputs": ", ".join(declared.inputs),
        "outputs": ", ".join(declared.outputs),
        "episodes": _episodes(reader),
        "reading": reader.reading(),
        "precision": "fp32" if config.precision == "fp32" else "bf16",
        "stored": config.frozen_features.dtype if config.frozen_features else "computed",
        "device": device.type,
        "torch": torch.__version__,
    }
    if declared.scope == "sample":
        key["observation_steps"] = str(processor.window.observation_steps)
        told = [reader.instruction(episode) for episode in range(len(reader.lengths))]
        key["instructions"] = _hash(told)
        # Inputs of a whole sample are called the same whichever camera and tokenizer they come from.
        key["cameras"] = ", ".join(k.removeprefix(IMAGE_PREFIX) for k in processor.keys if k.startswith(IMAGE_PREFIX))
        key["tokens"] = _hash([[int(number) for number in processor.tokens_of(text)] for text in sorted(set(told))])
    if "proprio" in declared.inputs:
        key["statistics"] = processor.statistics.source_hash
    return {**key, "files": _file_hashes(reader, folder)}


def differences(kept: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """In what two keys differ, in words; empty when they are equal."""
    found = []
    for name in dict.fromkeys((*kept, *wanted)):
        was, now = kept.get(name), wanted.get(name)
        if was == now:
            continue
        if name == "files":
            found.append(_other_files(was or {}, now or {}))
        elif isinstance(was, Mapping) and isinstance(now, Mapping):
            found += [
                f"{entry} was {was.get(entry)!r}, is {now.get(entry)!r}"
                for entry in dict.fromkeys((*was, *now))
                if was.get(entry) != now.get(entry)
            ]
        elif name in ("weights", "instructions", "statistics", "tokens"):
            found.append(f"{_NAMES[name]} differ ({str(was)[:_SHOWN]}, now {str(now)[:_SHOWN]})")
        else:
            found.append(f"{_NAMES.get(name, name)} was {was!r}, is {now!r}")
    return found


def _episodes(reader: EpisodeReader) -> str:
    """How many, how long, in which order."""
    listed = [(reader.name_of(episode), int(length)) for episode, length in enumerate(reader.lengths)]
    return f"{len(listed)} with {int(reader.lengths.sum())} steps ({_hash(listed)})"


def _other_files(was: Mapping[str, str], now: Mapping[str, str]) -> str:
    changed = sorted(name for name in was.keys() & now.keys() if was[name] != now[name])
    if changed:
        return f"{changed[0]} holds other data" + (f", as do {len(changed) - 1} more files" if changed[1:] else "")
    gone, added = sorted(was.keys() - now.keys()), sorted(now.keys() - was.keys())
    listed = [
        f"{names[0]} and {len(names) - 1} more files {what}" if names[1:] else f"{names[0]} {what}"
        for names, what in ((gone, "gone"), (added, "new"))
        if names
    ]
    return ", ".join(listed)


def _file_hashes(reader: EpisodeReader, folder: Path) -> dict[str, str]:
    """SHA-256 (hex) of every file of the data, by name."""
    memory = folder / _SOURCES
    known: dict[str, FileContent] = {}
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):  # it only saves time
        known = {name: FileContent(**content) for name, content in json.loads(memory.read_text()).items()}
    contents = hash_files(reader.sources(), known)
    if contents != known:
        with contextlib.suppress(OSError):  # the features may lie where this user cannot write
            write_json(memory, {name: content.to_json() for name, content in contents.items()})
    return {name: content.sha256 for name, content in contents.items()}


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:_SHOWN]

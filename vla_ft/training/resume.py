"""Where a run starts: fresh, or from a checkpoint that fits its configuration."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vla_ft.checkpoints import CONFIGURATION, STATISTICS, read_manifest, verify
from vla_ft.config import RunConfig, run_config_from_dict
from vla_ft.errors import UserError
from vla_ft.training.checkpointing import CheckpointStore

_MAY_CHANGE = (
    "recipe",
    "output",
    "steps",
    "resume",
    "device",
    "devices",
    "init",
    "logging",
    "plan",
    "checkpoint",
    "validation",
    "execution",
    "engine",
    "shard_group",
    "offload",
    "activation_checkpointing",
    "compile",
    "frozen_features",
)
_OPTIMIZER_MAY_CHANGE = ("kernel",)
NOT_EXACT = "not bit-exact"
_NOT_EXACT = ("engine", "shard_group", "offload", "compile", "optimizer.kernel")
"""Changes of how, not what: the mathematics stays, the order of its sums does not."""
_DATA_MAY_CHANGE = ("path", "workers", "on_damage")
"""The data itself is compared by the hash of its statistics, wherever it lies now."""


def find_start(config: RunConfig, store: CheckpointStore) -> Path | None:
    """The checkpoint to continue from, verified; None for a fresh start. Raises UserError.

    ``auto`` takes the run's own latest; ``never`` refuses a folder that holds a run, so that none is overwritten.
    """
    if config.resume == "never":
        if store.complete():
            raise UserError(
                f"{store.folder.parent} already holds a run ({store.complete()[-1].name}) and resume=never. "
                "Choose another output=, or continue it with resume=auto."
            )
        return None
    path = store.latest() if config.resume == "auto" else _named(Path(config.resume), store)
    if path is not None:
        policy = read_manifest(path)["policy"]
        if policy != config.policy:
            raise UserError(
                f"Checkpoint {path} is of policy '{policy}', this run trains '{config.policy}'. "
                "Choose another output=, or the recipe that the checkpoint was made with."
            )
    return path


def _named(path: Path, store: CheckpointStore) -> Path:
    """A checkpoint that the user names, verified."""
    if not path.is_dir():
        raise UserError(f"resume={path}: no such checkpoint. Give a folder named step_..., or auto, or never.")
    verify(path)
    own = store.folder / path.name
    if own.is_dir() and own.samefile(path):
        return own
    if store.complete():
        raise UserError(
            f"resume={path} belongs to another run than {store.folder.parent}, which holds one already. "
            "Choose a new output= to continue that checkpoint there."
        )
    return path


def refuse_other_run(
    path: Path, config: RunConfig, source_hash: str, world_size: int, device: str, damaged: Sequence[int] = ()
) -> list[str]:
    """Compare a checkpoint with the run that wants to continue it. Returns what changed harmlessly, in words.

    ``device`` is the kind that the run has (``cpu``, ``cuda``), ``damaged`` the episodes that it leaves out. Notes say
    ``NOT_EXACT`` where the bits will differ. Raises UserError when model, data, optimizer or global batch differ:
    continuing would be another experiment.
    """
    # Read into today's fields, so that one added since does not look like a change.
    saved = run_config_from_dict(json.loads((path / CONFIGURATION).read_text())).to_dict()
    then, now = _flatten(saved), _flatten(config.to_dict())
    changed = {key for key in then.keys() | now.keys() if then.get(key) != now.get(key)}
    trainer = json.loads((path / "trainer.json").read_text())
    kept_world, kept_device = trainer["world_size"], trainer.get("device", device)
    global_then = saved["batch"]["per_device"] * saved["batch"]["accumulation"] * kept_world
    global_now = config.batch.per_device * config.batch.accumulation * world_size
    notes = []
    if kept_world != world_size:
        drawn = "model noise and rounding" if config.precision == "bf16_stochastic" else "model noise"
        notes.append(f"{world_size} processes instead of {kept_world}: same samples, other {drawn}, {NOT_EXACT}")
    if kept_device != device:
        notes.append(f"on {device} instead of {kept_device}: other kernels and generators, {NOT_EXACT}")
    if global_then == global_now and saved["batch"] != config.to_dict()["batch"] and kept_world == world_size:
        shape = "per_device {per_device} x accumulation {accumulation}".format(**saved["batch"])
        notes.append(f"the same global batch was cut as {shape}: noise is drawn and means are taken so, {NOT_EXACT}")
    if global_then == global_now:
        changed = {key for key in changed if not key.startswith("batch.")}
    elif not any(key.startswith("batch.") for key in changed):
        changed.add("batch")
        then["batch"], now["batch"] = f"{global_then} in all", f"{global_now} in all on {world_size} process(es)"
    inexact = sorted(key for key in changed if key in _NOT_EXACT)
    if inexact:
        shown = ", ".join(f"{key} {then.get(key)} -> {now.get(key)}" for key in inexact)
        # FSDP2 and ZeRO compute with every weight in bfloat16; autocast leaves norms and embeddings in float32.
        how = "summed in another order" if config.precision == "fp32" else "rounded and summed otherwise"
        notes.append(f"{shown}: the same formulas, {how}, {NOT_EXACT}")
    if "steps" in changed:
        notes.append(f"steps {then['steps']} -> {now['steps']}" + _schedule_note(config))
    serious = sorted(key for key in changed if not _harmless(key))
    serious += _rounding(saved, config.to_dict(), then, now)
    if serious:
        shown = "; ".join(f"{key} was {then.get(key)!r}, is {now.get(key)!r}" for key in serious[:6])
        raise UserError(
            f"{path} was made with another configuration: {shown}. "
            "Choose another output= for a new run, or restore these settings to continue this one."
        )
    _refuse_other_damage(path, trainer.get("damaged", []), damaged)
    saved_hash = json.loads((path / STATISTICS).read_text())["source_hash"]
    if saved_hash != source_hash:
        raise UserError(
            f"The training data is not what {path} was trained on (hash {source_hash[:12]}, was {saved_hash[:12]}). "
            "Choose another output= for a new run, or restore the data."
        )
    return notes


def _refuse_other_damage(path: Path, then: Sequence[int], now: Sequence[int]) -> None:
    """Episodes that broke or were repaired since would change which samples follow, without a word."""
    if list(then) != list(now):
        shown = [", ".join(map(str, sorted(some))) or "none" for some in (set(now) - set(then), set(then) - set(now))]
        raise UserError(
            f"The damaged episodes are not those that {path} was trained without: newly damaged {shown[0]}, no longer "
            f"damaged {shown[1]}. Restore the data to continue this run, or choose another output= for a new one; "
            "`vla-ft data check` says what is wrong with each."
        )


def _rounding(saved: dict[str, Any], current: dict[str, Any], then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Cached features may come and go, but features that were rounded for the cache are other numbers."""
    key = "frozen_features.dtype"
    then[key], now[key] = ((config["frozen_features"] or {}).get("dtype", "computed") for config in (saved, current))
    return [key] if then[key] != now[key] else []


def _schedule_note(config: RunConfig) -> str:
    return (
        ""
        if config.schedule.name == "constant"
        else f": the {config.schedule.name} schedule is stretched to the new end"
    )


def _harmless(key: str) -> bool:
    first, _, rest = key.partition(".")
    second = rest.split(".")[0]
    place_of_a_part = rest.startswith("mix.") and rest.endswith(".path")
    return (
        first in _MAY_CHANGE
        or (first == "data" and (second in _DATA_MAY_CHANGE or place_of_a_part))
        or (first == "optimizer" and second in _OPTIMIZER_MAY_CHANGE)
    )


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat

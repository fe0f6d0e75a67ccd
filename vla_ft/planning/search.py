"""Every sensible way to run a recipe on given cards: which fit, which to take, and how large a batch may be."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vla_ft.config import FrozenFeaturesConfig, LoraConfig, RunConfig
from vla_ft.errors import UserError
from vla_ft.planning.batches import largest_batch
from vla_ft.planning.cards import Target
from vla_ft.planning.forecast import Planner
from vla_ft.planning.margin import margin_bytes
from vla_ft.planning.options import Option, changes_maths, cost_of, setup_of, words_of
from vla_ft.planning.states import GIB, states_of
from vla_ft.training.compatibility import Setup, refusals


@dataclass(frozen=True)
class Plan:
    """The answer. Options are in order of preference, the one that was asked for first."""

    target: Target
    asked: Option | None
    """None when the compatibility table refuses it."""
    options: tuple[Option, ...]
    alternatives: tuple[Option, ...]
    """Other methods: parts frozen, or adapters."""
    recommended: Option | None
    largest_batch: int
    """Of ``recommended``, per device; 0 without one."""
    traced: int
    hopeless: int = 0
    """Combinations left out: what they hold before the first sample is seen exceeds a card."""
    refused: tuple[str, ...] = ()
    """Why the compatibility table refuses what was asked; empty where it does not."""


def plan(config: RunConfig, planner: Planner, target: Target) -> Plan:
    """Forecast the sensible combinations of engine, precision, optimizer, offload and checkpointing on ``target``.

    Combinations that the compatibility table refuses are left out, and those that add a further change to one that
    fits already. Traces are shared between the rest. Other methods are looked at when nothing fits that leaves the
    maths alone.
    """
    options, hopeless = _options(config, planner, target)
    asked = next((option for option in options if not option.overrides), None)
    fitting = [option for option in options if option.forecast.fits(target)]
    recommended = asked if asked is not None and asked in fitting else next(iter(fitting), None)
    if recommended is None:
        recommended = _smaller_batch(config, planner, target, options)
    enough = recommended is not None and not recommended.changes_maths
    alternatives = () if enough else tuple(_alternatives(config, planner, target, recommended))
    largest = largest_batch(recommended, planner, target) if recommended else 0
    refused = tuple(refusals(setup_of(config, target, planner)))
    return Plan(target, asked, tuple(options), alternatives, recommended, largest, planner.traced, hopeless, refused)


def _options(config: RunConfig, planner: Planner, target: Target) -> tuple[list[Option], int]:
    """In order of preference, and how many were left out because what they hold before the first sample exceeds a
    card: they need no trace to be refused."""
    candidates = {}
    asked = setup_of(config, target, planner)
    for changes in (*_changes(config, target), *_cached(config, planner, target)):
        changed = _apply(config, changes)
        setup = setup_of(changed, target, planner)
        key = (setup, changed.activation_checkpointing, changed.frozen_features)
        if key not in candidates and not refusals(setup):
            words = words_of(config, changed)
            rank = (changes_maths(asked, setup), cost_of(changed, setup) if words else -1)
            candidates[key] = (rank, words, changed, setup)
    options: list[Option] = []
    hopeless = 0
    for (changed_maths, cost), words, changed, setup in sorted(candidates.values(), key=lambda entry: entry[0]):
        if any(o.overrides and set(o.overrides) < set(words) and o.forecast.fits(target) for o in options):
            continue
        if len(words) > 1 and options and not options[0].overrides and options[0].forecast.fits(target):
            continue
        if words and _too_many_states(config, changed, setup, planner, target):
            hopeless += 1
            continue
        forecast = planner.forecast(changed, setup)
        options.append(Option(changed, words, changed_maths, cost, forecast))
    return options, hopeless


def _too_many_states(asked: RunConfig, changed: RunConfig, setup: Setup, planner: Planner, target: Target) -> bool:
    """Whether weights, gradients, optimizer and average alone exceed a card: a lower bound, without a trace."""
    if setup.offload == "all" or changed.frozen_features != asked.frozen_features:
        return False
    weights = planner.trace(asked, setup_of(asked, target, planner)).weights
    held = states_of(weights, setup, ema=changed.ema is not None)
    certain = held.weights  # gradients are not there in the forward pass, nor is the optimizer when it is offloaded
    if setup.offload == "none":
        certain += held.optimizer + held.average + held.gradients
    return certain + margin_bytes(setup, certain) > target.memory_gib * GIB


def _changes(config: RunConfig, target: Target) -> Iterator[dict[str, Any]]:
    """Fields to replace: first nothing, then every combination."""
    yield {}
    engines = ["single", "fsdp2", "zero2"] if target.cards == 1 else ["ddp", "fsdp2", "zero1", "zero2", "zero3"]
    if config.engine == "hsdp":
        engines.append("hsdp")
    precisions = [config.precision]
    if target.bf16:
        precisions += [p for p in ("bf16", "bf16_kahan", "bf16_stochastic") if p != config.precision]
    for engine in engines:
        for precision in precisions:
            for optimizer in dict.fromkeys((config.optimizer.name, "adamw", "adamw8bit")):
                for offload in ("none", "optimizer", "all"):
                    for recompute in (False, True):
                        yield {
                            "engine": engine, "precision": precision, "optimizer": optimizer, "offload": offload,
                            "activation_checkpointing": recompute or config.activation_checkpointing,
                        }  # fmt: skip


def _cached(config: RunConfig, planner: Planner, target: Target) -> Iterator[dict[str, Any]]:
    """What is frozen anyway is run once over the data instead of in every step: the maths stays."""
    if config.frozen_features is not None:
        return
    parts = planner.trace(config, setup_of(config, target, planner)).cacheable
    if not parts:
        return
    for engine in dict.fromkeys((config.engine, "fsdp2")):
        for recompute in dict.fromkeys((config.activation_checkpointing, True)):
            yield {
                "engine": engine, "precision": config.precision, "optimizer": config.optimizer.name,
                "activation_checkpointing": recompute, "frozen_features": FrozenFeaturesConfig(parts=parts),
            }  # fmt: skip


def _apply(config: RunConfig, changes: dict[str, Any]) -> RunConfig:
    if not changes:
        return config
    changes = dict(changes)
    name = changes.pop("optimizer")
    # The forecast of an alternative takes the kernel that holds no copies.
    kernel = (
        config.optimizer.kernel if name == config.optimizer.name and config.optimizer.kernel != "foreach" else "auto"
    )
    if name == "adamw8bit" or changes["precision"] in ("bf16_kahan", "bf16_stochastic"):
        kernel = "auto"
    frozen = config.frozen_dtype
    if changes["precision"] == "fp32":
        frozen = "fp32"
    elif changes["engine"].startswith("zero") and (config.freeze or config.lora):
        frozen = "bf16"
    return dataclasses.replace(
        config,
        **changes,
        frozen_dtype=frozen,
        shard_group=config.shard_group if changes["engine"] == "hsdp" else None,
        optimizer=dataclasses.replace(config.optimizer, name=name, kernel=kernel),
    )


def _alternatives(config: RunConfig, planner: Planner, target: Target, best: Option | None) -> Iterator[Option]:
    """Training less: each named part frozen, its features cached where they can be, or under adapters. They change
    the method and are never recommended."""
    trained = _trained_by_part(config, planner, target)
    cached = planner.trace(config, setup_of(config, target, planner)).declared
    for part, count in trained.items():
        if count == 0 or len([c for c in trained.values() if c]) < 2:
            continue
        freeze: dict[str, Any] = {"freeze": (*config.freeze, part)}
        yield from _alternative(config, planner, target, best, f"{part} frozen", **freeze)
        if part in cached and config.frozen_features is None:
            features = FrozenFeaturesConfig(parts=(part,))
            method = f"{part} frozen, features cached"
            yield from _alternative(config, planner, target, best, method, **freeze, frozen_features=features)
    largest = max(trained, key=lambda part: trained[part], default=None)
    if largest is not None and trained[largest] and not config.lora and _has_linear(planner, largest, config, target):
        adapters = {largest: LoraConfig()}
        yield from _alternative(config, planner, target, best, f"{largest} under LoRA", lora=adapters)


def _alternative(
    config: RunConfig, planner: Planner, target: Target, best: Option | None, method: str, **changes: Any
) -> Iterator[Option]:
    """A method on the engine and with the recomputation of the best option of the asked one: one trace each."""
    engine = best.config.engine if best else ("fsdp2" if target.cards > 1 else config.engine)
    recompute = best.config.activation_checkpointing if best else True
    ways: list[dict[str, Any]] = [{"engine": engine}, {}]
    for way in ways:
        changed = dataclasses.replace(config, activation_checkpointing=recompute, **changes, **way)
        setup = setup_of(changed, target, planner)
        if refusals(setup):
            continue
        try:
            forecast = planner.forecast(changed, setup)
        except UserError:
            return  # a part that cannot be cached after all
        yield Option(changed, words_of(config, changed), True, cost_of(changed, setup), forecast, method)
        return


def _trained_by_part(config: RunConfig, planner: Planner, target: Target) -> dict[str, int]:
    trace = planner.trace(config, setup_of(config, target, planner))
    counts: dict[str, int] = {}
    for weight in trace.weights:
        counts[weight.part] = counts.get(weight.part, 0) + weight.count * weight.trained
    return counts


def _has_linear(planner: Planner, part: str, config: RunConfig, target: Target) -> bool:
    trace = planner.trace(config, setup_of(config, target, planner))
    return any(weight.part == part and len(weight.shape) == 2 for weight in trace.weights)


def _smaller_batch(config: RunConfig, planner: Planner, target: Target, options: list[Option]) -> Option | None:
    """Where nothing fits with the batch per device as asked: the same global batch in more, smaller pieces."""
    for option in options:
        largest = largest_batch(option, planner, target)
        whole = option.config.batch.per_device * option.config.batch.accumulation
        sizes = [size for size in range(min(largest, option.config.batch.per_device), 0, -1) if whole % size == 0]
        for size in sizes[:2]:  # gradients of earlier micro-batches may take what the largest leaves
            batch = dataclasses.replace(option.config.batch, per_device=size, accumulation=whole // size)
            changed = dataclasses.replace(option.config, batch=batch)
            setup = setup_of(changed, target, planner)
            if refusals(setup):
                break
            forecast = planner.forecast(changed, setup)
            if forecast.fits(target):
                words = words_of(config, changed)
                return Option(changed, words, option.changes_maths, option.cost + 1, forecast)
    return None

"""Frozen parts whose features are cached: what training holds without them, and what making the cache holds.

The order is the trainer's (``vla_ft.training.assembly``): prepared model, features, part left out, blocks, engine.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from vla_ft.config import RunConfig
from vla_ft.data.sample import DatasetDescription
from vla_ft.errors import UserError
from vla_ft.planning.allocation import CUDA_GRANULE, AllocationLog, Kind
from vla_ft.planning.card_rules import card_rules
from vla_ft.planning.imagined import imagine_sample, imagined_processor, widen
from vla_ft.planning.workspaces import card_workspace, cpu_workspace
from vla_ft.policies.base import Batch, FrozenFeatures, Model, Processor
from vla_ft.policies.frozen_parts import cacheable, compute_rows, leave_out, replaced_inputs, with_features


@dataclass(frozen=True)
class Caching:
    """Bytes of the parts ``parts``, which are run once and then left out of the model."""

    parts: tuple[str, ...]
    peak: int
    """Most that is allocated while a part is run over the data, by itself and without gradients."""
    weights: int
    """Of all of them. They wait in host memory for the checkpoints."""
    numbers: int
    """How many weights and buffers those are."""
    row_bytes: int
    """On disk for each frame, or for each sample where features depend on more than a frame."""


def new_log(card: bool) -> AllocationLog:
    """An account with a card's granule and workspaces, or this CPU's."""
    return AllocationLog(CUDA_GRANULE, card_workspace) if card else AllocationLog(workspace=cpu_workspace)


def take_out_cached(
    model: Model, config: RunConfig, description: DatasetDescription, *, card: bool
) -> tuple[Batch, Caching | None]:
    """Take the parts that ``config.frozen_features`` names out of a prepared model, under fake tensors or real ones.

    Returns one sample as training's batches bring it, with features in place of what they replace, and what making
    them holds. Raises UserError for parts that cannot be cached, as training does.
    """
    processor = imagined_processor(config, description)
    sample = processor.collate([imagine_sample(description, processor)])
    if config.frozen_features is None:
        return sample, None
    parts = cacheable(
        model, config.frozen_features.parts, processor.random_keys, varied=config.data.instructions == "vary"
    )
    rows: dict[str, Tensor] = {}
    peaks = []
    for declared in parts.values():
        computed, peak = _compute(model, declared, _inputs(config, description, processor, declared), config, card)
        rows |= {key: value[:1] for key, value in computed.items()}
        peaks.append(peak)
    replaced = replaced_inputs(model, parts)
    left_out = [tensor for declared in parts.values() for tensor in leave_out(model, declared).values()]
    with_rows = with_features(sample, parts, rows, replaced, processor.window.observation_steps)
    caching = Caching(
        parts=tuple(parts),
        peak=max(peaks),
        weights=_bytes(left_out),
        numbers=sum(tensor.numel() for tensor in left_out),
        row_bytes=_stored_bytes(rows.values(), config.frozen_features.dtype),
    )
    return with_rows, caching


def cacheable_parts(model: Model, config: RunConfig, description: DatasetDescription) -> tuple[str, ...]:
    """Parts of a prepared model whose features may be cached as they are: frozen, and nothing random in them."""
    varied = config.data.instructions == "vary"
    random_keys = imagined_processor(config, description).random_keys
    found = []
    for part in model.frozen_features():
        try:
            cacheable(model, [part], random_keys, varied=varied)
        except UserError:
            continue
        found.append(part)
    return tuple(found)


def _inputs(
    config: RunConfig, description: DatasetDescription, processor: Processor, declared: FrozenFeatures
) -> Batch:
    steps = 1 if declared.scope == "frame" else processor.window.observation_steps
    return widen(processor.collate([imagine_sample(description, processor, steps)]), config.batch.per_device)


def _compute(
    model: Model, declared: FrozenFeatures, batch: Batch, config: RunConfig, card: bool
) -> tuple[dict[str, Tensor], int]:
    """Features of a batch, and the bytes at the fullest moment of computing them with nothing else there."""
    log = new_log(card)
    module = model.get_submodule(declared.module)
    with log, card_rules() if card else nullcontext():
        log.claim(itertools.chain(module.parameters(), module.buffers()), Kind.STATE)
        log.claim(batch.values(), Kind.ACTIVATION)
        log.record()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.precision != "fp32"):
            rows = compute_rows(model, declared, batch)
        return rows, int(log.events().held.sum(1).max())


def _stored_bytes(rows: Iterable[Tensor], stored: str) -> int:
    narrow = 2 if stored != "computed" else None
    return sum(
        row.numel() * (min(narrow, row.element_size()) if narrow and row.is_floating_point() else row.element_size())
        for row in rows
    )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

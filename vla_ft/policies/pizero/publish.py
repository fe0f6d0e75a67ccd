"""A run of π0 as open-pi-zero keeps one: the file of weights, and the statistics that its actions are scaled by."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from vla_ft.checkpoints import write_json
from vla_ft.data.published_statistics import to_octo
from vla_ft.errors import UserError
from vla_ft.policies.base import TrainedFacts
from vla_ft.policies.pizero.checkpoint import write_published
from vla_ft.policies.pizero.config import Config


def write_run(path: Path, tensors: Iterable[tuple[str, Tensor]], facts: TrainedFacts) -> int:
    """Write the torch file with what the run knows of its robot, and beside it ``<stem>_statistics.json``; of a mixture
    ``<stem>_statistics_<dataset>.json`` for each. Returns the number of tensors.

    Raises UserError when the disk is full.
    """
    if not isinstance(facts.config, Config):
        raise UserError(f"open-pi-zero's form is of π0, this is {type(facts.config).__name__}. Export a run of pizero.")
    count = write_published(path, tensors, facts.config, facts.step, facts.description)
    for name, statistics in facts.statistics.each().items():
        write_json(
            path.with_name("_".join(filter(None, (path.stem, "statistics", name))) + ".json"), to_octo(statistics)
        )
    return count

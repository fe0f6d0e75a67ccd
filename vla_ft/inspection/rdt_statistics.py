"""``vla-ft data statistics``: ``dataset_stat.json`` as the published RDT code computes and reads it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from vla_ft.config import DataConfig
from vla_ft.data.mixture import MixtureReader
from vla_ft.policies.rdt.config import Vector
from vla_ft.policies.rdt.statistics import dataset_stat, merge_stat
from vla_ft.policies.rdt.vector import VectorMap, find_vector


@dataclass(frozen=True, kw_only=True)
class StatisticsConfig:
    """What ``vla-ft data statistics`` takes besides the dataset."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    data: DataConfig
    name: str | None = None
    """Name of the entry; null takes the dataset's. Datasets of a mix have their own."""
    vector: Vector = "agilex"
    """As ``model.vector``."""
    output: str = "dataset_stat.json"
    """The file; entries of other datasets in it are kept."""
    skip_existing: bool = False
    """Leave an entry alone that is there."""
    skip_still: float | None = 0.01
    shortest: int | None = 128


def write_statistics(config: StatisticsConfig) -> str:
    """Compute and merge the entries; returns what was done, in words. Raises UserError."""
    data = dataclasses.replace(config.data, skip_still=config.skip_still, shortest=config.shortest)
    reader = data.open(data.path)
    chosen = find_vector(config.vector)
    state = VectorMap(chosen.state or chosen.action, chosen.state_divisors, "state")
    parts = reader.parts if isinstance(reader, MixtureReader) else {config.name or reader.description.name: reader}
    lines = []
    for name, part in parts.items():
        written = merge_stat(Path(config.output), dataset_stat(name, [part], state), skip_existing=config.skip_existing)
        used = len(part.lengths) - len(part.left_out)
        lines.append(f"{config.output}: {name}, {used} of {len(part.lengths)} episodes{'' if written else ' (kept)'}")
        lines += [f"  left out: {why}" for why in part.left_out.values()]
    return "\n".join(lines)

"""``--action_mean`` and ``--action_std``: compared with what the run normalises by, which it computes itself.

The guide's authors accept both and use neither. Here statistics are always those of the training episodes, and travel
with the checkpoint; files that say something else are refused instead of ignored.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from policy.act.translator import open_split
from vla_ft.checkpoints import STATISTICS
from vla_ft.config import RunConfig
from vla_ft.data.statistics import cached_statistics
from vla_ft.errors import UserError

TOLERANCE = 1e-3
"""Of the standard deviation: room for the two forms of it (N and N-1) and for sums in another order."""


def refuse_other_statistics(run: RunConfig, mean: str | None, std: str | None) -> None:
    """Raise UserError where a file is no vector of the action's width, or differs from the training episodes'."""
    given = {"mean": mean, "std": std}
    if not any(given.values()):
        return
    reader, split = open_split(run)
    with TemporaryDirectory() as folder:  # the run folder is not this process's yet; the cache of all runs is
        action = cached_statistics(reader, split.training, Path(folder) / STATISTICS)["action"]
    scale = np.maximum(action.std, run.model.std_floor)
    room = TOLERANCE + 1 / max(1, action.count - 1)
    for name, path in given.items():
        if path is None:
            continue
        values, own = _read(path, len(action.names)), getattr(action, name)
        worst = int(np.argmax(np.abs(values - own) / scale))
        if abs(values[worst] - own[worst]) > room * scale[worst]:
            raise UserError(
                f"--action_{name} {path} says {values[worst]:g} for {action.names[worst]}, the training episodes have "
                f"{own[worst]:g}. Actions are normalised by the training episodes' own statistics: remove the flag, or "
                "check that the file is of this dataset."
            )


def _read(path: str, width: int) -> np.ndarray:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a .npy file of numbers: {error}.") from None
    if values.shape != (width,) or values.dtype.kind != "f" or not np.isfinite(values).all():
        raise UserError(f"{path} holds {values.dtype} {values.shape}, expected {width} finite floats.")
    return values

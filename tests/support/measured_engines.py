"""Real steps under engines of several processes, and what each process's allocator gave out: run as a script.

``python measured_engines.py RESULTS CASE...``, one process per RANK; a case is words of a configuration, by commas.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

SMALL = (
    "recipe=act-mock", "device=cpu", "data.mock.image_size=[64,96]", "data.mock.cameras=[a,b]", "batch.per_device=4",
    "model.dropout=0.1",
)  # fmt: skip


def main() -> None:
    """Measure every case and write this process's peaks."""
    from vla_ft.config import load_run_config
    from vla_ft.planning.imagined import describe
    from vla_ft.planning.measurement import measure_step
    from vla_ft.training.engines import build_engine

    folder, cases = Path(sys.argv[1]), sys.argv[2:]
    peaks, rank = {}, 0
    for case in cases:
        config = load_run_config([*SMALL, *case.split(",")])
        engine = build_engine(config)
        rank = engine.rank
        peaks[case] = measure_step(config, describe(config), engine).peak
        engine.close()
    (folder / f"rank{rank}.json").write_text(json.dumps(peaks))


if __name__ == "__main__":
    main()

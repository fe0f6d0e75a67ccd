"""How often each outcome of a fuzz test came: printed, and kept in a file where VLA_FT_FUZZ_COUNTS names one."""

from __future__ import annotations

import json
import os
from pathlib import Path

VARIABLE = "VLA_FT_FUZZ_COUNTS"


def record_counts(test: str, counts: dict[str, int]) -> None:
    """Add the counts of a test, under its name and number of cases, to the JSON file of this run."""
    print(test, counts)
    if VARIABLE not in os.environ:
        return
    path = Path(os.environ[VARIABLE])
    kept = json.loads(path.read_text()) if path.is_file() else {}
    kept[f"{test}, {sum(counts.values())} cases"] = dict(sorted(counts.items()))
    path.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")

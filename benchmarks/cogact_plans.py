"""What `vla-ft plan` says of CogACT's recipes on the cards that they are for: the numbers behind the table of the docs.

    OMP_NUM_THREADS=1 python benchmarks/cogact_plans.py benchmarks/results/cogact_plans.json

Forecasts, not measurements: no card is needed and none was used.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from vla_ft.planning.command import make_plan, read_request
from vla_ft.planning.output import plan_as_data, sentences
from vla_ft.planning.states import GIB

CASES = (
    ("recipe=custom-finetune", "card=22GiB", "cards=4"),
    ("recipe=cogact-base-4x22gb", "card=22GiB", "cards=4"),
    ("recipe=cogact-base-4x22gb", "precision=bf16_kahan", "card=22GiB", "cards=4"),
    ("recipe=cogact-base-lora-24gb", "card=24GiB", "cards=1"),
    ("recipe=cogact-head-cached", "card=24GiB", "cards=1"),
    ("recipe=cogact-base", "card=80GiB", "cards=8"),
)


def forecast(words: tuple[str, ...]) -> dict[str, Any]:
    """The options with what they need, in GiB a card, and what is recommended."""
    start = time.process_time()
    found = make_plan(read_request(list(words)))
    data = plan_as_data(found)
    options = [
        {"say": " ".join(option["overrides"]) or "as asked", "needs_gib": round(option["needed"] / GIB, 2),
         "margin_gib": round(sum(row["bytes"] for row in option["margin"]) / GIB, 2), "fits": option["fits"]}
        for option in data["options"]
    ]  # fmt: skip
    best = found.recommended
    return {
        "command": "vla-ft plan " + " ".join(words),
        "recommended": None if best is None else best.line or "as asked",
        "largest_batch_per_device": data["largest_batch_per_device"],
        "options": options,
        "sentences": sentences(found),
        "processor_seconds": round(time.process_time() - start, 1),
    }


def main() -> None:
    """Plan every case and write after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    options = parser.parse_args()
    found: dict[str, Any] = {"torch": torch.__version__, "plans": []}
    for words in CASES:
        one = forecast(words)
        found["plans"].append(one)
        options.result.write_text(json.dumps(found, indent=1))
        asked = one["options"][0]
        print(f"{one['command']}: needs {asked['needs_gib']:.2f} GiB, margin {asked['margin_gib']:.2f} of it; "
              f"recommended: {one['recommended']}; {one['processor_seconds']} s", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()

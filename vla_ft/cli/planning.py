"""``vla-ft plan``: the memory forecast, printed and drawn."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def plan_command(arguments: Sequence[str]) -> int:
    """``vla-ft plan recipe=NAME card=NAME``: 1 where nothing fits, 2 where what was asked is refused."""
    from rich.console import Console

    from vla_ft.checkpoints import write_json
    from vla_ft.planning.command import compare_on_cpu, make_plan, read_request
    from vla_ft.planning.output import PLAN, bars, plan_as_data, print_plan
    from vla_ft.reporting.memory import draw_memory

    console = Console(width=None if sys.stdout.isatty() else 150)
    request = read_request(arguments)
    if request.note:
        console.print(request.note, soft_wrap=True, highlight=False)
    if request.measure:
        console.print(compare_on_cpu(request.config), soft_wrap=True, highlight=False)
        if request.card is None:
            return 0
    found = make_plan(request)
    print_plan(console, found)
    if request.output is not None:
        request.output.mkdir(parents=True, exist_ok=True)
        write_json(request.output / PLAN, plan_as_data(found))
        asked = request.config
        title = f"{asked.recipe} on {found.target.cards} x {found.target.name}, batch {asked.batch.per_device} a device"
        best = found.recommended.line or "as asked" if found.recommended else ""
        draw_memory(bars(found), found.target.memory_gib, title, request.output / "plan.png", best)
    if found.refused:
        return 2
    return 0 if found.recommended is not None else 1

"""``vla-ft evaluate`` and ``export``: what is done with a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

from vla_ft.cli.words import without_dashes


def evaluate_command(arguments: Sequence[str]) -> int:
    """``vla-ft evaluate checkpoint=DIR data=DIR``."""
    from pathlib import Path

    from vla_ft.config import from_arguments
    from vla_ft.deployment.error_table import error_table
    from vla_ft.deployment.evaluation import EvaluationConfig, measure
    from vla_ft.reporting.action_errors import draw_action_errors

    config = from_arguments(EvaluationConfig, arguments, "vla-ft evaluate")
    numbers = measure(config)
    print(error_table(numbers))
    if config.output is not None:
        print(draw_action_errors(numbers, Path(config.output).with_suffix(".png")))
    return 0


def export_command(arguments: Sequence[str]) -> int:
    """``vla-ft export checkpoint=DIR output=FILE``."""
    from vla_ft.config import from_arguments
    from vla_ft.deployment.export import ExportConfig, export

    print(export(from_arguments(ExportConfig, without_dashes(arguments), "vla-ft export")))
    return 0

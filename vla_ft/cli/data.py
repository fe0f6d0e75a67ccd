"""``vla-ft data``, ``record`` and ``embed-language``: what makes, shows, checks and converts demonstrations."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from vla_ft.cli.words import Run, run_verb, without_dashes
from vla_ft.errors import UserError


def data_command(arguments: Sequence[str]) -> int:
    """``vla-ft data VERB ...``."""
    return run_verb("data", DATA_VERBS, [*arguments[:1], *without_dashes(arguments[1:])])


def _inspect(arguments: Sequence[str]) -> int:
    from rich.console import Console

    from vla_ft.config import from_arguments
    from vla_ft.inspection.overview import InspectConfig, inspect
    from vla_ft.inspection.pictures import contact_sheets, plots
    from vla_ft.inspection.tables import print_inspection
    from vla_ft.inspection.words import path_first
    from vla_ft.reporting.dataset_pictures import draw_contact_sheet, draw_tracks

    command = "vla-ft data inspect"
    config = from_arguments(InspectConfig, path_first(arguments, command), command)
    inspection = inspect(config)
    print_inspection(Console(width=None if sys.stdout.isatty() else 120), inspection)
    drawn = [draw_tracks(*plot) for plot in plots(inspection, config)]
    drawn += [draw_contact_sheet(*sheet) for sheet in contact_sheets(inspection, config)]
    print("\n".join(str(path) for path in drawn))
    return 0


def _check(arguments: Sequence[str]) -> int:
    from rich.console import Console

    from vla_ft.config import from_arguments
    from vla_ft.inspection.check import CheckConfig, check, write_report
    from vla_ft.inspection.tables import print_report
    from vla_ft.inspection.words import path_first

    command = "vla-ft data check"
    config = from_arguments(CheckConfig, path_first(arguments, command), command)
    report = check(config)
    print_report(Console(width=None if sys.stdout.isatty() else 120), report)
    if config.output is not None:
        write_report(report, config.output)
    return 1 if report.of("error") else 0


def _convert(arguments: Sequence[str]) -> int:
    from vla_ft.config import from_arguments
    from vla_ft.data.convert import ConvertConfig, convert
    from vla_ft.weights.datasets import local_dataset

    config = from_arguments(ConvertConfig, arguments, "vla-ft data convert")
    config = dataclasses.replace(config, source=str(local_dataset(config.source)))
    convert(config, lambda line: print(line, flush=True))
    return 0


def _mock(arguments: Sequence[str]) -> int:
    from pathlib import Path

    from vla_ft.config import from_arguments
    from vla_ft.data.mock import MockConfig, write_mock

    outputs = [word for word in arguments if word.startswith("output=")]
    if len(outputs) != 1:
        raise UserError("vla-ft data mock needs output=DIR, the folder to write.")
    rest = [word for word in arguments if not word.startswith("output=")]
    if "format=npy" in rest and not any(word.startswith("cameras=") for word in rest):
        rest.append("cameras=[left,right]")  # the ACT guide's: its readers ask for both
    print(write_mock(Path(outputs[0].removeprefix("output=")), from_arguments(MockConfig, rest, "vla-ft data mock")))
    return 0


def _statistics(arguments: Sequence[str]) -> int:
    from vla_ft.config import from_arguments
    from vla_ft.inspection.rdt_statistics import StatisticsConfig, write_statistics
    from vla_ft.inspection.words import path_first

    command = "vla-ft data statistics"
    print(write_statistics(from_arguments(StatisticsConfig, path_first(arguments, command), command)))
    return 0


def record_command(arguments: Sequence[str]) -> int:
    """``vla-ft record output=DIR episodes=N``: 1 where attempts ran out."""
    from vla_ft.config import from_arguments
    from vla_ft.simulation.record import RecordConfig, record

    config = from_arguments(RecordConfig, arguments, "vla-ft record")
    return 0 if record(config).kept == config.episodes else 1


def embed_language_command(arguments: Sequence[str]) -> int:
    """``vla-ft embed-language data.path=DIR``."""
    from vla_ft.config import from_arguments
    from vla_ft.language.embed_command import EmbedConfig, embed

    config = from_arguments(EmbedConfig, without_dashes(arguments), "vla-ft embed-language")
    embed(config, lambda line: print(line, flush=True))
    return 0


DATA_VERBS: dict[str, Run] = {
    "inspect": _inspect,
    "check": _check,
    "convert": _convert,
    "mock": _mock,
    "statistics": _statistics,
}

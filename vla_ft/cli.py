"""``vla-ft COMMAND recipe=NAME key=value ...``: the only place where planning, training and reporting meet."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from vla_ft.errors import EndedByPeer, UserError, nearest
from vla_ft.training.launch import follow_launcher, tell_launcher

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from vla_ft.config import RunConfig
    from vla_ft.training.observer import Observer

USAGE = """vla-ft COMMAND [key=value ...]

  train     recipe=NAME key=value ...     train; without words: recipe=act-mock, a small ACT on mock data
  plan      recipe=NAME card=NAME cards=N  forecast memory before anything is loaded: what fits and what to say;
                                          card=rtx3090 or 22GiB, output=DIR for plan.json and plan.png
  smoke     key=value ...                 a short run of every policy on mock data, with a resume; into runs/smoke
  evaluate  checkpoint=DIR data=DIR ...   action error of a checkpoint on held-out episodes, by joint and horizon step;
                                          output=FILE.json for the numbers and a picture
  embed-language data.path=DIR            a dataset's instructions through T5, once (RDT); text='...' for one, files=DIR
                                          imports published files
  export    checkpoint=DIR output=FILE    one .safetensors file from a checkpoint of any engine, adapters merged;
                                          --format lerobot output=DIR: an ACT policy folder that LeRobot loads;
                                          --format rdt output=DIR: the folder that RDT's own code loads
  fetch     NAME [to=DIR]                 published weights by name (or owner/name@revision), checked; no name: a list
            dataset OWNER/NAME@REV [to=DIR]    a LeRobot dataset, which data.path=hub:OWNER/NAME@REV then finds
  record    output=DIR episodes=N ...     record scripted demonstrations in simulation (environment with the sim extra)
  data      inspect PATH key=value ...         what a dataset holds: tables, a contact sheet, plots over time
            check PATH [on_damage=skip] ...    all that is wrong with it, by episode, step and field
            convert from=PATH to=DIR format=NAME ...   from any format to another, exact where both can
            mock output=DIR format=NAME ...    write a small mock dataset
            statistics PATH name=NAME ...      RDT's dataset_stat.json
  recipe    from-data PATH policy=act ...      a complete recipe for a dataset, and what could not be known
            from-open-pi-zero FILE.yaml key=value ...  open-pi-zero's training file as a recipe, written to output=
  recipes                                 list recipes; `recipes NAME` prints one
  selftest                                prove this environment: versions, CUDA, architectures, backends, policies

Keys are those of the recipe files (vla_ft/recipes), such as steps=1000, data.path=/data/demos, batch.per_device=4.
Exit codes: 0 done, 1 tried and fell short (a smoke run that did not learn, attempts that ran out, nothing fits, a check
that found something wrong), 2 a mistake that you can mend, 75 stopped by a signal after a checkpoint (run again to
continue)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    command, rest = words[0], words[1:]
    follow_launcher()  # before anything large is imported
    # torch's threads wait by spinning: on a machine that does other work as well that costs most of the speed (measured
    # here with two busy cores: 2.7 samples/s spinning, 14.5 sleeping). Read once, when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return guarded(lambda: _run(command, rest))


def _run(command: str, rest: Sequence[str]) -> int:
    if command not in COMMANDS:
        raise UserError(f"Unknown command '{command}'.{nearest(command, COMMANDS)} See `vla-ft --help`.")
    if any(word in ("-h", "--help") for word in rest):
        print(USAGE)
        return 0
    return COMMANDS[command](rest)


def guarded(run: Callable[[], int]) -> int:
    """The exit code of ``run``; mistakes, and errors of torch and CUDA whose cause is known, are told in words."""
    try:
        return run()
    except UserError as mistake:
        return say_mistake(mistake)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception as error:
        from vla_ft.training.known_errors import explain

        known = explain(error)
        if known is None:
            raise
        return say_mistake(UserError(known))


def say_mistake(mistake: UserError) -> int:
    """Print a mistake, or leave it to the launcher, which says what several of its processes met once."""
    if not isinstance(mistake, EndedByPeer) and not tell_launcher(str(mistake)):
        print(f"vla-ft: {mistake}", file=sys.stderr, flush=True)
    return 2


def _train(arguments: Sequence[str]) -> int:
    from vla_ft.config import load_run_config

    return train_configured(load_run_config(arguments), ["-m", "vla_ft", "train", *arguments])


def train_configured(
    config: RunConfig, command: Sequence[str], observers: Sequence[Observer] = (), console: Console | None = None
) -> int:
    """What every command that trains does: forecast, processes, training, the curve; returns the exit code.

    ``command`` is what Python has to run once per process where there are several. Raises UserError.
    """
    from vla_ft.training.launch import launch, processes_for
    from vla_ft.training.resilience import EXIT_INTERRUPTED

    processes = processes_for(config.devices, config.device)
    foreseen = _foresee(config, processes)
    if processes > 1:
        return launch(command, processes)

    from vla_ft.planning.command import watched
    from vla_ft.planning.measurement import SecondUpdate
    from vla_ft.reporting.curves import draw_loss
    from vla_ft.training.trainer import train

    watch = SecondUpdate() if watched(config) else None
    report = train(config, console, watch, observers)
    if int(os.environ.get("RANK", "0")) == 0:
        draw_loss(report.folder)
        end = f"stopped by {report.interrupted} at" if report.interrupted else "finished"
        numbers = ", ".join(
            f"{k.split('/')[1]} {v:.4f}" for k, v in report.metrics.items() if k.startswith("validation/")
        )
        memory = _memory(report.folder, foreseen, watch.measured if watch else 0)
        said = [f"held out: {numbers}"] if numbers else []
        said += [f"{report.damaged} damaged episodes left out (data.json)"] if report.damaged else []
        said += [memory] if memory else []
        print("; ".join([f"{end} step {report.step}", *said, f"run folder {report.folder}"]))
    return EXIT_INTERRUPTED if report.interrupted else 0


def _foresee(config: RunConfig, processes: int) -> str:
    """Refuse a run that cannot fit on its cards, once, before any process loads weights.

    Returns the forecast as JSON, empty without one. Processes that are started here find it in their environment: it
    is written when training has accepted the run folder and ended.
    """
    if "VLA_FT_LAUNCHER" in os.environ:
        return os.environ.get("VLA_FT_FORECAST", "")  # whoever started this process has asked
    if int(os.environ.get("RANK", "0")) != 0:
        return ""
    from vla_ft.planning.command import check_before_training
    from vla_ft.planning.output import run_forecast

    answer = check_before_training(config, processes)
    if answer is None:
        os.environ.pop("VLA_FT_FORECAST", None)
        return ""
    forecast, target, warning = answer
    print(f"vla-ft: {warning}" if warning else f"memory {forecast.sentence(target)}", file=sys.stderr, flush=True)
    found = json.dumps(run_forecast(forecast, target))
    if processes > 1:
        os.environ["VLA_FT_FORECAST"] = found
    return found


def _memory(folder: Path, foreseen: str, watched: int) -> str:
    """What this process held at most beside what was foreseen, or nothing where neither was asked for.

    A card's account is torch's own; ``watched`` is that of a run on the CPU, bytes.
    """
    import torch

    from vla_ft.planning.output import beside_measured

    measured = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else watched
    return beside_measured(folder, json.loads(foreseen), measured) if foreseen else ""


def _plan(arguments: Sequence[str]) -> int:
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


def _smoke(arguments: Sequence[str]) -> int:
    from pathlib import Path

    from rich.console import Console

    from vla_ft.reporting.curves import draw_loss
    from vla_ft.training.smoke import smoke

    root = Path(os.environ.get("VLA_FT_RUNS", "runs")) / "smoke"
    learned = smoke(root, arguments, Console(width=None if sys.stdout.isatty() else 110))
    for config in sorted(root.glob("*/config.json")):
        draw_loss(config.parent)
    return 0 if learned else 1


def _evaluate(arguments: Sequence[str]) -> int:
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


def _export(arguments: Sequence[str]) -> int:
    from vla_ft.config import from_arguments
    from vla_ft.deployment.export import ExportConfig, export

    print(export(from_arguments(ExportConfig, _without_dashes(arguments), "vla-ft export")))
    return 0


def _fetch(arguments: Sequence[str]) -> int:
    from pathlib import Path

    from vla_ft.weights.catalogue import find_entry
    from vla_ft.weights.fetching import fetch, print_listing

    if arguments and arguments[0] == "dataset":
        return _fetch_dataset(arguments[1:])
    names = [word for word in arguments if "=" not in word]
    options = dict(word.split("=", 1) for word in arguments if "=" in word)
    wrong = [key for key in options if key not in ("to", "files")]
    if wrong or len(names) > 1:
        seen = f"'{wrong[0]}='" if wrong else f"'{names[1]}' after '{names[0]}'"
        raise UserError(f"vla-ft fetch takes one NAME, to=DIR and files=PATTERN,PATTERN; it was given {seen}.")
    if not names and options:
        raise UserError(
            f"vla-ft fetch {arguments[0]} needs the NAME of what is fetched. `vla-ft fetch` lists the names."
        )
    if not names:
        print_listing()
        return 0
    patterns = [part for part in options.get("files", "").strip("[]").split(",") if part]
    to = Path(options["to"]).expanduser() if options.get("to") else None
    fetch(find_entry(names[0], patterns), to, lambda line: print(line, flush=True))
    return 0


def _fetch_dataset(arguments: Sequence[str]) -> int:
    from pathlib import Path

    from vla_ft.weights.datasets import dataset_entry
    from vla_ft.weights.fetching import fetch

    names = [word for word in arguments if "=" not in word]
    places = [word.removeprefix("to=") for word in arguments if word.startswith("to=")]
    if len(names) != 1 or len(names) + len(places) != len(arguments) or len(places) > 1:
        raise UserError(
            f"vla-ft fetch dataset takes one owner/name[@revision] and to=DIR; it was given '{' '.join(arguments)}'."
        )
    to = Path(places[0]).expanduser() if places else None
    fetch(dataset_entry(names[0]), to, lambda line: print(line, flush=True))
    return 0


def _record(arguments: Sequence[str]) -> int:
    from vla_ft.config import from_arguments
    from vla_ft.simulation.record import RecordConfig, record

    config = from_arguments(RecordConfig, arguments, "vla-ft record")
    return 0 if record(config).kept == config.episodes else 1


def _without_dashes(words: Sequence[str]) -> list[str]:
    """``--format rlds`` and ``--format=rlds`` as ``format=rlds``."""
    plain: list[str] = []
    rest = iter(words)
    for word in rest:
        if word.startswith("--") and "=" not in word:
            word = f"{word}={next(rest, '')}"
        key, equals, value = word.partition("=")
        plain.append(f"{key[2:].replace('-', '_')}={value}" if key.startswith("--") else f"{key}{equals}{value}")
    return plain


def _data_convert(arguments: Sequence[str]) -> int:
    from vla_ft.config import from_arguments
    from vla_ft.data.convert import ConvertConfig, convert
    from vla_ft.weights.datasets import local_dataset

    config = from_arguments(ConvertConfig, arguments, "vla-ft data convert")
    config = dataclasses.replace(config, source=str(local_dataset(config.source)))
    convert(config, lambda line: print(line, flush=True))
    return 0


def _data_mock(arguments: Sequence[str]) -> int:
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


def _data(arguments: Sequence[str]) -> int:
    return _verb("data", DATA_VERBS, [*arguments[:1], *_without_dashes(arguments[1:])])


def _verb(command: str, verbs: dict[str, Callable[[Sequence[str]], int]], arguments: Sequence[str]) -> int:
    """Run one verb of a command that has several."""
    verb = arguments[0] if arguments else ""
    if verb not in verbs:
        seen = f"Unknown verb '{verb}'.{nearest(verb, verbs)}" if verb else f"vla-ft {command} needs a verb."
        raise UserError(f"{seen} It has: {', '.join(verbs)}; see `vla-ft --help`.")
    return verbs[verb](arguments[1:])


def _data_inspect(arguments: Sequence[str]) -> int:
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


def _data_check(arguments: Sequence[str]) -> int:
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


def _recipe(arguments: Sequence[str]) -> int:
    return _verb("recipe", RECIPE_VERBS, arguments)


def _recipe_from_data(arguments: Sequence[str]) -> int:
    from vla_ft.config import from_arguments
    from vla_ft.inspection.draft import DraftConfig, draft
    from vla_ft.inspection.words import path_first

    command = "vla-ft recipe from-data"
    drafted = draft(from_arguments(DraftConfig, path_first(_without_dashes(arguments), command), command))
    if drafted.notes:
        print("Not known from the files:")
        print("\n".join(f"  - {note}" for note in drafted.notes))
    print(f"{drafted.path} is written: vla-ft train recipe={drafted.path}")
    return 0


def _recipe_translated(published: str) -> Callable[[Sequence[str]], int]:
    def translate(arguments: Sequence[str]) -> int:
        from vla_ft.inspection.translation import write_translation

        path = write_translation(published, arguments)
        print(f"{path} is written: vla-ft train recipe={path}")
        return 0

    return translate


def _recipes(arguments: Sequence[str]) -> int:
    from vla_ft.config import RECIPES, recipe_names
    from vla_ft.errors import unknown

    for name in arguments or recipe_names():
        if name not in recipe_names():
            raise unknown("recipe", name, recipe_names())
        text = (RECIPES / f"{name}.yaml").read_text()
        print(text if arguments else f"{name:<20} {text.splitlines()[0].lstrip('# ')}")
    return 0


def _selftest(arguments: Sequence[str]) -> int:
    from vla_ft.environment.selftest import main as selftest

    return selftest(list(arguments))


def _embed_language(arguments: Sequence[str]) -> int:
    from vla_ft.config import from_arguments
    from vla_ft.language.embed_command import EmbedConfig, embed

    config = from_arguments(EmbedConfig, _without_dashes(arguments), "vla-ft embed-language")
    embed(config, lambda line: print(line, flush=True))
    return 0


def _data_statistics(arguments: Sequence[str]) -> int:
    from vla_ft.config import from_arguments
    from vla_ft.inspection.rdt_statistics import StatisticsConfig, write_statistics
    from vla_ft.inspection.words import path_first

    command = "vla-ft data statistics"
    print(write_statistics(from_arguments(StatisticsConfig, path_first(arguments, command), command)))
    return 0


DATA_VERBS: dict[str, Callable[[Sequence[str]], int]] = {
    "inspect": _data_inspect,
    "check": _data_check,
    "convert": _data_convert,
    "mock": _data_mock,
    "statistics": _data_statistics,
}
RECIPE_VERBS: dict[str, Callable[[Sequence[str]], int]] = {
    "from-data": _recipe_from_data,
    "from-open-pi-zero": _recipe_translated("open-pi-zero"),
}
COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": _train,
    "plan": _plan,
    "smoke": _smoke,
    "evaluate": _evaluate,
    "embed-language": _embed_language,
    "export": _export,
    "fetch": _fetch,
    "record": _record,
    "data": _data,
    "recipe": _recipe,
    "recipes": _recipes,
    "selftest": _selftest,
}

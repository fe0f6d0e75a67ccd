"""``vla-ft COMMAND recipe=NAME key=value ...``: the only place where planning, training and reporting meet."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from collections.abc import Callable, Sequence

from vla_ft.errors import EndedByPeer, UserError, nearest
from vla_ft.training.launch import follow_launcher, tell_launcher

USAGE = """vla-ft COMMAND [key=value ...]

  train     recipe=NAME key=value ...     train; without words: recipe=act-mock, a small ACT on mock data
  smoke     key=value ...                 a short run of every policy on mock data, with a resume; into runs/smoke
  evaluate  checkpoint=DIR data=DIR ...   action error of a checkpoint on held-out episodes, in robot units
  export    checkpoint=DIR output=FILE    one .safetensors file from a checkpoint of any engine, adapters merged
  fetch     NAME [to=DIR]                 published weights by name (or owner/name@revision), checked; no name: a list
            dataset OWNER/NAME@REV [to=DIR]    a LeRobot dataset, which data.path=hub:OWNER/NAME@REV then finds
  record    output=DIR episodes=N ...     record scripted demonstrations in simulation (environment with the sim extra)
  data      convert from=PATH to=DIR format=NAME ...   from any format to another, exact where both can
            mock output=DIR format=NAME ...            write a small mock dataset
  recipes                                 list recipes; `recipes NAME` prints one
  selftest                                prove this environment: versions, CUDA, architectures, backends, policies

Keys are those of the recipe files (vla_ft/recipes), such as steps=1000, data.path=/data/demos, batch.per_device=4.
Exit codes: 0 done, 1 tried and fell short (a smoke run that did not learn, attempts that ran out), 2 a mistake that
you can mend, 75 stopped by a signal after a checkpoint (run again to continue)."""


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
    try:
        if command not in COMMANDS:
            raise UserError(f"Unknown command '{command}'.{nearest(command, COMMANDS)} See `vla-ft --help`.")
        if any(word in ("-h", "--help") for word in rest):
            print(USAGE)
            return 0
        return COMMANDS[command](rest)
    except UserError as mistake:
        return _say(mistake)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _say(mistake: UserError) -> int:
    """Print a mistake, or leave it to the launcher, which says what several of its processes met once."""
    if not isinstance(mistake, EndedByPeer) and not tell_launcher(str(mistake)):
        print(f"vla-ft: {mistake}", file=sys.stderr, flush=True)
    return 2


def _train(arguments: Sequence[str]) -> int:
    from vla_ft.config import load_run_config
    from vla_ft.training.launch import launch, processes_for
    from vla_ft.training.resilience import EXIT_INTERRUPTED

    config = load_run_config(arguments)
    processes = processes_for(config.devices, config.device)
    if processes > 1:
        return launch(["train", *arguments], processes)

    from vla_ft.reporting.curves import draw_loss
    from vla_ft.training.trainer import train

    report = train(config)
    if int(os.environ.get("RANK", "0")) == 0:
        draw_loss(report.folder)
        end = f"stopped by {report.interrupted} at" if report.interrupted else "finished"
        numbers = ", ".join(
            f"{k.split('/')[1]} {v:.4f}" for k, v in report.metrics.items() if k.startswith("validation/")
        )
        print(f"{end} step {report.step}{f'; held out: {numbers}' if numbers else ''}; run folder {report.folder}")
    return EXIT_INTERRUPTED if report.interrupted else 0


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
    from vla_ft.config import from_arguments
    from vla_ft.deployment.evaluation import EvaluationConfig, evaluate
    from vla_ft.weights.datasets import local_dataset

    config = from_arguments(EvaluationConfig, arguments, "vla-ft evaluate")
    print(evaluate(dataclasses.replace(config, data=str(local_dataset(config.data)))))
    return 0


def _export(arguments: Sequence[str]) -> int:
    from vla_ft.config import from_arguments
    from vla_ft.deployment.export import ExportConfig, export

    print(export(from_arguments(ExportConfig, arguments, "vla-ft export")))
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


def _data(arguments: Sequence[str]) -> int:
    verb = arguments[0] if arguments else ""
    if verb not in DATA_VERBS:
        seen = f"Unknown verb '{verb}'.{nearest(verb, DATA_VERBS)}" if verb else "vla-ft data needs a verb."
        raise UserError(f"{seen} It has: {', '.join(DATA_VERBS)}; see `vla-ft --help`.")
    return DATA_VERBS[verb](_without_dashes(arguments[1:]))


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
    print(write_mock(Path(outputs[0].removeprefix("output=")), from_arguments(MockConfig, rest, "vla-ft data mock")))
    return 0


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


DATA_VERBS: dict[str, Callable[[Sequence[str]], int]] = {
    "convert": _data_convert,
    "mock": _data_mock,
}
COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": _train,
    "smoke": _smoke,
    "evaluate": _evaluate,
    "export": _export,
    "fetch": _fetch,
    "record": _record,
    "data": _data,
    "recipes": _recipes,
    "selftest": _selftest,
}

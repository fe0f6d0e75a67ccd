"""``vla-ft COMMAND ...``: the help, the table of commands, and the way in."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from vla_ft.cli.data import data_command, embed_language_command, record_command
from vla_ft.cli.deployment import evaluate_command, export_command
from vla_ft.cli.fetching import fetch_command
from vla_ft.cli.mistakes import guarded
from vla_ft.cli.planning import plan_command
from vla_ft.cli.recipes import recipe_command, recipes_command
from vla_ft.cli.training import smoke_command, train_command
from vla_ft.cli.words import Run
from vla_ft.errors import UserError, nearest
from vla_ft.training.launch import follow_launcher

USAGE = """vla-ft COMMAND [key=value ...]

  train     recipe=NAME key=value ...     train; without words: recipe=act-mock, a small ACT on mock data
  plan      recipe=NAME card=NAME cards=N  forecast memory before anything is loaded: what fits and what to say;
                                          card=rtx3090 or 22GiB, output=DIR for plan.json and plan.png
  smoke     key=value ...                 a short run of every policy on mock data, with a resume; into runs/smoke
  evaluate  checkpoint=DIR data=DIR ...   action error of a checkpoint on held-out episodes, by joint and horizon step;
                                          output=FILE.json for the numbers and a picture; published weights as well:
                                          LeRobot's folder of ACT, open-pi-zero's step*.pt or a fetched name of its
                                          (statistics=FILE.json episodes=all)
  embed-language data.path=DIR            a dataset's instructions through T5, once (RDT); text='...' for one, files=DIR
                                          imports published files
  export    checkpoint=DIR output=FILE    one .safetensors file from a checkpoint of any engine, adapters merged;
                                          --format lerobot output=DIR: an ACT policy folder that LeRobot loads;
                                          lerobot03: as LeRobot loaded it up to 0.3.3;
                                          --format open-pi-zero output=FILE.pt: what open-pi-zero's evaluation reads;
                                          --format cogact or rdt output=DIR: the folder that its own code loads
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


def _selftest(arguments: Sequence[str]) -> int:
    from vla_ft.environment.selftest import main as selftest

    return selftest(list(arguments))


COMMANDS: dict[str, Run] = {
    "train": train_command,
    "plan": plan_command,
    "smoke": smoke_command,
    "evaluate": evaluate_command,
    "embed-language": embed_language_command,
    "export": export_command,
    "fetch": fetch_command,
    "record": record_command,
    "data": data_command,
    "recipe": recipe_command,
    "recipes": recipes_command,
    "selftest": _selftest,
}

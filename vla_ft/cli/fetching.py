"""``vla-ft fetch``: published weights and datasets by name."""

from __future__ import annotations

from collections.abc import Sequence

from vla_ft.errors import UserError


def fetch_command(arguments: Sequence[str]) -> int:
    """``vla-ft fetch [NAME] [to=DIR]``; without a name, the list of them."""
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

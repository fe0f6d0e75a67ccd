"""``vla-ft recipe`` and ``recipes``: makes a recipe, and lists those that are there."""

from __future__ import annotations

from collections.abc import Sequence

from vla_ft.cli.words import Run, run_verb, without_dashes


def recipe_command(arguments: Sequence[str]) -> int:
    """``vla-ft recipe VERB ...``."""
    return run_verb("recipe", RECIPE_VERBS, arguments)


def _from_data(arguments: Sequence[str]) -> int:
    from vla_ft.config import from_arguments, given_values
    from vla_ft.inspection.draft import DraftConfig, draft
    from vla_ft.inspection.words import path_first

    command = "vla-ft recipe from-data"
    words = path_first(without_dashes(arguments), command)
    drafted = draft(from_arguments(DraftConfig, words, command), said=given_values(words)["data"])
    if drafted.notes:
        print("Not known from the files:")
        print("\n".join(f"  - {note}" for note in drafted.notes))
    print(f"{drafted.path} is written: vla-ft train recipe={drafted.path}")
    return 0


def _translated(published: str) -> Run:
    def translate(arguments: Sequence[str]) -> int:
        from vla_ft.inspection.translation import write_translation

        path = write_translation(published, arguments)
        print(f"{path} is written: vla-ft train recipe={path}")
        return 0

    return translate


def recipes_command(arguments: Sequence[str]) -> int:
    """``vla-ft recipes [NAME]``: the list, or the text of one."""
    from vla_ft.config import RECIPES, recipe_names
    from vla_ft.errors import unknown

    for name in arguments or recipe_names():
        if name not in recipe_names():
            raise unknown("recipe", name, recipe_names())
        text = (RECIPES / f"{name}.yaml").read_text()
        print(text if arguments else f"{name:<20} {text.splitlines()[0].lstrip('# ')}")
    return 0


RECIPE_VERBS: dict[str, Run] = {
    "from-data": _from_data,
    "from-open-pi-zero": _translated("open-pi-zero"),
}

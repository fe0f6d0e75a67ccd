"""``vla-ft recipe from-...``: a training file of published code as a recipe."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from vla_ft.config import run_config_from_dict
from vla_ft.errors import UserError, unknown
from vla_ft.inspection.recipe_text import plain_text
from vla_ft.policies.registry import POLICIES, load_policy
from vla_ft.policies.translation import Translation

Translator = Callable[[str, Sequence[str], int], Translation]
_OWN_WORDS = ("output", "cards", "overwrite")


def find_translator(published: str) -> Translator:
    """The translator of a published code's files, from the policy that has it. Raises UserError."""
    known: dict[str, Translator] = {}
    for name in POLICIES:
        known |= getattr(load_policy(name), "TRANSLATORS", {})
    if published not in known:
        raise unknown("published code", published, known)
    return known[published]


def write_translation(published: str, words: Sequence[str]) -> Path:
    """Write ``output=`` from the file that the first word names; further words are over the file's own keys, but for
    ``cards=`` and ``overwrite=true``. Raises UserError."""
    own = dict(word.split("=", 1) for word in words if word.partition("=")[0] in _OWN_WORDS and "=" in word)
    rest = [word for word in words if word.partition("=")[0] not in _OWN_WORDS]
    if not rest or "=" in rest[0]:
        raise UserError(f"Name the file first: vla-ft recipe from-{published} FILE.yaml output=recipe.yaml")
    source, overrides = rest[0], rest[1:]
    output = _output(own, source)
    if not own.get("cards", "1").isdecimal() or own.get("cards") == "0":
        raise UserError(f"cards={own['cards']}: expected a number, 1 or more.")
    translation = find_translator(published)(source, overrides, int(own.get("cards", "1")))
    values = translation.values
    checked = {"recipe": output.stem, **values, "data": {"path": "(not said)", **values["data"]}}
    run_config_from_dict(checked)
    head = f"{values['policy']}, from {published}'s {Path(source).name}"
    head += f" with {' '.join(overrides)}" if overrides else ""
    beside = output.with_name(f".{output.name}.new")
    try:
        beside.write_text(plain_text(values, head, translation.remarks))
        os.replace(beside, output)
    except OSError as error:
        raise UserError(f"Cannot write {output}: {error.strerror}. Name a file in a folder of yours.") from error
    finally:
        beside.unlink(missing_ok=True)
    return output


def _output(own: dict[str, str], source: str) -> Path:
    output = Path(own.get("output", f"{Path(source).stem}-recipe.yaml"))
    if output.suffix not in (".yaml", ".yml"):
        raise UserError(f"output={output} is no name of a recipe. Expected one that ends in .yaml.")
    if output.exists() and own.get("overwrite") != "true":
        raise UserError(f"{output} exists already. Choose another output=, or add overwrite=true.")
    if not output.absolute().parent.is_dir():
        raise UserError(f"output={output} cannot be written: its folder does not exist. Make it first.")
    return output

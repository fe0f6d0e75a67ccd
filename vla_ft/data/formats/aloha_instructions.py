"""Instructions beside ALOHA episodes: RDT keeps several wordings of a task in a JSON file of its folder."""

from __future__ import annotations

import json
from pathlib import Path

from vla_ft.errors import UserError

FILE = "expanded_instruction_gpt-4-turbo.json"
GROUPS = ("instruction", "simplified_instruction", "expanded_instruction")
Variants = tuple[tuple[str, ...], ...]


def read_variants(folder: Path) -> Variants | None:
    """The wordings of a folder's task: the instruction, simplified ones, expanded ones; None without such a file.

    Raises UserError for a file of another form.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text())
        found = [data.get(key, []) for key in GROUPS]
        groups = [(group,) if isinstance(group, str) else tuple(group) for group in found]
        if not groups[0] or not all(isinstance(text, str) and text for group in groups for text in group):
            raise ValueError("an instruction is missing or no text")
    except (ValueError, AttributeError, TypeError, OSError) as error:
        raise UserError(
            f"{path} cannot be read ({error}). Expected {{'instruction': text, 'simplified_instruction': [texts], "
            "'expanded_instruction': [texts]}: mend it, or remove it."
        ) from error
    return tuple(group for group in groups if group)

"""``lang_embed_*.pt`` and the other embedding files of the published scripts, read with the text they belong to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from vla_ft.data.formats.aloha_instructions import FILE, read_variants
from vla_ft.errors import UserError
from vla_ft.policies.tensor_files import read_torch_object

_NUMBERED = re.compile(r"lang_embeds?_(\d+)\.pt")


def read_embeddings(path: Path, instruction: str | None = None) -> Iterator[tuple[str, Tensor]]:
    """(text, [tokens, width]) of a file, or of every file in a folder and the folders below.

    ``encode_lang`` writes a dictionary that holds its text. ``encode_lang_batch`` writes bare tensors, numbered as the
    wordings in the task's JSON file: the instruction, simplified ones, expanded ones. Any other bare tensor (such as
    ``empty_lang_embed.pt``, which belongs to "") needs ``instruction``. Raises UserError for what has no text.
    """
    files = sorted(path.rglob("*.pt")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"No embedding files (*.pt) in {path}. Give a file of them, or the folder where they lie.")
    if instruction is not None and len(files) > 1:
        raise UserError(f"{path} holds {len(files)} files and instruction= names one text. Give one file.")
    for file in files:
        yield _read(file, instruction)


def _read(file: Path, instruction: str | None) -> tuple[str, Tensor]:
    content = read_torch_object(file)
    if isinstance(content, dict):
        return _of_dictionary(file, content, instruction)
    if not isinstance(content, Tensor) or content.ndim not in (2, 3):
        raise UserError(f"{file} holds {type(content).__name__}, expected a tensor [tokens, width] or a dictionary.")
    text = instruction
    if text is None and file.name == "empty_lang_embed.pt":
        text = ""
    if text is None:
        text = _numbered_text(file)
    return text, _flat(file, content)


def _of_dictionary(file: Path, content: dict[str, Any], instruction: str | None) -> tuple[str, Tensor]:
    text, tokens = content.get("instruction", instruction), content.get("embeddings")
    if not isinstance(text, str) or not isinstance(tokens, Tensor):
        raise UserError(
            f"{file} holds {', '.join(map(str, content))}; expected 'instruction' (a text) and 'embeddings' (a tensor)."
        )
    if instruction is not None and text != instruction:
        raise UserError(f"{file} is the embedding of '{text}', not of '{instruction}'. Leave instruction= out.")
    return text, _flat(file, tokens)


def _numbered_text(file: Path) -> str:
    match, variants = _NUMBERED.fullmatch(file.name), read_variants(file.parent)
    if match is None or variants is None:
        raise UserError(
            f"{file} is a bare tensor: which instruction it belongs to cannot be told. Put {FILE} beside numbered "
            "files (lang_embed_0.pt ...), or import it alone with instruction='...'."
        )
    texts = [text for group in variants for text in group]
    if int(match[1]) >= len(texts):
        raise UserError(f"{file} has number {match[1]}, but {FILE} beside it lists {len(texts)} instructions.")
    return texts[int(match[1])]


def _flat(file: Path, tokens: Tensor) -> Tensor:
    if tokens.ndim == 3 and len(tokens) == 1:
        tokens = tokens[0]
    if tokens.ndim != 2 or not tokens.is_floating_point():
        raise UserError(f"{file} holds {tokens.dtype} {tuple(tokens.shape)}, expected numbers [tokens, width].")
    return tokens

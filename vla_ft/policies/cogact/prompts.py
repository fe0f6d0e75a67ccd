"""Instructions to token numbers: Llama 2's own tokenizer from its file, or a stand-in over bytes for mock runs."""

from __future__ import annotations

from pathlib import Path

from vla_ft.errors import UserError
from vla_ft.policies.cogact.config import Config
from vla_ft.weights.places import resolve

BEGIN, END = 1, 2
BLANK = 29871
"""Llama 2's piece for a lone blank, which ends the prompt before the end mark: so the published training text
``...Out: </s>`` falls into pieces, and inference appends both numbers."""
PAD = 32000
"""Prismatic's added padding token."""
IMAGE_MARK = "<image>"
_FILE = "tokenizer.json"
_BYTES = 4
"""First number of the stand-in's bytes."""


def prompt_text(instruction: str) -> str:
    """What the model is told, without what ``Prompts`` appends (Prismatic's ``PurePromptBuilder``)."""
    message = f"What action should the robot take to {instruction.lower()}?"
    return f"In: {message.replace(IMAGE_MARK, '').strip()}\nOut:"


class Prompts:
    """Instructions to token numbers: BOS, prompt, blank, EOS. The state at EOS is what the head acts on."""

    def __init__(self, config: Config) -> None:
        self.limit = config.max_tokens
        self.is_stand_in = config.size == "mock" and config.tokenizer is None
        self.pad, self.blank = (0, 3) if self.is_stand_in else (PAD, BLANK)
        self._tokenizer = None if self.is_stand_in else _read(config)

    def __call__(self, instruction: str) -> list[int]:
        """Token numbers. Raises UserError for a prompt over the limit: cut, it would lose the token that counts."""
        text = prompt_text(instruction)
        if self._tokenizer is None:
            words = [BEGIN, *(_BYTES + byte for byte in text.encode())]
        else:
            words = list(self._tokenizer.encode(text).ids)
        if words[0] != BEGIN:
            words = [BEGIN, *words]
        tokens = [*words, self.blank, END]
        if len(tokens) > self.limit:
            raise UserError(
                f"The instruction '{instruction[:60]}...' makes a prompt of {len(tokens)} tokens, the model takes "
                f"{self.limit}. Shorten the instruction, or raise model.max_tokens (Llama 2 reads 4096 with the image)."
            )
        return tokens


def _read(config: Config):
    if config.tokenizer is None:
        raise UserError(
            "model.tokenizer is missing: instructions need Llama 2's tokenizer. Run `vla-ft fetch llama-2-tokenizer` "
            "and set model.tokenizer=llama-2-tokenizer, or give the folder of its tokenizer.json. The stand-in is for "
            "model.size=mock alone."
        )
    from tokenizers import Tokenizer

    path = Path(resolve(config.tokenizer))
    path = path / _FILE if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"There is no tokenizer at {path}. Give the folder of Llama 2's {_FILE}, or the file.")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises Exception itself
        raise UserError(f"{path} is no tokenizer file ({error}). Fetch it again.") from error
    marks = {name: tokenizer.token_to_id(name) for name in ("<s>", "</s>", "▁")}
    expected = {"<s>": BEGIN, "</s>": END, "▁": BLANK}
    if marks != expected:
        raise UserError(f"{path} is not Llama 2's tokenizer: its marks are {marks}, expected {expected}.")
    return tokenizer

"""Instructions to token numbers: Llama 2's own tokenizer from its file, or a stand-in for mock runs."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vla_ft.errors import UserError
from vla_ft.policies.cogact.config import STAND_IN, Config
from vla_ft.weights.places import resolve

BEGIN, END = 1, 2
BLANK = 29871
"""Llama 2's piece for a lone blank, which ends the prompt before the end mark: so the published training text
``...Out: </s>`` falls into pieces, and inference appends both numbers."""
PAD = 32000
"""Prismatic's added padding token."""
IMAGE_MARK = "<image>"
FILE = "tokenizer.json"
_STAND_IN_FIRST, _STAND_IN_BYTES = 4, 4
"""First number of the stand-in's pieces, and their length: about as many tokens as Llama 2's."""
Encode = Callable[[str], list[int]]


def prompt_text(instruction: str) -> str:
    """What the model is told, without what ``Prompts`` appends (Prismatic's ``PurePromptBuilder``)."""
    message = f"What action should the robot take to {instruction.lower()}?"
    return f"In: {message.replace(IMAGE_MARK, '').strip()}\nOut:"


class Prompts:
    """Instructions to token numbers: BOS, prompt, blank, EOS. The state at EOS is what the head acts on."""

    def __init__(self, config: Config) -> None:
        self.limit = config.max_tokens
        stand_in = config.tokenizer == STAND_IN
        self.pad, self.blank = (0, 3) if stand_in else (PAD, BLANK)
        self.encode: Encode = StandIn(config.llama.vocabulary) if stand_in else JsonTokenizer(config)

    def __call__(self, instruction: str) -> list[int]:
        """Token numbers. Raises UserError for a prompt over the limit: cut, it would lose the token that counts."""
        tokens = [BEGIN, *self.encode(prompt_text(instruction)), self.blank, END]
        if len(tokens) > self.limit:
            raise UserError(
                f"The instruction '{instruction[:60]}...' makes a prompt of {len(tokens)} tokens, the model takes "
                f"{self.limit}. Shorten the instruction, or raise model.max_tokens (Llama 2 reads 4096 with the image)."
            )
        return tokens

    def batch(self, instructions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token numbers int64 [B, L], padded on the right to the longest, and which are real, bool [B, L]."""
        rows = [torch.tensor(self(instruction)) for instruction in instructions]
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.pad)
        lengths = torch.tensor([len(row) for row in rows])
        return tokens, torch.arange(tokens.shape[1]) < lengths[:, None]


class StandIn:
    """Every four bytes a number by their checksum. The same everywhere; it knows no language."""

    def __init__(self, vocabulary: int) -> None:
        self.room = vocabulary - _STAND_IN_FIRST

    def __call__(self, text: str) -> list[int]:
        data = text.encode()
        pieces = (data[at : at + _STAND_IN_BYTES] for at in range(0, len(data), _STAND_IN_BYTES))
        return [_STAND_IN_FIRST + zlib.crc32(piece) % self.room for piece in pieces]


class JsonTokenizer:
    """Llama 2's ``tokenizer.json``, by name or path, without the marks that it would add. Raises UserError."""

    def __init__(self, config: Config) -> None:
        name = config.tokenizer
        if name is None:
            raise UserError(
                "model.tokenizer is missing: instructions need Llama 2's tokenizer. Run `vla-ft fetch "
                "llama-2-tokenizer` and set model.tokenizer=llama-2-tokenizer, or give the folder of its "
                f"{FILE}; model.tokenizer={STAND_IN} is for mock runs alone."
            )
        from tokenizers import Tokenizer

        path = Path(resolve(name))
        path = path / FILE if path.is_dir() else path
        if not path.is_file():
            raise UserError(f"There is no tokenizer at {path}. Give the folder of Llama 2's {FILE}, or the file.")
        try:
            self.tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises Exception itself
            raise UserError(f"{path} is no tokenizer file ({error}). Fetch it again.") from error
        expected = {"<s>": BEGIN, "</s>": END, "▁": BLANK}
        marks = {mark: self.tokenizer.token_to_id(mark) for mark in expected}
        if marks != expected:
            raise UserError(f"{path} is not Llama 2's tokenizer: its marks are {marks}, expected {expected}.")
        if self.tokenizer.get_vocab_size() > config.llama.vocabulary:
            raise UserError(
                f"{path} has {self.tokenizer.get_vocab_size()} tokens, the model {config.llama.vocabulary}. Set "
                f"model.tokenizer={STAND_IN} for this size, or model.size=7b."
            )

    def __call__(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

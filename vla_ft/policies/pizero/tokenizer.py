"""Instructions to token numbers: PaliGemma's own tokenizer from its files, or a stand-in for mock runs."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vla_ft.errors import UserError
from vla_ft.policies.pizero.config import STAND_IN, Config
from vla_ft.policies.pizero.vlm import BEGIN, END, PAD
from vla_ft.weights.places import resolve

Encode = Callable[[str], list[int]]
"""Text to token numbers, without any that mark beginning or end."""
NEWLINE = "\n"
"""Ends every prompt."""
_JSON, _MODEL = "tokenizer.json", "tokenizer.model"
_STAND_IN_NEWLINE = 3
_STAND_IN_WORDS = 4


class Prompts:
    """Instructions to rows of token numbers: ``<bos>`` instruction newline, cut or padded on the right.

    The instruction is used as it is, without lower-casing. The picture's placeholders, which the published prompt
    begins with, are the model's own.
    """

    def __init__(self, config: Config) -> None:
        self.length = config.text_tokens
        self.encode = find_encoder(config)

    def __call__(self, instruction: str | bytes) -> np.ndarray:
        """int64 [N]. Raises UserError for bytes that are no text."""
        numbers = [BEGIN, *self.encode(as_text(instruction) + NEWLINE)][: self.length]
        return np.array(numbers + [PAD] * (self.length - len(numbers)), dtype=np.int64)


def as_text(value: str | bytes) -> str:
    """Text, or UTF-8 bytes of it, as TFDS gives instructions. Raises UserError for other bytes."""
    if isinstance(value, str):
        return value
    try:
        return bytes(value).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"An instruction is no text: {bytes(value[:32])!r} cannot be UTF-8 ({error.reason} at byte {error.start}). "
            "Expected str, or bytes in UTF-8: write the instructions of this dataset again."
        ) from None


def find_encoder(config: Config) -> Encode:
    """The tokenizer that ``config.tokenizer`` names. Raises UserError where there is none or it is not PaliGemma's."""
    if config.tokenizer is None:
        raise UserError(
            "model.tokenizer is missing: instructions need PaliGemma's tokenizer. Run `vla-ft fetch "
            "paligemma-3b-pt-224` and set model.tokenizer=paligemma-3b-pt-224, or give the path of its tokenizer.json "
            f"or tokenizer.model; model.tokenizer={STAND_IN} is for mock runs alone."
        )
    if config.tokenizer == STAND_IN:
        return StandIn(config.image_token)
    path = _find_file(resolve(config.tokenizer))
    encode, size = (_read_json if path.suffix == ".json" else _read_model)(path)
    if size > config.vocab_size:
        raise UserError(
            f"{path} has {size} tokens, the model {config.vocab_size} embeddings: not PaliGemma's tokenizer."
        )
    return encode


class StandIn:
    """Every word a number by its checksum, the end of a line number 3. The same everywhere; it knows no language."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def __call__(self, text: str) -> list[int]:
        """Token numbers below ``limit``."""
        room = max(1, self.limit - _STAND_IN_WORDS)
        words = [_STAND_IN_WORDS + zlib.crc32(word.encode()) % room for word in text.split()]
        return words + [_STAND_IN_NEWLINE] * text.count(NEWLINE)


class JsonTokenizer:
    """A ``tokenizer.json``, without the marks that it would add."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer

        try:
            self.tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises Exception itself
            raise UserError(f"{path} is no tokenizer file ({error}). Fetch it again.") from error

    def __call__(self, text: str) -> list[int]:
        """Token numbers."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)


class SentencePieceTokenizer:
    """A ``tokenizer.model``."""

    def __init__(self, path: Path) -> None:
        from sentencepiece import SentencePieceProcessor

        try:
            self.pieces = SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            raise UserError(f"{path} is no SentencePiece model ({error}). Fetch it again.") from error

    def __call__(self, text: str) -> list[int]:
        """Token numbers."""
        return list(self.pieces.encode(text))


def _read_json(path: Path) -> tuple[Encode, int]:
    read = JsonTokenizer(path)
    marks = {name: read.tokenizer.token_to_id(name) for name in ("<pad>", "<eos>", "<bos>")}
    _refuse_other_marks(path, marks)
    return read, read.tokenizer.get_vocab_size()


def _read_model(path: Path) -> tuple[Encode, int]:
    read = SentencePieceTokenizer(path)
    pieces = read.pieces
    _refuse_other_marks(path, {"<pad>": pieces.pad_id(), "<eos>": pieces.eos_id(), "<bos>": pieces.bos_id()})
    return read, pieces.get_piece_size()


def _refuse_other_marks(path: Path, seen: dict[str, int | None]) -> None:
    expected = {"<pad>": PAD, "<eos>": END, "<bos>": BEGIN}
    if seen != expected:
        raise UserError(f"{path} is not PaliGemma's tokenizer: its marks are {seen}, expected {expected}.")


def _find_file(path: Path) -> Path:
    if path.is_dir():
        found = next((path / name for name in (_JSON, _MODEL) if (path / name).is_file()), None)
        if found is None:
            raise UserError(
                f"There is no {_JSON} or {_MODEL} in {path}. Give PaliGemma's folder or one of these files."
            )
        return found
    if not path.is_file():
        raise UserError(f"There is no tokenizer at {path}. Give PaliGemma's {_JSON} or {_MODEL}, or their folder.")
    return path

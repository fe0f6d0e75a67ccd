"""Embeddings of instructions on disk, found by (encoder, revision, text): no file name for a user to get wrong."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from vla_ft.data.statistics import statistics_cache
from vla_ft.errors import UserError
from vla_ft.policies.rdt.config import LanguageConfig

STAND_IN = "random"
"""The encoder whose embeddings are drawn from the text itself."""
IMAGINED = "\0imagined"
"""Stands for an instruction of usual length where a batch is only imagined: no data can hold it."""
_IMAGINED_TOKENS = 32
_COMMAND = "vla-ft embed-language"


class Embeddings(Protocol):
    """Embeddings by text."""

    def get(self, text: str) -> Tensor:
        """[tokens, width] of an instruction, with its end token. Raises UserError naming a text that is missing."""

    def has(self, text: str) -> bool:
        """Whether ``get`` would find it."""


def default_root() -> Path:
    """Folder of all embeddings: ``language`` in the user's cache."""
    return statistics_cache().parent / "language"


@dataclass(frozen=True)
class Stored:
    """What a file of the store says of itself."""

    encoder: str
    revision: str
    text: str
    tokens: int


class EmbeddingStore:
    """Embeddings of one encoder and revision: a safetensors file a text, named by the hash of all three."""

    def __init__(self, root: Path, encoder: str, revision: str) -> None:
        self.encoder, self.revision = encoder, revision
        self.folder = root / f"{_plain(encoder)}@{_plain(revision)}"

    def place(self, text: str) -> Path:
        """The file of a text."""
        key = "\0".join((self.encoder, self.revision, text))
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:40]}.safetensors"

    def has(self, text: str) -> bool:
        """Whether the text was embedded."""
        return self.place(text).is_file()

    def put(self, text: str, tokens: Tensor) -> None:
        """Keep [tokens, width] of a text, finite; a reader sees the whole file or none. Raises UserError."""
        if tokens.ndim != 2 or not len(tokens):
            raise UserError(f"The embedding of '{text}' has shape {tuple(tokens.shape)}, expected [tokens, width].")
        if not torch.isfinite(tokens).all():
            raise UserError(
                f"The embedding of '{text}' holds NaN or infinity, and would train nothing. Compute it anew "
                "(dtype=fp32 where bf16 overflows)."
            )
        about = {"encoder": self.encoder, "revision": self.revision, "text": text, "tokens": str(len(tokens))}
        path = self.place(text)
        beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}.unfinished")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                # Not safetensors' own file, which nobody else could read: the folder may be shared, also by machines
                # whose processes have the same numbers, and what already has the name is not written through.
                with beside.open("xb") as file:
                    file.write(save({"embedding": tokens.detach().cpu().contiguous()}, metadata=about))
                os.replace(beside, path)
            finally:
                beside.unlink(missing_ok=True)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"Cannot write embeddings to {self.folder}: {error}. Expected a writable folder with space left."
            ) from error

    def get(self, text: str) -> Tensor:
        """See ``Embeddings.get``."""
        path = self.place(text)
        if not path.is_file():
            raise self.missing([text])
        with _reading(path), safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("text") != text:
                raise UserError(f"{path} is not the embedding of '{text}'. Remove it, and run `{_COMMAND}` again.")
            return file.get_tensor("embedding")

    def missing(self, texts: Sequence[str]) -> UserError:
        """The error for instructions without an embedding."""
        return _missing(f"{self.encoder} (revision {self.revision})", self.encoder, self.folder.parent, texts)

    def stored(self) -> Iterator[Stored]:
        """What is there, in a fixed order. Raises UserError naming a file that is damaged."""
        for path in sorted(self.folder.glob("*.safetensors")):
            with _reading(path), safe_open(path, "pt") as file:
                about = file.metadata() or {}
                found = Stored(about["encoder"], about["revision"], about["text"], int(about["tokens"]))
            yield found


class StandIn:
    """Random embeddings, the same for the same text everywhere. They tell instructions apart and mean nothing."""

    def __init__(self, width: int) -> None:
        self.width = width

    def has(self, text: str) -> bool:
        """Always."""
        return True

    def get(self, text: str) -> Tensor:
        """One token a word and one for the end, unit normal, float32."""
        words = [*text.split(), "</s>"]
        return torch.stack([self._word(word) for word in words])

    def _word(self, word: str) -> Tensor:
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:7], "little")
        return torch.randn(self.width, generator=torch.Generator().manual_seed(seed))


class InstructionTable:
    """What a processor asks: embeddings of the configured encoder, the latest kept in memory."""

    def __init__(self, config: LanguageConfig) -> None:
        self.config = config
        root = Path(config.embeddings).expanduser() if config.embeddings else default_root()
        self.source: Embeddings | None = StandIn(config.width) if config.encoder == STAND_IN else None
        self._root = root
        self._get = functools.lru_cache(maxsize=512)(self._read)

    @property
    def note(self) -> str:
        """For the banner."""
        if self.config.encoder == STAND_IN:
            return "instructions are RANDOM STAND-INS drawn from their words (model.language.encoder=random)"
        return f"instructions embedded by {self.config.encoder}, read from {self._root}"

    def get(self, text: str) -> Tensor:
        """[tokens, width]; see ``Embeddings.get``."""
        return self._get(text)

    def lacking(self, texts: list[str]) -> None:
        """Raises UserError naming those of ``texts`` without an embedding, or one that the model cannot take."""
        source = self._opened(texts)
        missing = [text for text in texts if not source.has(text)]
        if missing and isinstance(source, EmbeddingStore):
            raise source.missing(missing)
        for text in texts:  # now, not in the step that draws it
            self._read(text)

    def _read(self, text: str) -> Tensor:
        config = self.config
        if text == IMAGINED:
            return torch.zeros(min(_IMAGINED_TOKENS, config.max_tokens), config.width, dtype=torch.bfloat16)
        tokens = self._opened([text]).get(text)
        if tokens.shape[1] != config.width or len(tokens) > config.max_tokens:
            raise UserError(
                f"The embedding of '{text}' has {len(tokens)} tokens of {tokens.shape[1]} numbers; the model takes "
                f"{config.max_tokens} of {config.width} (model.language). Shorten the instruction, or use its encoder."
            )
        return tokens

    def _opened(self, texts: Sequence[str]) -> Embeddings:
        """The source; where there is none at all, ``texts`` are what is missing."""
        if self.source is None:
            revision = self.config.revision or only_revision(self._root, self.config.encoder, texts)
            self.source = EmbeddingStore(self._root, self.config.encoder, revision)
        return self.source

    def __getstate__(self) -> dict[str, LanguageConfig]:
        return {"config": self.config}

    def __setstate__(self, state: dict[str, LanguageConfig]) -> None:
        self.__init__(state["config"])  # type: ignore[misc]


def only_revision(root: Path, encoder: str, texts: Sequence[str]) -> str:
    """The one revision of an encoder under ``root``, where ``texts`` are looked for. Raises UserError when there is
    none, naming them, or several."""
    found = sorted(p.name.rpartition("@")[2] for p in root.glob(f"{_plain(encoder)}@*") if p.is_dir())
    if len(found) == 1:
        return found[0]
    if not found:
        raise _missing(encoder, encoder, root, texts)
    raise UserError(
        f"{root} holds embeddings by several revisions of {encoder}: {', '.join(found)}. Say which with "
        f"model.language.revision={found[-1]}."
    )


def _missing(by: str, encoder: str, root: Path, texts: Sequence[str]) -> UserError:
    shown = "; ".join(f"'{text}'" for text in texts[:3]) + (f" and {len(texts) - 3} more" if len(texts) > 3 else "")
    return UserError(
        f"No embedding by {by} of the instruction {shown} in {root}. Compute it once with `{_COMMAND} data.path=... "
        f"encoder={encoder}`, or try the pipeline with model.language.encoder=random."
    )


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raises UserError where a file of the store is damaged or cannot be opened."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}). Give this user the right to read it.") from error
    except (SafetensorError, KeyError, ValueError) as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__}: {error}). Remove it, and run `{_COMMAND}` again."
        ) from error


def _plain(name: str) -> str:
    """A name as part of a folder's."""
    if not name or name.startswith("."):
        raise UserError(f"'{name}' cannot name an encoder or its revision.")
    return json.dumps(name)[1:-1].replace("/", "--").replace("@", "-")

"""The reader contract. Windows, chunks, padding and normalisation are written once, above all readers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from vla_ft.data.sample import DatasetDescription


class EpisodeReader(ABC):
    """Random access to the steps of a dataset's episodes.

    Readers are cheap to pickle (workers get a copy) and open their files lazily, per process. They never cache decoded
    images, so memory stays flat whatever the number of episodes.
    """

    description: DatasetDescription
    lengths: np.ndarray
    """int64 [episodes]: number of steps of each episode, in a stable order."""
    action_offset: int = 0
    """Where an action chunk starts relative to its observation. Real ALOHA recordings use -1: the command that led to
    an observation was stored with it, one step late (act, ``utils.py`` of the published code)."""
    left_out: Mapping[int, str] = {}
    """Episodes that keep their number and are neither trained nor validated on, and why, in words."""
    assumed: Mapping[str, str] = {}
    """What the description says although the files do not, in words, by the description's field."""

    @abstractmethod
    def read(self, episode: int, steps: np.ndarray, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """Return ``keys`` at ``steps`` (int64 [n], inside the episode, any order, repeats allowed), time first.

        Keys: ``action`` float32 [n, A], ``proprio`` float32 [n, P], ``image_<camera>`` uint8 [n, H, W, 3]. Only what
        is asked for is read and decoded. Raises UserError naming episode, step and key when the data is damaged.
        """

    def resolve(self, episode: int) -> tuple[EpisodeReader, int]:
        """The reader that holds an episode, and its number there: a mixture of datasets answers with one of them."""
        return self, episode

    def all_proprio(self, episode: int) -> np.ndarray:
        """Proprioception float32 [N, P] of all recorded steps, those included that a wrapper leaves out."""
        return self.read(episode, np.arange(self.lengths[episode]), ("proprio",))["proprio"]

    def recorded_length(self, episode: int) -> int:
        """Steps of an episode as it was recorded, before a wrapper left some out."""
        return int(self.lengths[episode])

    def instruction_variants(self, episode: int) -> tuple[tuple[str, ...], ...]:
        """Groups of wordings of one instruction, the first group being ``instruction`` itself; a group is drawn, then a
        wording of it."""
        return ((self.instruction(episode),),)

    def times(self, episode: int) -> np.ndarray | None:
        """Recorded seconds of every step, float64 [steps]; None where the files hold no clock."""
        return None

    @abstractmethod
    def instruction(self, episode: int) -> str:
        """The language instruction of an episode; empty when the dataset has none."""

    def instruction_at(self, episode: int, step: int) -> str:
        """The instruction at a step; that of the episode, unless a format has one for each step."""
        return self.instruction(episode)

    @abstractmethod
    def fingerprint(self) -> str:
        """Hash (hex) of what statistics are computed from: it changes when numeric contents may have changed."""

    @abstractmethod
    def sources(self) -> dict[str, Path]:
        """Every file that observations are read from, in a stable order, by a name that survives a move of the set."""

    def reading(self) -> dict[str, str]:
        """Options of this reader that change the values of observations read from the same files."""
        return {}

    def unread(self) -> list[str]:
        """What the files hold and ``read`` does not give, in words, such as ``observations/qvel``."""
        return []

    def remarks(self) -> list[str]:
        """What a person should know about the files as a whole, in words: what is converted, what is read whole."""
        return []

    def counts(self) -> list[str]:
        """Lines at the head of a check, where the format's own documentation promises some."""
        return []

    @abstractmethod
    def name_of(self, episode: int) -> str:
        """How a person finds this episode: its file name or index, for messages."""


class DatasetWriter(ABC):
    """Writes a dataset episode by episode, in memory that does not grow with it.

    Crash-safe: a reader sees whole episodes or none. A writer that is opened on what an interrupted one left goes on
    after the ``done`` episodes that are already there, and the result is the same, byte for byte. Opened on what was
    finished with the same settings, ``done`` counts its episodes, and ``finish`` leaves it as it is.

    Constructed as ``Writer(folder, description, images=..., **options)``; ``registry.WRITERS`` lists them.
    """

    IMAGES: ClassVar[tuple[str, ...]]
    """How pictures can be stored (``images=``), the default first."""
    LOSSY: ClassVar[frozenset[str]] = frozenset({"jpeg", "video"})
    """Which of them do not give the same pixels back."""
    HOLDS_OFFSET: ClassVar[bool] = False
    """Whether the format can say ``EpisodeReader.action_offset``; its writer then takes ``action_offset=``."""

    kept: DatasetDescription
    """What a reader of the finished dataset says about it: less than was given where the format has no place for it."""
    done: int
    """Episodes that are committed. ``add`` writes number ``done`` next."""

    @abstractmethod
    def add(self, steps: Iterable[dict[str, np.ndarray]], instruction: str) -> None:
        """Write and commit one episode. A step has ``action`` [A], ``proprio`` [P] and ``image_<camera>`` uint8
        [H, W, 3], without a time axis. Raises UserError when the disk is full or the folder cannot be written.
        """

    @abstractmethod
    def finish(self) -> Path:
        """Write what belongs to the dataset as a whole, and return its folder; before that no reader opens it."""

    @abstractmethod
    def close(self) -> None:
        """Let another process write the folder. What is committed stays, and a later writer goes on."""


def beyond_float32(kinds: Mapping[str, str]) -> list[str]:
    """For ``EpisodeReader.unread``: the columns whose numbers float32 cannot hold, by the names of their dtypes."""
    wide = {name: kind for name, kind in kinds.items() if not np.can_cast(np.dtype(kind), np.float32)}
    return [f"{name} beyond float32 (it is {kind})" for name, kind in wide.items()]

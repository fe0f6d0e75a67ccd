"""From (episode, step) to a sample: observation windows, action chunks, padding. Written once, above all readers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vla_ft.data.formats.base import EpisodeReader
from vla_ft.data.order import Order, hash_seed, shuffled
from vla_ft.data.sample import Sample
from vla_ft.errors import UserError


@dataclass(frozen=True, kw_only=True)
class WindowSpec:
    """Which steps a policy sees: ``observation_steps`` ending at an observation, ``action_horizon`` from it."""

    observation_steps: int = 1
    action_horizon: int = 1
    action_offset: int | None = None
    """Where the chunk begins relative to the observation; None: the dataset's (``EpisodeReader.action_offset``)."""
    surroundings: bool = False
    """Whether observations carry what is known beside the window: ``episode_proprio`` float32 [N, P], all recorded
    steps, and ``control_frequency``, float32 Hz of this very dataset (0 where it is not known)."""

    def __post_init__(self) -> None:
        if self.observation_steps < 1 or self.action_horizon < 1:
            raise UserError(f"{self} is impossible. Expected at least 1 observation step and 1 action step.")

    def offset(self, reader: EpisodeReader) -> int:
        """Where the chunks of this dataset begin relative to the observation."""
        return reader.action_offset if self.action_offset is None else self.action_offset


class WindowIndex:
    """Every step of every chosen episode starts one window; windows are numbered through in episode order.

    ``episodes``: int64 [n], which episodes of the reader take part (a split). ``limit``: at most so many windows an
    episode and pass over the data; another pass takes other steps of a longer episode, all of them equally often.
    """

    def __init__(self, lengths: np.ndarray, episodes: np.ndarray, limit: int | None = None, seed: int = 0) -> None:
        self.episodes = np.asarray(episodes, dtype=np.int64)
        self.limit, self.seed = limit, seed
        self._lengths = np.asarray(lengths, dtype=np.int64)[self.episodes]
        self.ends = np.cumsum(self._lengths if limit is None else np.minimum(self._lengths, limit))

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def locate(self, index: int, turn: int = 0) -> tuple[int, int]:
        """(episode, step) of window ``index`` in pass ``turn``. Raises IndexError outside [0, len)."""
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        row = int(np.searchsorted(self.ends, index, side="right"))
        step = index - (int(self.ends[row - 1]) if row else 0)
        episode, length = int(self.episodes[row]), int(self._lengths[row])
        if self.limit is not None and length > self.limit:
            # Round and round one shuffled ring, shorter than once a pass: no step twice in a pass, none seldomer.
            place = np.array([(turn * self.limit + step) % length])
            step = int(shuffled(place, length, hash_seed(f"steps {self.seed} {episode}"))[0])
        return episode, step


@dataclass(frozen=True)
class TrainingPlaces:
    """Where each global position of a run lies: the windows of its training episodes, in its order."""

    index: WindowIndex
    order: Order

    def __len__(self) -> int:
        """Positions of an epoch."""
        return len(self.order)

    def at(self, positions: Sequence[int] | np.ndarray) -> list[tuple[int, int]]:
        """(episode, step) of global positions."""
        windows, turns = self.order.windows(np.asarray(positions))
        return [self.index.locate(int(w), int(t)) for w, t in zip(windows, turns, strict=True)]


def build_sample(reader: EpisodeReader, episode: int, step: int, window: WindowSpec, keys: Sequence[str]) -> Sample:
    """Read one sample. ``keys`` are observation keys; images are decoded for the observation window alone.

    The chunk starts at ``max(0, step + window.offset(reader))``, as in the published ALOHA reader; where that is before
    the observation, the episode's end is reached one step later. Raises IndexError for a step outside the episode.
    """
    reader, episode = reader.resolve(episode)
    if not 0 <= step < reader.lengths[episode]:
        raise IndexError(f"step {step} of {reader.name_of(episode)}, which has {reader.lengths[episode]}")
    length = int(reader.lengths[episode])
    observed = np.arange(step - window.observation_steps + 1, step + 1)
    start = max(0, step + window.offset(reader))
    acted = np.arange(start, start + window.action_horizon)

    seen = np.maximum(observed, 0)
    observation = reader.read(episode, seen, keys)
    observation["timestep"] = seen.astype(np.int32)
    observation["pad_mask"] = observed >= 0
    if window.surroundings:
        observation["episode_proprio"] = reader.all_proprio(episode)
        observation["control_frequency"] = np.asarray(reader.description.fps, dtype=np.float32)
    return Sample(
        observation=observation,
        action=reader.read(episode, np.minimum(acted, length - 1), ("action",))["action"],
        action_pad_mask=acted < length,
        task={"language_instruction": reader.instruction_at(episode, step)},
        dataset_name=reader.description.name,
    )

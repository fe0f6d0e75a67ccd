"""Reader of LeRobot datasets, versions 2.0, 2.1 and 3.0 (huggingface/lerobot), with images in parquet or in videos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vla_ft.data.formats.base import EpisodeReader, beyond_float32
from vla_ft.data.formats.lerobot_index import IndexPlan, open_index
from vla_ft.data.formats.lerobot_layout import (
    VISUAL,
    DatasetInfo,
    Feature,
    data_file,
    load_episodes,
    load_info,
    load_tasks,
    video_file,
)
from vla_ft.data.formats.lerobot_tables import COUNTERS
from vla_ft.data.formats.open_descriptors import OpenDescriptors
from vla_ft.data.formats.parquet_pages import read_value
from vla_ft.data.formats.rlds_values import decode_image
from vla_ft.data.formats.video_frames import VideoFiles
from vla_ft.data.sample import IMAGE_PREFIX, ActionKind, ActionMode, DatasetDescription
from vla_ft.errors import UserError, unknown


class LeRobotReader(EpisodeReader):
    """Random access to a LeRobot folder. Cameras keep the last part of their feature's name
    (``observation.images.top`` -> ``image_top``); tasks are the instructions, step by step.

    Opening reads the tables of ``meta`` and, the first time, indexes all numbers (``lerobot_index``). Images are found
    by page or by time, and only those asked for are decoded. LeRobot does not record what an action means: say it with
    ``action_kind`` and ``action_mode``, or it stays ``unknown``.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        cameras: Sequence[str] | None = None,
        action: Sequence[str] = ("action",),
        proprio: Sequence[str] = ("observation.state",),
        instruction: str = "",
        action_kind: ActionKind = "unknown",
        action_mode: ActionMode = "unknown",
        name: str | None = None,
        cache: Path | str | None = None,
        open_files: int = 8,
    ) -> None:
        """Open a folder. Raises UserError for a version that is not supported, a table that is damaged or disagrees,
        and a camera or feature that is not there. Damage of single episodes is told when they are read.

        ``cameras``: which to read, all by default. ``action``, ``proprio``: the features that are joined, in order.
        ``instruction``: for steps whose task is empty. ``cache``: where the index is kept (``lerobot_index``).
        """
        self.path = Path(path)
        self.info = load_info(self.path)
        self._table = load_episodes(self.info)
        self._tasks = load_tasks(self.info)
        self._instruction = instruction
        self.lengths = self._table.lengths
        columns = {"action": tuple(action), "proprio": tuple(proprio)}
        self._proprio = " ".join(columns["proprio"])
        self._columns = (*columns["action"], *columns["proprio"])
        for key, features in columns.items():
            _refuse_no_numbers(self.info, key, features)
        found = camera_features(self.info)
        for camera in cameras or ():
            if camera not in found:
                raise unknown("camera", camera, found)
        self._cameras = {c: found[c] for c in (found if cameras is None else dict.fromkeys(cameras))}
        self._images = tuple(f.name for f in self._cameras.values() if f.dtype == "image")
        plan = IndexPlan(info=self.info, table=self._table, tasks=self._tasks, columns=columns, images=self._images)
        self._starts = plan.starts
        self.index = open_index(plan, None if cache is None else Path(cache))
        self.damage = self.index.damage
        """Episode -> what is wrong with it, in a sentence; reading it raises that."""
        self._videos, self._files = VideoFiles(open_files), OpenDescriptors(open_files)
        self.description = self._describe(columns, name or self.path.name, action_kind, action_mode)

    def read(self, episode: int, steps: np.ndarray, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """See ``EpisodeReader.read``."""
        wanted = np.asarray(steps, dtype=np.int64)
        if wanted.ndim != 1 or (len(wanted) and not 0 <= wanted.min() <= wanted.max() < self.lengths[episode]):
            raise ValueError(f"steps {wanted} of an episode of {self.lengths[episode]} steps")
        if episode in self.damage:
            raise UserError(self.damage[episode])
        result = {}
        for key in keys:
            if key in ("action", "proprio"):
                result[key] = self._numbers(key, episode, wanted)
                continue
            camera = key.removeprefix(IMAGE_PREFIX)
            if not key.startswith(IMAGE_PREFIX) or camera not in self._cameras:
                raise unknown("feature", key, ("action", "proprio", *(IMAGE_PREFIX + c for c in self._cameras)))
            rows, places = np.unique(wanted, return_inverse=True)
            frames = self._frames(episode, rows, camera)
            in_place = len(rows) == len(wanted) and bool((places == np.arange(len(rows))).all())
            result[key] = frames if in_place else frames[places]
        return result

    def instruction(self, episode: int) -> str:
        """See ``EpisodeReader.instruction``: that of the first step."""
        return self.instruction_at(episode, 0)

    def instruction_at(self, episode: int, step: int) -> str:
        """See ``EpisodeReader.instruction_at``: LeRobot has a task for each step."""
        if episode in self.damage:
            return self._instruction
        return self._tasks[int(self._numbers("task", episode, np.array([step]))[0])] or self._instruction

    def times(self, episode: int) -> np.ndarray | None:
        """See ``EpisodeReader.times``: its timestamps, which the index has compared with ``fps``."""
        if episode in self.damage:
            return None
        return self._numbers("timestamp", episode, np.arange(self.lengths[episode])).astype(np.float64)

    def name_of(self, episode: int) -> str:
        """Its number and its data file."""
        file = data_file(self.info, int(self._table.chunk[episode]), int(self._table.file[episode]))
        return f"episode {self._table.number[episode]} ({file})"

    def fingerprint(self) -> str:
        """Hash of lengths and all action and proprio values in float32; versions 2 and 3 of a dataset have the same."""
        return self.index.fingerprint

    def sources(self) -> dict[str, Path]:
        """See ``EpisodeReader.sources``."""
        table = self._table
        pairs = [data_file(self.info, int(c), int(f)) for c, f in zip(table.chunk, table.file, strict=True)]
        for feature, (chunks, files, _) in table.videos.items():
            pairs += [video_file(self.info, feature, int(c), int(f)) for c, f in zip(chunks, files, strict=True)]
        return {str(path.relative_to(self.info.root)): path for path in dict.fromkeys(pairs)}

    def reading(self) -> dict[str, str]:
        """See ``EpisodeReader.reading``."""
        return {"proprio": self._proprio}

    def unread(self) -> list[str]:
        """See ``EpisodeReader.unread``."""
        read = {*self._columns, *COUNTERS, *(feature.name for feature in self._cameras.values())}
        kinds = {name: self.info.features[name].dtype for name in self._columns}
        return [*(name for name in self.info.features if name not in read), *beyond_float32(kinds)]

    def close(self) -> None:
        """Close the files that this process opened; the next read opens them again."""
        self._videos.close()
        self._files.close()

    def _numbers(self, name: str, episode: int, steps: np.ndarray) -> np.ndarray:
        """Rows of an array of the index at ``steps``."""
        if not len(steps):
            return self.index.rows(name, 0, 0)
        first, last = int(steps.min()), int(steps.max())
        start = int(self._starts[episode])
        values = self.index.rows(name, start + first, start + last + 1)
        return values if len(steps) == len(values) and (np.diff(steps) == 1).all() else values[steps - first]

    def _frames(self, episode: int, rows: np.ndarray, camera: str) -> np.ndarray:
        """Frames at increasing ``rows`` without repeats."""
        size = self.description.cameras[camera]
        if not len(rows):
            return np.empty((0, *size, 3), np.uint8)
        feature = self._cameras[camera]
        try:
            if feature.dtype == "video":
                chunk, file, begins = self._table.videos[feature.name]
                path = video_file(self.info, feature.name, int(chunk[episode]), int(file[episode]))
                times = exact_times(self._numbers("timestamp", episode, rows), rows, self.info.fps)
                return self._videos.frames(path, begins[episode] + times, size)
            return self._pictures(episode, rows, feature, size)
        except UserError as error:
            raise UserError(f"{IMAGE_PREFIX}{camera} at steps {rows} of {self.name_of(episode)}: {error}") from error

    def _pictures(self, episode: int, rows: np.ndarray, feature: Feature, size: tuple[int, int]) -> np.ndarray:
        """Encoded images out of parquet pages."""
        where = (int(self._table.chunk[episode]), int(self._table.file[episode]))
        path, number = data_file(self.info, *where), self._images.index(feature.name)
        places = self._numbers(f"place_{number}", episode, rows)
        pages, blocks = self.index.array("pages"), self.index.array("blocks")
        frames = np.empty((len(rows), *size, 3), np.uint8)
        try:
            descriptor = self._files.get(path)
            for place, (page, offset, length) in enumerate(places.tolist()):
                frames[place] = decode_image(read_value(descriptor, pages[page], blocks, offset, length), size)
        except (OSError, ValueError, IndexError, OverflowError, MemoryError) as error:
            self._files.drop(path)
            raise UserError(f"cannot read {path}: {error}. Copy the file again, or leave the episode out.") from error
        return frames

    def _describe(
        self,
        columns: dict[str, tuple[str, ...]],
        name: str,
        kind: ActionKind,
        mode: ActionMode,
    ) -> DatasetDescription:
        names = {key: _joined_names(self.info, features, key) for key, features in columns.items()}
        sizes = {camera: feature.image_size() for camera, feature in self._cameras.items()}
        return DatasetDescription(
            name=name,
            cameras={camera: size for camera, size in sizes.items() if size is not None},
            action_names=names["action"],
            action_units=("unknown",) * len(names["action"]),
            proprio_names=names["proprio"],
            proprio_units=("unknown",) * len(names["proprio"]),
            action_kind=kind,
            action_mode=mode,
            gripper="unknown",
            fps=self.info.fps,
        )


def exact_times(stored: np.ndarray, steps: np.ndarray, fps: float) -> np.ndarray:
    """Seconds of ``steps``, float64: step / fps where the stored float32 is that, rounded; else what is stored.

    After 2,048 s float32 rounds by up to 0.12 ms, more than a frame may lie beside its time.
    """
    wanted = steps / fps
    return np.where(np.abs(stored - wanted) <= np.spacing(stored), wanted, stored.astype(np.float64))


def camera_features(info: DatasetInfo) -> dict[str, Feature]:
    """Colour cameras by name: without ``observation.images.`` or ``observation.``, unless two would be the same."""
    short: dict[str, list[Feature]] = {}
    for feature in info.features.values():
        if feature.image_size() is not None:
            name = feature.name.removeprefix("observation.").removeprefix("images.")
            short.setdefault(name, []).append(feature)
    result: dict[str, Feature] = {}
    for name, features in short.items():
        result |= {name: features[0]} if len(features) == 1 else {f.name: f for f in features}
    return result


def dimension_names(feature: Feature, key: str) -> tuple[str, ...]:
    """Names of a feature's dimensions as its dataset gives them (a list, or lists by group), else numbered."""
    names = feature.names
    if isinstance(names, dict):
        if all(isinstance(v, int) for v in names.values()):
            names = sorted(names, key=lambda n: feature.names[n])
        else:
            names = [n for group in names.values() for n in (group if isinstance(group, list) else [group])]
    elif isinstance(names, list) and len(names) == 1 and isinstance(names[0], list):
        names = names[0]
    if isinstance(names, list) and len(names) == feature.width == len({str(n) for n in names}):
        return tuple(str(n) for n in names)
    return tuple(f"{key}_{i}" for i in range(feature.width))


def _joined_names(info: DatasetInfo, features: Sequence[str], key: str) -> tuple[str, ...]:
    """Names of all dimensions; of several features each has its feature's in front."""
    if len(features) == 1:
        return dimension_names(info.features[features[0]], key)
    return tuple(f"{name}.{part}" for name in features for part in dimension_names(info.features[name], key))


def _refuse_no_numbers(info: DatasetInfo, key: str, names: Sequence[str]) -> None:
    known = [f.name for f in info.features.values() if f.dtype not in (*VISUAL, "string", "language")]
    for name in names:
        if name not in known:
            raise UserError(
                f"{unknown(f'feature for {key}', name, known)} Say which of {info.root} it is: data.{key}=[NAME]."
            )
    if not names:
        raise UserError(f"data.{key}=[] names no feature of {info.root}. Its numbers are: {', '.join(known)}.")

"""A reader of raw columns seen through a standardisation."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vla_ft.data.formats.base import EpisodeReader
from vla_ft.data.sample import IMAGE_PREFIX, DatasetDescription
from vla_ft.data.standardize.base import ACTION_NAMES, ACTION_UNITS, GRIPPER, Columns, Standardization
from vla_ft.errors import UserError, nearest

_CHANGE_NOTHING = ("custom_finetuning",)
"""Standardisations that read the standard form itself."""


class RawReader(Protocol):
    """What a reader must offer beyond ``EpisodeReader`` to be standardised (the RLDS reader does)."""

    def raw(self, episode: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """Columns of all steps of an episode by their flattened names (``observation/state``), time first.

        Text is an object array of bytes or str.
        """


@dataclass(frozen=True)
class _Kept:
    """What was read of one episode: its numbers by key, and its instruction."""

    episode: int
    numbers: dict[str, np.ndarray]
    instruction: str


class StandardizedReader(EpisodeReader):
    """Episodes in standard form: 7 actions (relative movement and an absolute gripper), cameras by role.

    Numeric columns of an episode are standardised whole, because relabelling and gripper rules look ahead; images are
    decoded for the asked steps alone. The last episode's numbers are kept, for the chunk that follows an observation.
    """

    def __init__(
        self,
        inner: EpisodeReader,
        standardization: Standardization,
        roles: Sequence[str] | None = None,
        instruction: str = "",
    ) -> None:
        """``roles``: which cameras, all by default. ``instruction``: of episodes that carry none.

        Raises UserError for a dataset without raw columns, or in standard form already, and for cameras it lacks.
        """
        _refuse(inner, standardization)
        self._default_instruction = instruction
        self.inner, self.standardization = inner, standardization
        self.cameras = _cameras(inner, standardization, roles)
        self.lengths = np.maximum(
            np.asarray(inner.lengths) - standardization.drop_first - standardization.drop_last, 0
        ).astype(np.int64)
        self.description = _describe(inner.description, standardization, self.cameras)
        self._kept: _Kept | None = None

    def read(self, episode: int, steps: np.ndarray, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """See ``EpisodeReader.read``."""
        steps = np.asarray(steps, dtype=np.int64)
        if len(steps) and not 0 <= steps.min() <= steps.max() < self.lengths[episode]:
            raise ValueError(f"steps {steps} of an episode of {self.lengths[episode]} steps")
        raw_keys = {IMAGE_PREFIX + role: IMAGE_PREFIX + camera for role, camera in self.cameras.items()}
        wanted = [raw_keys[key] for key in keys if key in raw_keys]
        images = self.inner.read(episode, steps + self.standardization.drop_first, wanted) if wanted else {}
        numbers = self._load(episode).numbers if any(key in ("action", "proprio") for key in keys) else {}
        return {key: images[raw_keys[key]] if key in raw_keys else numbers[key][steps] for key in keys}

    def times(self, episode: int) -> np.ndarray | None:
        """See ``EpisodeReader.times``."""
        seconds, first = self.inner.times(episode), self.standardization.drop_first
        return None if seconds is None else seconds[first : first + int(self.lengths[episode])]

    def instruction(self, episode: int) -> str:
        """The first instruction of the episode that is not empty."""
        return self._load(episode).instruction

    def fingerprint(self) -> str:
        """Hash of the raw data's and of the standardisation's name and version."""
        about = f"{self.inner.fingerprint()} {self.standardization.name} {self.standardization.version}"
        return hashlib.sha256(about.encode()).hexdigest()

    def sources(self) -> dict[str, Path]:
        """Every file that observations are read from, as the raw reader names them."""
        return self.inner.sources()  # type: ignore[attr-defined, no-any-return]

    def reading(self) -> dict[str, str]:
        """What changes observations read from the same files: the standardisation and its cameras, too."""
        about = f"{self.standardization.name} {self.standardization.version} {self.cameras}"
        return {**self.inner.reading(), "standardize": about}  # type: ignore[attr-defined]

    def unread(self) -> list[str]:
        """See ``EpisodeReader.unread``: raw columns that the standardisation does not use, cameras without a role."""
        used = (*self.standardization.columns, self.standardization.instruction)
        left = [name for name in self.inner.description.cameras if name not in self.cameras.values()]
        return [name for name in self.inner.unread() if name not in used] + [IMAGE_PREFIX + name for name in left]

    def name_of(self, episode: int) -> str:
        """See ``EpisodeReader.name_of``."""
        return self.inner.name_of(episode)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}

    def _load(self, episode: int) -> _Kept:
        """Everything of an episode but its images, in one look at its record."""
        if self._kept is None or self._kept.episode != episode:
            wanted = self.standardization
            raw = self.inner.raw(episode, (*wanted.columns, wanted.instruction))  # type: ignore[attr-defined]
            texts = map(_text, raw[wanted.instruction])
            text = next((found for found in texts if found), self._default_instruction)
            self._kept = _Kept(episode, self._standardize(episode, raw), text)
        return self._kept

    def _standardize(self, episode: int, raw: Columns) -> dict[str, np.ndarray]:
        length, wanted = int(self.lengths[episode]), self.standardization
        if not length:
            return {"action": np.zeros((0, 7), np.float32), "proprio": np.zeros((0, len(wanted.proprio)), np.float32)}
        action, proprio = wanted.numbers(raw)
        if proprio is None:
            proprio = np.zeros((len(action), 0), dtype=np.float32)
        for key, values, width in (("action", action, 7), ("proprio", proprio, len(wanted.proprio))):
            if values.shape != (length, width):
                raise UserError(
                    f"{self.name_of(episode)}: {key} has shape {values.shape} after standardisation "
                    f"'{wanted.name}', expected {(length, width)}. The dataset has another layout than the published "
                    "one: choose another standardize for it."
                )
        return {"action": action, "proprio": proprio}


def _refuse(inner: EpisodeReader, wanted: Standardization) -> None:
    about = f"Standardisation '{wanted.name}' works on the raw columns of an RLDS dataset; '{inner.description.name}'"
    if not hasattr(inner, "raw"):
        raise UserError(f"{about} is in a format without them. Leave its standardize out.")
    if inner.description.gripper == GRIPPER and wanted.name not in _CHANGE_NOTHING:  # twice would turn grippers back
        raise UserError(f"{about} is standardised already. Read it as it is stored, with standardize=none.")


def _cameras(inner: EpisodeReader, wanted: Standardization, roles: Sequence[str] | None) -> dict[str, str]:
    """Role -> the inner reader's camera. Raises UserError for a role or camera that is not there."""
    chosen = tuple(wanted.images) if roles is None else tuple(roles)
    found = {}
    for role in chosen:
        if role not in wanted.images:
            raise UserError(
                f"'{wanted.name}' has no {role} camera, it has {', '.join(wanted.images)}."
                f"{nearest(role, wanted.images)} Choose others with data.cameras."
            )
        name = wanted.images[role]
        names = [camera for camera in inner.description.cameras if camera in _spellings(name)]
        if not names:
            raise UserError(
                f"The {role} camera of '{wanted.name}' is '{name}', but the dataset has "
                f"{', '.join(inner.description.cameras) or 'no cameras'}. Choose other roles with data.cameras."
            )
        found[role] = names[0]
    return found


def _spellings(feature: str) -> set[str]:
    """What a reader may call the camera of an image feature: samples prefix names with ``image_`` already."""
    short = feature.removeprefix(IMAGE_PREFIX).removesuffix("_image")
    return {feature, short, "primary"} if feature == "image" else {feature, short}


def _describe(raw: DatasetDescription, wanted: Standardization, cameras: dict[str, str]) -> DatasetDescription:
    return DatasetDescription(
        name=wanted.name,
        cameras={role: raw.cameras[camera] for role, camera in cameras.items()},
        action_names=ACTION_NAMES,
        action_units=ACTION_UNITS,
        proprio_names=wanted.proprio,
        proprio_units=wanted.proprio_units,
        action_kind="end_effector",
        action_mode="delta",
        gripper=GRIPPER,
        gripper_dims=(6,),
        fps=wanted.fps,
    )


def _text(value: Any) -> str:
    """Text of a step: bytes, str, or an array of Unicode code points padded with zeros (Language Table)."""
    if isinstance(value, np.ndarray):
        return "".join(chr(code) for code in value.ravel().tolist() if code).strip()
    return (value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)).strip()

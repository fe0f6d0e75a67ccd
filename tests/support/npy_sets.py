"""The ACT guide's npy folder in every form, of the same random episodes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from vla_ft.data.formats.npy_writer import NpyWriter
from vla_ft.data.sample import DatasetDescription

LENGTHS = (6, 3, 8)
SIZE = (5, 7)
KEYS = ("action", "proprio", "image_left", "image_right")


def columns(lengths: tuple[int, ...] = LENGTHS) -> dict[str, np.ndarray]:
    """``action`` [N, 14], ``state`` [N, 16] and two cameras, as the guide asks for them."""
    rng, steps = np.random.default_rng(5), sum(lengths)
    return {
        "action": rng.normal(size=(steps, 14)).astype(np.float32),
        "image_left": rng.integers(0, 256, size=(steps, *SIZE, 3), dtype=np.uint8),
        "image_right": rng.integers(0, 256, size=(steps, *SIZE, 3), dtype=np.uint8),
        "state": rng.normal(size=(steps, 16)).astype(np.float32),
    }


def write_numbers(folder: Path, values: dict[str, np.ndarray], lengths: tuple[int, ...] = LENGTHS) -> None:
    """``actions.npy`` and ``rollout_length.npy``."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "actions.npy", values["action"])
    np.save(folder / "rollout_length.npy", np.array(lengths, dtype=np.int64))


def observed(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: column for name, column in values.items() if name != "action"}


def dicts(values: dict[str, np.ndarray]) -> np.ndarray:
    """The first documented layout: an array of dicts."""
    steps = np.empty(len(values["action"]), dtype=object)
    for number in range(len(steps)):
        steps[number] = {name: column[number] for name, column in observed(values).items()}
    return steps


def write_dicts(folder: Path, values: dict[str, np.ndarray], lengths: tuple[int, ...] = LENGTHS) -> None:
    write_numbers(folder, values, lengths)
    np.save(folder / "observations.npy", dicts(values), allow_pickle=True)


def write_arrays(folder: Path, values: dict[str, np.ndarray], lengths: tuple[int, ...] = LENGTHS) -> None:
    """The second one: a dict of arrays."""
    write_numbers(folder, values, lengths)
    np.save(folder / "observations.npy", np.array(observed(values), dtype=object), allow_pickle=True)


def write_npz(folder: Path, values: dict[str, np.ndarray], lengths: tuple[int, ...] = LENGTHS) -> None:
    write_numbers(folder, values, lengths)
    np.savez(folder / "observations.npz", **observed(values))


def write_compressed(folder: Path, values: dict[str, np.ndarray], lengths: tuple[int, ...] = LENGTHS) -> None:
    write_numbers(folder, values, lengths)
    np.savez_compressed(folder / "observations.npz", **observed(values))


def write_files(folder: Path, values: dict[str, np.ndarray], lengths: tuple[int, ...] = LENGTHS) -> None:
    """A file a key."""
    write_numbers(folder, values, lengths)
    (folder / "observations").mkdir()
    for name, column in observed(values).items():
        np.save(folder / "observations" / f"{name}.npy", column)


def write_raw(folder: Path, values: dict[str, np.ndarray], lengths: tuple[int, ...] = LENGTHS, spare: int = 4) -> None:
    """As the guide's authors do: ``np.save``, then a memory map over the header."""
    steps = sum(lengths)
    folder.mkdir(parents=True, exist_ok=True)
    flat = [(values[f"image_{side}"].astype(np.float32) / 255).reshape(steps, -1) for side in ("left", "right")]
    rows = {"observations": np.hstack([*flat, values["state"], 0 * values["state"]]), "actions": values["action"]}
    for name, content in rows.items():
        np.save(folder / f"{name}.npy", np.zeros((steps + spare, content.shape[1]), np.float32))
        mapped = np.memmap(folder / f"{name}.npy", np.float32, "r+", shape=(steps + spare, content.shape[1]))
        mapped[:steps] = content
        mapped.flush()
    np.save(folder / "rollout_length.npy", np.array(lengths, dtype=np.uint16))
    (folder / "metadata.txt").write_text(
        f"total_sample_count={steps + spare} max_steps_per_rollout=50 camera_height={SIZE[0]} camera_width={SIZE[1]} "
        f"skip_frames=1 sample_count={steps} rollout_count={len(lengths)}"
    )


def _names(*hand: str) -> tuple[str, ...]:
    """As the reader names the guide's dimensions."""
    return tuple(f"{side}_{name}" for side in ("left", "right") for name in (*(f"joint_{i}" for i in range(6)), *hand))


def write_ours(folder: Path, values: dict[str, np.ndarray], lengths: tuple[int, ...] = LENGTHS) -> None:
    """What ``NpyWriter`` makes."""
    about = DatasetDescription(
        name="guide", cameras={"left": SIZE, "right": SIZE}, action_kind="joint", action_mode="absolute",
        action_names=_names("gripper"), action_units=("rad",) * 14,
        proprio_names=_names("finger_0", "finger_1"), proprio_units=("rad",) * 16, gripper="unknown", fps=20.0,
    )  # fmt: skip
    writer, start = NpyWriter(folder, about), 0
    for number, length in enumerate(lengths):
        rows = range(start, start + length)
        steps = ({("proprio" if k == "state" else k): v[row] for k, v in values.items()} for row in rows)
        writer.add(steps, f"task {number % 2}")
        start += length
    writer.finish()


FORMS: dict[str, Callable[..., None]] = {
    "dicts": write_dicts,
    "arrays": write_arrays,
    "npz": write_npz,
    "compressed": write_compressed,
    "files": write_files,
    "raw": write_raw,
    "ours": write_ours,
}
PICKLED = ("dicts", "arrays")

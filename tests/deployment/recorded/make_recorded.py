"""Records ``episode.json`` and the pictures beside it: python tests/deployment/recorded/make_recorded.py EPISODE.hdf5

EPISODE is one that ``vla-ft record`` wrote. Its actions are played again in the same simulation, and every tenth step
is kept as SIMPLER's WidowX environments would give it: pictures of 480 x 640 at five control steps a second, ``agent``
with six joints and two fingers (``qpos``, ``qvel``) and the gripper's pose in the arm's base frame (``eef_pos``:
metres, quaternion w x y z, 1 open). It is the right arm's, which picks the cube up.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

EVERY, PICTURES = 10, range(12, 22)
"""Steps of the episode to one control step, and the control steps whose pictures are kept: down to the cube, and up."""
RIGHT = slice(8, 16)
"""The right arm in the simulation's state: six joints and two fingers, behind the left one's."""


def main(episode: Path) -> None:
    """Write the record beside this file."""
    from vla_ft.simulation.rendering import select_backend

    select_backend()
    from vla_ft.simulation.environment import CubeTransfer

    with h5py.File(episode) as file:
        actions, recorded = np.array(file["action"]), np.array(file["observations/qpos"])
        cube, instruction = np.array(file.attrs["cube_position"]), str(file.attrs["language_instruction"])
    agent: dict[str, list[list[float]]] = {"qpos": [], "qvel": [], "eef_pos": []}
    here = Path(__file__).parent
    with CubeTransfer() as world:
        world.reset(cube)
        for step, action in enumerate(actions):
            np.testing.assert_allclose(world.qpos(), recorded[step], atol=1e-6)
            if step % EVERY == 0:
                for name, values in observed(world).items():
                    agent[name].append([round(float(value), 6) for value in values])
                if step // EVERY in PICTURES:
                    picture = Image.fromarray(world.render("angle", 480, 640))
                    picture.save(here / f"{step // EVERY:02d}.jpg", quality=70)
            world.step(action)
    record = {"source": "vla-ft record, transfer_cube, seed 0, episode 0", "fps": 5, "instruction": instruction,
              "pictures": list(PICTURES), "agent": agent}  # fmt: skip
    (here / "episode.json").write_text(json.dumps(record).replace("], [", "],\n["))


def observed(world: object) -> dict[str, np.ndarray]:
    """``qpos`` [8], ``qvel`` [8] and ``eef_pos`` [8] of now."""
    import mujoco

    physics = world.physics  # type: ignore[attr-defined]
    model, data = physics.model.ptr, physics.data
    base, gripper = model.body("vx300s_right").id, model.body("vx300s_right/gripper_link").id
    inverse, turn, place = np.zeros(4), np.zeros(4), np.zeros(3)
    mujoco.mju_negQuat(inverse, data.xquat[base])
    mujoco.mju_rotVecQuat(place, data.xpos[gripper] - data.xpos[base], inverse)
    mujoco.mju_mulQuat(turn, inverse, data.xquat[gripper])
    opened = [world.qpos()[13]]  # type: ignore[attr-defined]
    return {"qpos": data.qpos[RIGHT], "qvel": data.qvel[RIGHT], "eef_pos": np.concatenate([place, turn, opened])}


if __name__ == "__main__":
    main(Path(sys.argv[1]))

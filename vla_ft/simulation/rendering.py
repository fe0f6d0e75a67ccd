"""Which OpenGL backend MuJoCo draws with on a machine without a screen. Must be settled before MuJoCo is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from vla_ft.errors import UserError

VARIABLE = "MUJOCO_GL"
NEEDED_PACKAGES = (
    "Install Mesa's off-screen library (Debian and Ubuntu: apt-get install libosmesa6) or, beside a graphics card's "
    "driver, EGL (apt-get install libegl1), or set MUJOCO_GL to a backend that works here."
)
_PROBE = """
import mujoco
context = mujoco.GLContext(64, 64)
context.make_current()
mujoco.MjrContext(mujoco.MjModel.from_xml_string("<mujoco/>"), mujoco.mjtFontScale.mjFONTSCALE_100)
context.free()
"""
_CARD_NODES = ("/dev/nvidia0", "/dev/dri/renderD128")


def has_card() -> bool:
    """Whether a device node of a graphics card is visible to this process."""
    return any(Path(node).exists() for node in _CARD_NODES)


def backend_works(name: str) -> bool:
    """Whether MuJoCo can open an off-screen context with backend ``name``.

    Tried in a process of its own: a failed import would leave MuJoCo unusable in this one.
    """
    environment = {**os.environ, VARIABLE: name}
    environment.pop("PYOPENGL_PLATFORM", None)
    try:
        probe = subprocess.run([sys.executable, "-c", _PROBE], env=environment, capture_output=True, timeout=120)
    except subprocess.TimeoutExpired:
        return False
    return probe.returncode == 0


def select_backend() -> str:
    """Settle and return the backend: ``MUJOCO_GL`` when set, else EGL beside a card, else OSMesa.

    Without a card EGL is tried after OSMesa (Mesa draws it on the CPU as well). Raises UserError when none works.
    """
    chosen = os.environ.get(VARIABLE, "")
    if chosen:
        if not backend_works(chosen):
            raise UserError(f"MUJOCO_GL={chosen} is set, but MuJoCo cannot draw with it here. {NEEDED_PACKAGES}")
        return chosen
    candidates = ("egl", "osmesa") if has_card() else ("osmesa", "egl")
    for name in candidates:
        if backend_works(name):
            os.environ[VARIABLE] = name
            return name
    raise UserError(f"MuJoCo cannot draw without a screen here: neither EGL nor OSMesa works. {NEEDED_PACKAGES}")

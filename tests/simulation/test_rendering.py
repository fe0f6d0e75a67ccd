"""The choice of a drawing backend: what the user set, else EGL beside a card, else OSMesa; else a sentence."""

from __future__ import annotations

import pytest

from vla_ft.errors import UserError
from vla_ft.simulation import rendering


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """Pretend a machine: backends that work, and whether it has a card."""

    def pretend(*working: str, card: bool = False, chosen: str = "") -> None:
        monkeypatch.setenv("MUJOCO_GL", chosen)
        monkeypatch.setattr(rendering, "has_card", lambda: card)
        monkeypatch.setattr(rendering, "backend_works", lambda name: name in working)

    return pretend


@pytest.mark.parametrize(
    ("working", "card", "expected"),
    [
        (("egl", "osmesa"), True, "egl"),
        (("egl", "osmesa"), False, "osmesa"),
        (("osmesa",), True, "osmesa"),
        (("egl",), False, "egl"),
    ],
)
def test_choice(machine, working: tuple[str, ...], card: bool, expected: str) -> None:
    machine(*working, card=card)
    assert rendering.select_backend() == expected
    assert rendering.os.environ["MUJOCO_GL"] == expected


def test_what_the_user_set_is_kept_or_refused(machine) -> None:
    machine("osmesa", "glfw", chosen="glfw", card=True)
    assert rendering.select_backend() == "glfw"
    machine("osmesa", chosen="egl")
    with pytest.raises(UserError, match=r"MUJOCO_GL=egl is set.*libosmesa6"):
        rendering.select_backend()


def test_none_works(machine) -> None:
    machine(card=True)
    with pytest.raises(UserError, match=r"neither EGL nor OSMesa.*apt-get install libosmesa6.*libegl1"):
        rendering.select_backend()


def test_a_backend_that_does_not_exist_does_not_work() -> None:
    assert not rendering.backend_works("no-such-backend")

"""--flash-attn: which wheel, from where, and what the label will say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vla_ft.environment.table import Environment, load_table
from vla_ft.errors import UserError
from vla_ft.host.attention import FLASH, decide
from vla_ft.host.wheelhouse import file_name, sha256


@pytest.fixture
def cu128() -> Environment:
    return load_table().environment("cu128")


def reached(url: str, ca_bundle: Path | None) -> None:
    return None


def refused(url: str, ca_bundle: Path | None) -> str:
    return "no route"


def never(url: str, ca_bundle: Path | None) -> None:
    raise AssertionError("asked the network")


def test_release_is_pinned_by_hash(cu128: Environment) -> None:
    chosen = decide(cu128, "auto", [], None, reached)
    assert cu128.flash_attention is not None
    assert chosen.requirement == (
        f"flash-attn @ {cu128.flash_attention.url} --hash=sha256:{cu128.flash_attention.sha256}"
    )
    assert chosen.backends == cu128.attention and chosen.backends[0] == FLASH


def test_auto_says_that_the_release_cannot_be_fetched(cu128: Environment) -> None:
    chosen = decide(cu128, "auto", [], None, refused)
    assert (chosen.requirement, FLASH in chosen.backends) == ("", False)
    assert "no route" in chosen.reason and "sdpa" in chosen.reason


def test_require_fails_with_the_file_to_fetch(cu128: Environment) -> None:
    assert cu128.flash_attention is not None
    with pytest.raises(UserError, match="no route") as caught:
        decide(cu128, "require", [], None, refused)
    assert file_name(cu128.flash_attention) in str(caught.value)


@pytest.mark.parametrize("name", ["cpu", "cu118"])
def test_environments_without_a_wheel(name: str) -> None:
    environment = load_table().environment(name)
    assert decide(environment, "auto", [], None, never).backends == environment.attention
    with pytest.raises(UserError, match="no prebuilt flash-attn"):
        decide(environment, "require", [], None, never)


def test_off_asks_nobody(cu128: Environment) -> None:
    assert FLASH not in decide(cu128, "off", [], None, never).backends


def test_unknown_mode(cu128: Environment) -> None:
    with pytest.raises(UserError, match="auto, require or off"):
        decide(cu128, "maybe", [], None, never)


def test_local_wheel_comes_first_and_must_be_the_pinned_one(cu128: Environment, tmp_path: Path) -> None:
    assert cu128.flash_attention is not None
    wheel = tmp_path / file_name(cu128.flash_attention)
    wheel.write_bytes(b"stand-in")
    pinned = replace(cu128, flash_attention=replace(cu128.flash_attention, sha256=sha256(wheel)))
    chosen = decide(pinned, "require", [tmp_path], None, never)
    assert chosen.wheel == wheel and chosen.requirement.startswith(f"flash-attn @ file:///wheelhouse/{wheel.name} ")
    with pytest.raises(UserError, match=sha256(wheel)):
        decide(cu128, "auto", [tmp_path], None, never)

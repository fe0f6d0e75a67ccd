"""What a check of the self-test answers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One statement about the environment."""

    name: str
    passed: bool
    detail: str

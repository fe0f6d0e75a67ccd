"""What a policy makes of a training file of published code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Translation:
    """A recipe's values, and what there is to say of single ones."""

    values: dict[str, Any]
    remarks: Mapping[str, str] = field(default_factory=dict)
    """By dotted key (``data.validation_fraction``): where it could not be the same, and what it is instead."""

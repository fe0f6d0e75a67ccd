"""Standardisation: what each published dataset's raw columns mean, as small pure functions (``STANDARDIZATIONS``)."""

from __future__ import annotations

from vla_ft.data.standardize import bridge, converted, rtx
from vla_ft.data.standardize.base import STANDARDIZATIONS, Standardization, find_standardization

__all__ = ["STANDARDIZATIONS", "Standardization", "bridge", "converted", "find_standardization", "rtx"]

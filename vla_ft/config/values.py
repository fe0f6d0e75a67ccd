"""Kinds of values that several sections share, and what every section forbids."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag

STRICT = ConfigDict(extra="forbid")
"""A section's ``__pydantic_config__``: a mistyped key is an error."""

NotNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
EngineName = Literal["auto", "single", "ddp", "fsdp2", "hsdp", "zero1", "zero2", "zero3"]
Precision = Literal["fp32", "bf16", "bf16_stochastic", "bf16_kahan"]
OFF = BeforeValidator(lambda value: "off" if value is False else value)
"""For choices with ``off`` among them, which YAML reads as a boolean."""
PlanAnswer = Annotated[Literal["refuse", "warn", "off"], OFF]
T = TypeVar("T")
Name = TypeVar("Name")

NamedOr = Annotated[
    Annotated[Name, Tag("<name>")] | Annotated[T, Tag("<own>")],
    Discriminator(lambda value: "<name>" if isinstance(value, str) else "<own>"),
]
"""A published choice by its name, or one's own. The tags keep mistakes in one from being explained as the other's."""

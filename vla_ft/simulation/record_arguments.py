"""``key=value`` words to a ``RecordConfig``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from vla_ft.errors import UserError, unknown
from vla_ft.simulation.record import RecordConfig


def parse(arguments: Sequence[str]) -> RecordConfig:
    """Typed and checked settings. Raises UserError for an unknown key or a value that does not fit."""
    bare = [word for word in arguments if "=" not in word]
    if bare:
        raise UserError(f"'{bare[0]}' is no setting. Expected key=value, e.g. output=data/transfer_cube episodes=20.")
    try:
        values = OmegaConf.to_container(OmegaConf.from_dotlist(list(arguments)))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(
            f"Cannot read {' '.join(arguments)}: {problem}. Expected key=value with YAML values."
        ) from error
    assert isinstance(values, dict)
    fields = {f.name for f in dataclasses.fields(RecordConfig)}
    for key in values:
        if key not in fields:
            raise unknown("setting", str(key), fields)
    if "output" not in values:
        raise UserError("Missing setting 'output'. Say where the episodes go, e.g. output=data/transfer_cube.")
    if isinstance(values.get("cameras"), str):
        values["cameras"] = values["cameras"].split(",")
    values["output"] = str(values["output"])
    try:
        return TypeAdapter(RecordConfig).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{name}={first['input']!r} does not fit: {first['msg'].lower()}.") from error

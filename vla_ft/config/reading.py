"""From ``recipe=NAME key=value ...`` to a checked configuration.

OmegaConf reads and merges; pydantic checks the plain dataclasses. The ``model`` section is the policy's own dataclass,
found through the registry.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vla_ft.config.checking import check
from vla_ft.config.run import RunConfig
from vla_ft.config.values import T
from vla_ft.errors import UserError, unknown
from vla_ft.policies.published import published_settings
from vla_ft.policies.registry import POLICIES, load_policy

RECIPES = Path(__file__).parents[1] / "recipes"
DEFAULT_RECIPE = "act-mock"
_TIGHT = re.compile(r"[{,]\s*[\w.]+:[^\s/]")
"""A key of an inline mapping without the space that YAML wants behind its colon."""


def recipe_names() -> list[str]:
    """Names that ``recipe=`` takes; a path to a YAML file works as well."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_run_config(arguments: Sequence[str]) -> RunConfig:
    """Build a run's configuration from ``recipe=NAME key=value ...``. Raises UserError on anything unknown or wrong.

    Where ``init.path`` is a folder that says how its network is built (LeRobot's), that goes before the recipe's
    ``model`` section, and the words after both.
    """
    pairs = dict(_split(argument) for argument in arguments)
    recipe = pairs.pop("recipe", DEFAULT_RECIPE)
    try:
        merged = OmegaConf.merge(_read_recipe(recipe), _dotlist(pairs))
        if settings := _published_settings(merged):
            merged = OmegaConf.merge(_read_recipe(recipe), {"model": settings}, _dotlist(pairs))
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise UserError(f"The overrides do not fit recipe {recipe}: {error}") from None
    assert isinstance(merged, DictConfig)
    values = _to_plain(merged)
    name = Path(recipe).stem
    values["recipe"] = name
    values.setdefault("output", str(Path(os.environ.get("VLA_FT_RUNS", "runs")) / name))
    return run_config_from_dict(values)


def recipe_value(recipe: str | None, key: str) -> Any:
    """What a recipe says for a dotted key; None when it says nothing. Raises UserError for an unknown recipe."""
    return OmegaConf.select(_read_recipe(recipe or DEFAULT_RECIPE), key)


def read_recipe(recipe: str) -> dict[str, Any]:
    """A recipe's values as they are written, by name or path. Raises UserError."""
    return _to_plain(_read_recipe(recipe))


def run_config_from_dict(values: dict[str, Any]) -> RunConfig:
    """Check plain nested values, such as those stored with a checkpoint. Raises UserError."""
    values = dict(values)
    model = values.pop("model", None) or {}
    config = check(RunConfig, values, "the configuration", foreign=lambda: _foreign_keys(values.get("policy")))
    policy = load_policy(config.policy)
    return dataclasses.replace(config, model=check(policy.Config, model, f"policy '{config.policy}'", prefix="model."))


def _foreign_keys(policy: Any) -> Mapping[str, str]:
    """Keys of the code that a policy was published with, and what to say instead."""
    return getattr(load_policy(policy), "FOREIGN_KEYS", {}) if policy in POLICIES else {}


def from_arguments(kind: type[T], arguments: Sequence[str], where: str) -> T:
    """Fill a command's own dataclass from ``key=value`` words."""
    return check(kind, given_values(arguments), where)


def given_values(arguments: Sequence[str]) -> dict[str, Any]:
    """What ``key=value`` words say, nested and unchecked, without a default: which keys were given at all."""
    return _to_plain(_dotlist(dict(_split(argument) for argument in arguments)))


def _published_settings(merged: Any) -> dict[str, Any] | None:
    """The ``model`` settings that the weights to start from come with, or None."""
    policy, path = (OmegaConf.select(merged, key) for key in ("policy", "init.path"))
    if not isinstance(policy, str) or not isinstance(path, str):
        return None
    return published_settings(policy, path, OmegaConf.select(merged, "init.layout") or "auto")


def _split(argument: str) -> tuple[str, str]:
    key, equals, value = argument.partition("=")
    if not equals or not key:
        raise UserError(f"Cannot read '{argument}': expected key=value, such as steps=1000 or data.path=/data/demos.")
    return key, value


def _read_recipe(recipe: str) -> DictConfig:
    path = RECIPES / f"{recipe}.yaml"
    if recipe.endswith((".yaml", ".yml")):
        path = Path(recipe)
        if not path.is_file():
            raise UserError(
                f"No recipe file at {path}. Give a path that exists, or one of: {', '.join(recipe_names())}."
            )
    elif not path.is_file():
        raise unknown("recipe", recipe, recipe_names())
    try:
        loaded = OmegaConf.load(path)
    except Exception as error:  # the YAML library's errors have no common base that OmegaConf exports
        raise UserError(f"Recipe {path} is not valid YAML: {error}") from None
    if not isinstance(loaded, DictConfig):
        raise UserError(f"Recipe {path} holds a {type(loaded).__name__}, expected a mapping of keys to values.")
    return loaded


def _dotlist(pairs: dict[str, str]) -> DictConfig:
    try:
        return OmegaConf.from_dotlist([f"{key}={value}" for key, value in pairs.items()])
    except Exception as error:  # as above
        tight = next((f"{key}={value}" for key, value in pairs.items() if _TIGHT.search(value)), None)
        hint = f" In {tight} a space is missing behind a colon: {{key: value}}, in quotes." if tight else ""
        raise UserError(
            f"Cannot read the overrides {' '.join(f'{k}={v}' for k, v in pairs.items())}: {error}{hint}"
        ) from None


def _to_plain(config: DictConfig) -> dict[str, Any]:
    try:
        plain = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"The configuration cannot be resolved: {error}") from None
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}

"""A run's configuration: a recipe, the words that change it, and the dataclasses that both must fit."""

from vla_ft.config.checking import check
from vla_ft.config.data import DataConfig
from vla_ft.config.optimization import BatchConfig, EmaConfig, GroupConfig, OptimizerConfig, ScheduleConfig
from vla_ft.config.reading import (
    DEFAULT_RECIPE,
    RECIPES,
    from_arguments,
    given_values,
    load_run_config,
    read_recipe,
    recipe_names,
    recipe_value,
    run_config_from_dict,
)
from vla_ft.config.run import RunConfig
from vla_ft.config.sections import (
    CheckpointConfig,
    ExecutionConfig,
    FrozenFeaturesConfig,
    InitConfig,
    LoggingConfig,
    LoraConfig,
    ValidationConfig,
)
from vla_ft.config.values import EngineName, Precision

__all__ = [
    "DEFAULT_RECIPE",
    "RECIPES",
    "BatchConfig",
    "CheckpointConfig",
    "DataConfig",
    "EmaConfig",
    "EngineName",
    "ExecutionConfig",
    "FrozenFeaturesConfig",
    "GroupConfig",
    "InitConfig",
    "LoggingConfig",
    "LoraConfig",
    "OptimizerConfig",
    "Precision",
    "RunConfig",
    "ScheduleConfig",
    "ValidationConfig",
    "check",
    "from_arguments",
    "given_values",
    "load_run_config",
    "read_recipe",
    "recipe_names",
    "recipe_value",
    "run_config_from_dict",
]

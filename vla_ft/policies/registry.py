"""Policies by name. Adding one is a folder and a line here."""

from __future__ import annotations

import importlib
from typing import Protocol, cast

from torch import nn

from vla_ft.data.sample import DatasetDescription
from vla_ft.data.statistics import DatasetStatistics
from vla_ft.errors import unknown
from vla_ft.policies.base import Model, Processor
from vla_ft.policies.ledger import Ledger, Place

POLICIES = {
    "act": "vla_ft.policies.act",
    "cogact": "vla_ft.policies.cogact",
    "pizero": "vla_ft.policies.pizero",
    "rdt": "vla_ft.policies.rdt",
}


class PolicyPackage(Protocol):
    """What a policy's package exports.

    It may export more:

    - ``suggest(description, statistics) -> dict``: model settings for a dataset, which ``vla-ft recipe from-data``
      writes into a recipe;
    - ``adapt(base, description) -> (base, notes)``: a recipe's settings with a start that fits a dataset, for the same;
    - ``remarks(config, trained) -> list[str]``: lines that the banner adds, given the trained weights by part;
    - ``setup_lines(SetupFacts) -> list[str]``: a run's settings in a published code's words, after the banner;
    - ``constants(config) -> dict``: what decides the numbers and leaves no trace in weights; exported files carry it;
    - ``without_files(config) -> config``: one whose processor needs no files (a tokenizer) and whose batches have the
      same shapes, for forecasts;
    - ``TRANSLATORS``: published code by name, each ``(file, overrides, cards) -> Translation`` of its training files;
    - ``FOREIGN_KEYS``: keys of published training files by name, each with what to say here instead;
    - ``EXPORTS``: published layouts by name, each ``(path, Announced, TrainedFacts) -> tensors written``. What
      belongs to the file lies beside it, under names that begin with the file's stem and ``_``;
    - ``EXPORT_FOLDERS``: those that are folders, each ``(empty folder, Announced, TrainedFacts) -> tensors written``;
    - ``COMPLETES``: true where ``load_weights`` takes ``base=``, the file of the parts that another one leaves out;
    - ``open_published(folder) -> Published``, ``published_settings(folder) -> dict`` (the ``model`` section) and
      ``our_key(feature) -> str``, our name of the publisher's observation keys, where others publish checkpoints as
      folders (``vla_ft.policies.published``);
    - ``open_published_file(path, statistics, camera, settings) -> Published | None`` where they publish one file.
    """

    Config: type
    """A dataclass, checked by ``vla_ft.config``; it is the ``policy`` section's ``model`` part of a recipe."""

    def build_model(self, config: object, description: DatasetDescription) -> Model:
        """A model with fresh weights for a dataset's cameras and dimensions."""
        ...

    def build_processor(
        self, config: object, description: DatasetDescription, statistics: DatasetStatistics
    ) -> Processor:
        """The processor of the same configuration."""
        ...

    def load_weights(
        self, model: nn.Module, path: str, layout: str, *, assign: bool = False, place: Place | None = None
    ) -> Ledger:
        """Load published or own weights into ``model``, strictly; ``layout`` is a name or ``auto``.

        ``assign`` and ``place``, as in ``ledger.apply_import``, say how: copied, taken as they are, or handed on.
        """
        ...


def load_policy(name: str) -> PolicyPackage:
    """The package of a policy, imported on first use. Raises UserError with the nearest name."""
    if name not in POLICIES:
        raise unknown("policy", name, POLICIES)
    return cast(PolicyPackage, importlib.import_module(POLICIES[name]))

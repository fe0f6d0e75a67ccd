"""Strict import of foreign weights: an explicit rename, an account of every tensor, a refusal on any surprise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vla_ft.errors import UserError


@dataclass
class Ledger:
    """What happened to each tensor: taken under its own name, renamed, left at its fresh value, or knowingly unused."""

    source: str
    loaded: list[str] = field(default_factory=list)
    renamed: list[tuple[str, str]] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counts = ", ".join(f"{len(getattr(self, k))} {k}" for k in ("loaded", "renamed", "new", "unused"))
        lines = [f"Weights from {self.source}: {counts}"]
        lines += [f"  new     {name}" for name in self.new]
        lines += [f"  unused  {name}" for name in self.unused]
        return "\n".join(lines)


def import_state(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str,
    rename: Callable[[str], str | None] = lambda key: key,
    may_be_new: Callable[[str], bool] = lambda key: False,
) -> Ledger:
    """Copy ``state`` into ``model`` in place.

    ``rename`` gives the model's key of a foreign key, or None for a tensor that is knowingly unused.
    ``may_be_new`` says which of the model's keys the source may lack. Anything else that does not fit (an unknown
    tensor, a missing one, another shape) raises UserError naming all of it, before any weight is touched.
    """
    target = model.state_dict()
    ledger = Ledger(source)
    matched: dict[str, Tensor] = {}
    surprises: list[str] = []
    for key, value in state.items():
        name = rename(key)
        if name is None:
            ledger.unused.append(key)
        elif name not in target:
            surprises.append(f"unknown tensor '{key}' {tuple(value.shape)}")
        elif name in matched:
            surprises.append(f"'{key}' and another tensor both become '{name}'")
        elif target[name].shape != value.shape:
            surprises.append(f"'{key}' has shape {tuple(value.shape)}, expected {tuple(target[name].shape)}")
        else:
            matched[name] = value
            if name == key:
                ledger.loaded.append(key)
            else:
                ledger.renamed.append((key, name))
    for name in target.keys() - matched.keys():
        if may_be_new(name):
            ledger.new.append(name)
        else:
            surprises.append(f"missing tensor '{name}' {tuple(target[name].shape)}")
    if surprises:
        shown = "; ".join(sorted(surprises)[:8])
        more = f"; and {len(surprises) - 8} more" if len(surprises) > 8 else ""
        raise UserError(
            f"{source} does not fit this model: {shown}{more}. Nothing was loaded. "
            "Use the configuration that the weights were made with."
        )
    ledger.new.sort()
    with torch.no_grad():
        for name, value in matched.items():
            target[name].copy_(value)
    return ledger

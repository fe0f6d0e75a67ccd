"""Strict import of foreign weights: an explicit rename, an account of every tensor, a refusal on any surprise.

Two steps: ``plan_import`` compares names and shapes and reads no numbers; ``apply_import`` then moves one tensor at a
time. Both are plain data in between, so that in a run of several processes one reads the file and all know the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vla_ft.errors import UserError
from vla_ft.policies.tensor_files import TensorFiles

Place = Callable[[str, Tensor, Tensor], None]
"""``place(name, target, value)`` puts a whole tensor where an engine keeps it (a shard of it, another device)."""


@dataclass
class Ledger:
    """What happened to each tensor: taken under its own name, renamed, left at its fresh value, or knowingly unused."""

    source: str
    loaded: list[str] = field(default_factory=list)
    renamed: list[tuple[str, str]] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What the reader should know besides."""

    def __str__(self) -> str:
        counts = ", ".join(f"{len(getattr(self, k))} {k}" for k in ("loaded", "renamed", "new", "unused"))
        lines = [f"Weights from {self.source}: {counts}"]
        lines += [f"  new     {name}" for name in self.new]
        lines += [f"  unused  {name}" for name in self.unused]
        lines += [f"  note    {note}" for note in self.notes]
        return "\n".join(lines)

    def moves(self) -> Iterator[tuple[str, str]]:
        """(name in the source, name in the model) of every tensor that is taken, in a fixed order."""
        yield from ((name, name) for name in self.loaded)
        yield from self.renamed


def import_state(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str,
    rename: Callable[[str], str | None] = lambda key: key,
    may_be_new: Callable[[str], bool] = lambda key: False,
    assign: bool = False,
    place: Place | None = None,
) -> Ledger:
    """``plan_import`` and ``apply_import`` in one: nothing is touched unless everything fits."""
    ledger = plan_import(model, state, source=source, rename=rename, may_be_new=may_be_new)
    apply_import(model, state, ledger, assign=assign, place=place)
    return ledger


def plan_import(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str,
    rename: Callable[[str], str | None] = lambda key: key,
    may_be_new: Callable[[str], bool] = lambda key: False,
) -> Ledger:
    """Compare names and shapes of ``state`` with ``model``'s. No tensor is read or changed.

    ``rename`` gives the model's key of a foreign key, or None for a tensor that is knowingly unused.
    ``may_be_new`` says which of the model's keys the source may lack. Anything else that does not fit (an unknown
    tensor, a missing one, another shape) raises UserError naming all of it.
    """
    target = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    ledger = Ledger(source)
    matched: set[str] = set()
    surprises: list[str] = []
    for key in state:
        name, shape = rename(key), _shape(state, key)
        if name is None:
            ledger.unused.append(key)
        elif name not in target:
            surprises.append(f"unknown tensor '{key}' {shape}")
        elif name in matched:
            surprises.append(f"'{key}' and another tensor both become '{name}'")
        elif target[name] != shape:
            surprises.append(f"'{key}' has shape {shape}, expected {target[name]}")
            matched.add(name)
        else:
            matched.add(name)
            if name == key:
                ledger.loaded.append(key)
            else:
                ledger.renamed.append((key, name))
    for name in target.keys() - matched:
        if may_be_new(name):
            ledger.new.append(name)
        else:
            surprises.append(f"missing tensor '{name}' {target[name]}")
    if surprises:
        shown = "; ".join(sorted(surprises)[:8])
        more = f"; and {len(surprises) - 8} more" if len(surprises) > 8 else ""
        raise UserError(
            f"{source} does not fit this model: {shown}{more}. Nothing was loaded. "
            "Use the configuration that the weights were made with."
        )
    ledger.new.sort()
    return ledger


def apply_import(
    model: nn.Module,
    state: Mapping[str, Tensor],
    ledger: Ledger,
    *,
    assign: bool = False,
    place: Place | None = None,
) -> None:
    """Move the tensors that a plan takes into ``model``, holding one at a time.

    By default each is copied into the model's own. ``assign`` makes the source's tensor the parameter itself: for a
    model built on the meta device and a mapped file that costs no memory, and a later write (an optimizer's step) goes
    to this process's copy of the page, never to the file; a tensor of another type is converted first. ``place`` is
    called instead of copying. Raises ValueError, before anything is touched, when a tensor would stay without numbers
    on the meta device.
    """
    if assign and place is not None:
        raise ValueError("assign puts the source's tensor into the model, place puts it elsewhere: give one of them")
    if place is None:
        _refuse_meta(model, ledger, assign)
    slots = _slots(model) if assign else {}
    target = model.state_dict()
    with torch.no_grad():
        for key, name in ledger.moves():
            if place is not None:
                place(name, target[name], state[key])
            elif assign:
                _assign(slots[name], state[key])
            else:
                target[name].copy_(state[key])


def _shape(state: Mapping[str, Tensor], key: str) -> tuple[int, ...]:
    return state.shape(key) if isinstance(state, TensorFiles) else tuple(state[key].shape)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; one that two names share is there twice."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def _refuse_meta(model: nn.Module, ledger: Ledger, assign: bool) -> None:
    tensors = _tensors(model)
    filled = {id(tensors[name]) for _, name in ledger.moves() if name in tensors} if assign else set()
    bare = sorted(name for name, tensor in tensors.items() if tensor.is_meta and id(tensor) not in filled)
    if bare:
        shown = ", ".join(bare[:8]) + (f" and {len(bare) - 8} more" if len(bare) > 8 else "")
        raise ValueError(
            f"{ledger.source} leaves tensors on the meta device, without numbers: {shown}. "
            + (
                "Give these values before the import."
                if assign
                else "A copy has nowhere to go: import with assign=True."
            )
        )


def _slots(model: nn.Module) -> dict[str, list[tuple[nn.Module, str]]]:
    """For every name, the places (module, attribute) that hold its tensor: several where modules share it."""
    modules = dict(model.named_modules(remove_duplicate=False))
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    tensors = _tensors(model)
    for name, tensor in tensors.items():
        module, _, attribute = name.rpartition(".")
        places.setdefault(id(tensor), []).append((modules[module], attribute))
    return {name: places[id(tensor)] for name, tensor in tensors.items()}


def _assign(slots: list[tuple[nn.Module, str]], value: Tensor) -> None:
    module, attribute = slots[0]
    old = getattr(module, attribute)
    # A buffer or parameter with memory of its own keeps its device; one without takes the value where it is.
    value = value.to(dtype=old.dtype, device=None if old.is_meta else old.device)
    new = nn.Parameter(value, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else value
    for module, attribute in slots:
        setattr(module, attribute, new)

"""The optimizer's state in a checkpoint: full tensors by ``<parameter>/<entry>``, and how 8-bit ones were cut.

Most entries are as long as their weight and are cut like it. The scales of 8-bit codes belong to blocks that begin with
every share, so codes that were made on another cut have to be read as numbers and quantised again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla_ft.checkpoints import OPTIMIZER, write_json
from vla_ft.errors import UserError
from vla_ft.tensor_stream import Entry, TensorReader
from vla_ft.training.engines import Engine
from vla_ft.training.engines.pieces import Piece, Range, block_ranges
from vla_ft.training.gathering import Item, write_on_main

GROUPS = f"{OPTIMIZER}.json"
_SCALES = "absmax"
_STEP = "step"


def save_optimizer(folder: Path, engine: Engine) -> None:
    """Write the optimizer's state. Collective."""
    state = engine.optimizer_state()
    plan = _plan(state, engine)
    items: list[Item] = []
    for name, keys in plan.items():
        piece = engine.pieces[name]
        for key, (dtype, value) in keys.items():
            entry = Entry(f"{name}/{key}", _shape(piece, key), dtype)
            if key == _STEP:
                items.append((entry, partial(torch.tensor, value, dtype=dtype)))
            else:
                local = state.get(name, {}).get(key, torch.empty(0, dtype=dtype))
                items.append((entry, partial(engine.gather_ranges, local, _ranges(piece, key))))
    write_on_main(folder, OPTIMIZER, items, engine)
    if engine.is_main:
        write_json(folder / GROUPS, {"groups": _groups(engine), "cuts": _cuts(plan, engine)})


def load_optimizer(path: Path, engine: Engine) -> list[str]:
    """Restore the optimizer's state; returns what could not be restored to the bit, in words. Collective."""
    about = json.loads((path / GROUPS).read_text())
    about = about if isinstance(about, dict) else {"groups": about, "cuts": {}}
    if [group["params"] for group in about["groups"]] != [group["params"] for group in _groups(engine)]:
        raise UserError(
            "The optimizer of the checkpoint has other parameters than this run: freeze= or the model changed."
        )
    state: dict[str, dict[str, Tensor]] = {}
    quantized_again = 0
    with TensorReader(path, OPTIMIZER) as reader:
        for full in reader.entries:
            name, key = full.rsplit("/", 1)
            piece = engine.pieces[name]
            if piece.mine[0] == piece.mine[1]:
                continue
            if key == _STEP:
                state.setdefault(name, {})[key] = reader.tensor(full)
            elif not key.startswith(_SCALES):
                state.setdefault(name, {})[key] = reader.range(full, *piece.mine)
        for name, cut in about["cuts"].items():
            if name in state:
                quantized_again += _restore_codes(reader, name, [tuple(r) for r in cut], engine, state[name])
    engine.load_optimizer_state(state)
    # A share may have codes where another has none: any of them makes the run differ.
    quantized_again = max(engine.gather(quantized_again))
    return [f"8-bit state of {quantized_again} tensors re-quantised for another cut"] if quantized_again else []


def _restore_codes(
    reader: TensorReader, name: str, cut: Sequence[Range], engine: Engine, state: dict[str, Tensor]
) -> bool:
    """Put scales beside the codes of this process's share; True when both had to be made again."""
    from vla_ft.training.eight_bit import CODES, code_map, dequantize, quantize

    piece = engine.pieces[name]
    alike = piece.mine in cut
    for codes, scales in CODES.items():
        if codes not in state or f"{name}/{scales}" not in reader:
            continue
        if alike:
            blocks = block_ranges(cut)[cut.index(piece.mine)]
            state[scales] = reader.range(f"{name}/{scales}", *blocks)
            continue
        table = code_map(codes)
        numbers = dequantize(state[codes], reader.tensor(f"{name}/{scales}"), cut, piece.mine, table)
        state[codes], state[scales] = quantize(numbers, table)
    return not alike


def _plan(
    state: dict[str, dict[str, Tensor]], engine: Engine
) -> dict[str, dict[str, tuple[torch.dtype, float | None]]]:
    """What will be written, in the same order everywhere: a process whose share is empty has no state to tell from."""
    mine = {
        name: {key: (value.dtype, value.item() if key == _STEP else None) for key, value in entries.items()}
        for name, entries in state.items()
    }
    merged: dict[str, dict[str, tuple[torch.dtype, float | None]]] = {}
    for other in engine.gather(mine):
        for name, entries in other.items():
            merged.setdefault(name, entries)
    return {name: merged[name] for name in engine.pieces if name in merged}


def _shape(piece: Piece, key: str) -> tuple[int, ...]:
    if key == _STEP:
        return ()
    return (_ranges(piece, key)[-1][1],) if key.startswith(_SCALES) else piece.shape


def _ranges(piece: Piece, key: str) -> tuple[Range, ...]:
    return block_ranges(piece.ranges) if key.startswith(_SCALES) else piece.ranges


def _groups(engine: Engine) -> list[dict[str, Any]]:
    names = {id(p): name for name, p in engine.trained.items()}
    return [
        {"name": group["name"], "params": [names[id(p)] for p in group["params"]]}
        for group in engine.optimizer.param_groups
    ]


def _cuts(plan: dict[str, dict[str, Any]], engine: Engine) -> dict[str, list[list[int]]]:
    coded = [name for name, keys in plan.items() if any(key.startswith(_SCALES) for key in keys)]
    return {name: [list(r) for r in engine.pieces[name].ranges] for name in coded}

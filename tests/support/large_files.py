"""A checkpoint of CogACT-Base's size and names that takes no disk, and what it costs to load it.

    python large_files.py FORMAT FOLDER     FORMAT: safetensors, shards, torch, convert (prints a line of JSON)

The files are sparse: the header is real, the numbers are holes. Names and shapes are those of the published
`CogACT-Base.pt` (7,630,224,071 parameters in float32, 30.5 GB). `convert` reads every number, as an engine that keeps
bfloat16 shards elsewhere does; the others take the mapped tensors as parameters.
"""

from __future__ import annotations

import json
import math
import os
import struct
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

PARAMETERS = 7_630_224_071
GIB = 1024**3
Shapes = dict[str, tuple[int, ...]]


def cogact_base() -> Shapes:
    """Names and shapes in the order of the published file, its four parts before the dot."""
    return {name: shape for part in (_vision(), _projector(), _llm(), _action()) for name, shape in part}


def _linear(name: str, rows: int, columns: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (rows, columns)
    yield f"{name}.bias", (rows,)


def _norm(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _tower(name: str, width: int, mlp: int, depth: int, scaled: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.pos_embed", (1, 256, width)
    yield f"{name}.patch_embed.proj.weight", (width, 3, 14, 14)
    yield f"{name}.patch_embed.proj.bias", (width,)
    for i in range(depth):
        block = f"{name}.blocks.{i}"
        yield from _norm(f"{block}.norm1", width)
        yield from _norm(f"{block}.norm2", width)
        yield from _linear(f"{block}.attn.qkv", 3 * width, width)
        yield from _linear(f"{block}.attn.proj", width, width)
        yield from _linear(f"{block}.mlp.fc1", mlp, width)
        yield from _linear(f"{block}.mlp.fc2", width, mlp)
        if scaled:
            yield f"{block}.ls1.gamma", (width,)
            yield f"{block}.ls2.gamma", (width,)
    yield from _norm(f"{name}.norm", width)


def _vision() -> Iterator[tuple[str, tuple[int, ...]]]:
    dino, siglip = "vision_backbone.dino_featurizer", "vision_backbone.siglip_featurizer"
    yield f"{dino}.cls_token", (1, 1, 1024)
    yield f"{dino}.reg_token", (1, 4, 1024)
    yield from _tower(dino, 1024, 4096, 24, scaled=True)
    yield from _tower(siglip, 1152, 4304, 27, scaled=False)
    pool = f"{siglip}.attn_pool"
    yield f"{pool}.latent", (1, 1, 1152)
    yield from _linear(f"{pool}.q", 1152, 1152)
    yield from _linear(f"{pool}.kv", 2304, 1152)
    yield from _linear(f"{pool}.proj", 1152, 1152)
    yield from _norm(f"{pool}.norm", 1152)
    yield from _linear(f"{pool}.mlp.fc1", 4304, 1152)
    yield from _linear(f"{pool}.mlp.fc2", 1152, 4304)


def _projector() -> Iterator[tuple[str, tuple[int, ...]]]:
    for i, (rows, columns) in ((0, (8704, 2176)), (2, (4096, 8704)), (4, (4096, 4096))):
        yield from _linear(f"projector.projector.{i}", rows, columns)


def _llm() -> Iterator[tuple[str, tuple[int, ...]]]:
    model = "llm_backbone.llm.model"
    yield f"{model}.embed_tokens.weight", (32064, 4096)
    for i in range(32):
        layer = f"{model}.layers.{i}"
        for name in "qkvo":
            yield f"{layer}.self_attn.{name}_proj.weight", (4096, 4096)
        yield f"{layer}.mlp.gate_proj.weight", (11008, 4096)
        yield f"{layer}.mlp.up_proj.weight", (11008, 4096)
        yield f"{layer}.mlp.down_proj.weight", (4096, 11008)
        yield f"{layer}.input_layernorm.weight", (4096,)
        yield f"{layer}.post_attention_layernorm.weight", (4096,)
    yield f"{model}.norm.weight", (4096,)
    yield "llm_backbone.llm.lm_head.weight", (32064, 4096)


def _action() -> Iterator[tuple[str, tuple[int, ...]]]:
    net, width = "action_model.net", 768
    yield f"{net}.positional_embedding", (17, width)
    yield f"{net}.z_embedder.uncondition", (1, 4096)
    for name, rows, columns in (
        ("history_embedder.linear", width, 7),
        ("x_embedder.linear", width, 7),
        ("t_embedder.mlp.0", width, 256),
        ("t_embedder.mlp.2", width, width),
        ("z_embedder.linear", width, 4096),
        ("final_layer.linear", 7, width),
    ):
        yield from _linear(f"{net}.{name}", rows, columns)
    for i in range(12):
        block = f"{net}.blocks.{i}"
        yield from _linear(f"{block}.attn.qkv", 3 * width, width)
        yield from _linear(f"{block}.attn.proj", width, width)
        yield from _linear(f"{block}.mlp.fc1", 4 * width, width)
        yield from _linear(f"{block}.mlp.fc2", width, 4 * width)


def write_sparse_safetensors(path: Path, shapes: Shapes) -> None:
    """A safetensors file of float32 tensors whose numbers are holes, read as zeros."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)


def write_sparse_shards(folder: Path, shapes: Shapes, shards: int) -> None:
    """The same in several files and their index, as the hub's large models come."""
    folder.mkdir()
    names = list(shapes)
    places: dict[str, str] = {}
    for i in range(shards):
        part = names[i * len(names) // shards : (i + 1) * len(names) // shards]
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        write_sparse_safetensors(folder / file, {name: shapes[name] for name in part})
        places |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def write_sparse_torch(path: Path, shapes: Shapes) -> None:
    """A torch file as CogACT's: ``{"model": {part: {name: tensor}}}``; the numbers are holes."""
    import torch

    model: dict[str, dict[str, object]] = {}
    for name, shape in shapes.items():
        part, _, rest = name.partition(".")
        model.setdefault(part, {})[rest] = torch.empty(shape)  # never touched: address space alone
    with torch.serialization.skip_data():
        torch.save({"model": model}, path)


def write(kind: str, folder: Path, shapes: Shapes) -> tuple[Path, str | None]:
    """Write a sparse checkpoint; returns its path and the part of it that holds the tensors."""
    if kind == "torch":
        path = folder / "sparse.pt"
        write_sparse_torch(path, shapes)
        return path, "model"
    if kind == "shards":
        path = folder / "sparse"
        write_sparse_shards(path, shapes, 7)
        return path, None
    path = folder / "sparse.safetensors"
    write_sparse_safetensors(path, shapes)
    return path, None


class PeakOf:
    """Samples a line of /proc/self/status every 5 ms; ``peak`` is the largest value, in bytes."""

    def __init__(self, line: str) -> None:
        self.line, self.peak, self._stop = line, 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakOf:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self._sample()

    def _sample(self) -> None:
        with open("/proc/self/status") as status:
            value = next(line for line in status if line.startswith(self.line + ":"))
        self.peak = max(self.peak, int(value.split()[1]) * 1024)


def meta_model(shapes: Shapes) -> object:
    """A model of these parameters on the meta device: names and shapes without memory."""
    import torch
    from torch import nn

    model = nn.Module()
    for name, shape in shapes.items():
        at = model
        *parts, leaf = name.split(".")
        for part in parts:
            if part not in at._modules:
                at.add_module(part, nn.Module())
            at = at._modules[part]
        at.register_parameter(leaf, nn.Parameter(torch.empty(shape, device="meta")))
    return model


def measure(kind: str, folder: Path) -> dict[str, object]:
    """Write, open and import a checkpoint of CogACT-Base's size in this process; peak of its anonymous memory."""
    import torch

    from vla_ft.policies.ledger import import_state
    from vla_ft.policies.tensor_files import open_tensors

    shapes = cogact_base()
    assert sum(math.prod(shape) for shape in shapes.values()) == PARAMETERS
    path, inside = write("safetensors" if kind == "convert" else kind, folder, shapes)
    model = meta_model(shapes)

    def convert(name: str, target: torch.Tensor, value: torch.Tensor) -> None:
        assert value.to(torch.bfloat16).shape == target.shape  # and handed on, as to a card

    with PeakOf("RssAnon") as anonymous:
        before = anonymous.peak
        start = time.perf_counter()
        tensors = open_tensors(path, inside)
        how = {"place": convert} if kind == "convert" else {"assign": True}
        ledger = import_state(model, tensors, source=path.name, **how)
        seconds = time.perf_counter() - start
    files = [path] if path.is_file() else list(path.iterdir())
    return {
        "kind": kind,
        "file_bytes": sum(file.stat().st_size for file in files),
        "disk_bytes": sum(file.stat().st_blocks * 512 for file in files),
        "tensors": len(ledger.loaded),
        "parameters": sum(p.numel() for p in model.parameters()),
        "still_on_meta": sum(p.is_meta for p in model.parameters()),
        "peak_anonymous_bytes": max(anonymous.peak, before),
        "seconds": round(seconds, 2),
        "machine_memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]))))

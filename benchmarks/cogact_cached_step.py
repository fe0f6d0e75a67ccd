"""What cached cognition features leave of a CogACT training step: the whole step against the head's own, in pairs.

    OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=2 python benchmarks/cogact_cached_step.py benchmarks/results/cogact_cached_step.json

Measured on CogACT an eighth as wide and as deep as published, its vision-language model frozen: the same loss, gradients
and AdamW with pictures and prompts, and with the features that were computed from them. Both steps of a pair follow each
other; the ratios' median counts, in processor time. Full size does not run here: its ratio is arithmetic, operations of
products and attention counted on the meta device, and stands beside the same count for the size that was measured.
"""  # noqa: E501

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from cogact_head import COUNTED, seconds
from torch.utils.flop_counter import FlopCounterMode

from vla_ft.policies.cogact.config import Config, LlamaShape
from vla_ft.policies.cogact.dit import DitShape
from vla_ft.policies.cogact.model import COGNITION, CogAct
from vla_ft.policies.cogact.vision import DINO, SIGLIP, TowerShape

SHARE = 8
BATCH, ACTIONS, PROMPT_TOKENS = 2, 7, 24
PARTS = ("vision_and_projector", "llm", "head")


class Eighth(Config):
    """Every width an eighth of the published one, depths and heads' number of the same order, all 256 patches."""

    @property
    def towers(self) -> tuple[TowerShape, TowerShape]:
        """Both with as many blocks as published."""
        return tuple(
            replace(shape, width=shape.width // SHARE, feedforward=shape.feedforward // SHARE, heads=shape.heads // 8)
            for shape in (DINO, SIGLIP)
        )  # type: ignore[return-value]

    @property
    def llama(self) -> LlamaShape:
        """All 32 layers."""
        return LlamaShape(width=4096 // SHARE, heads=4, feedforward=11008 // SHARE, vocabulary=320)

    @property
    def dit(self) -> DitShape:
        """DiT-B's 12 blocks."""
        return DitShape(width=768 // SHARE, depth=12, heads=2)


def batch_of(config: Config, device: str = "cpu", size: int = BATCH) -> dict[str, torch.Tensor]:
    """Random pictures, prompts and actions."""
    with torch.device(device):
        return {
            "image": torch.randint(0, 256, (size, 224, 224, 3)).to(torch.uint8),
            "tokens": torch.randint(4, 300, (size, PROMPT_TOKENS)),
            "token_mask": torch.ones(size, PROMPT_TOKENS, dtype=torch.bool),
            "action": torch.randn(size, config.horizon, ACTIONS),
        }


def steps() -> tuple[Callable[[], object], Callable[[], object]]:
    """A training step of the head with the frozen model before it, and from its features."""
    torch.manual_seed(0)
    config = Eighth(tokenizer="stand-in")
    model = CogAct(config, ACTIONS)
    model.vlm.requires_grad_(False)
    optimizer = torch.optim.AdamW(model.head.parameters(), lr=1e-4, fused=True)
    whole = batch_of(config)
    with torch.no_grad():
        cached = {COGNITION: model.cognition(whole), "action": whole["action"]}

    def step(batch: dict[str, torch.Tensor]) -> None:
        optimizer.zero_grad(set_to_none=True)
        model(batch).loss.backward()
        optimizer.step()

    return lambda: step(whole), lambda: step(cached)


def counted(kind: type[Config], size: int) -> dict[str, Any]:
    """Operations of one step by part: arithmetic, nothing is run."""
    config = kind(tokenizer="stand-in")
    with torch.device("meta"):
        model = CogAct(config, ACTIONS)
        for part in (model.vlm, model.head.history_embedder):
            part.requires_grad_(False)
        batch = batch_of(config, "meta", size)
        cached = {COGNITION: torch.zeros(size, 1, config.llama.width), "action": batch["action"]}

        def operations(action: Callable[[], object]) -> int:
            with FlopCounterMode(display=False, custom_mapping=COUNTED) as counter:
                action()
            return counter.get_total_flops()

        layers = model.vlm.llm.model.layers
        length = 256 + PROMPT_TOKENS
        matrices = sum(p.numel() for p in layers.parameters() if p.ndim == 2)
        found = {
            "vision_and_projector": operations(lambda: model.vlm.projector(model.vlm.vision(batch["image"]))),
            # Llama's mask is built from numbers, which the meta device has not: its layers by their formula.
            "llm": size * (2 * length * matrices + 4 * length**2 * config.llama.width * len(layers)),
            "head": operations(lambda: model(cached).loss.backward()),
        }
    return {**found, "whole_over_head": sum(found[part] for part in PARTS) / found["head"]}


def main() -> None:
    """Measure, count and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("--pairs", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    whole, head = steps()
    whole(), head()  # warm
    pairs = []
    for _ in range(options.pairs):
        (clock, processor), (head_clock, head_processor) = seconds(whole), seconds(head)
        pairs.append({"whole_clock": clock, "head_clock": head_clock, "clock_ratio": clock / head_clock,
                      "whole_processor": processor, "head_processor": head_processor,
                      "processor_ratio": processor / head_processor})  # fmt: skip
    middle = {key: statistics.median(pair[key] for pair in pairs) for key in pairs[0]}
    found = {
        "measured": {"size": "widths an eighth of the published", "batch": BATCH, "medians": middle, "pairs": pairs},
        "arithmetic": {
            "what": "operations of products and attention, counted or by formula; nothing of this was run",
            "the_size_that_was_measured": {"batch": BATCH, **counted(Eighth, BATCH)},
            "published_size": {"head": "DiT-B", "batch": 8, **counted(Config, 8)},
        },
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(),
                    "threads": torch.get_num_threads(), "torch": torch.__version__, "load": os.getloadavg()},
    }  # fmt: skip
    options.result.write_text(json.dumps(found, indent=1))
    small, full = (found["arithmetic"][key]["whole_over_head"] for key in  # type: ignore[index]
                   ("the_size_that_was_measured", "published_size"))  # fmt: skip
    ratio, clock = middle["processor_ratio"], middle["clock_ratio"]
    print(f"measured at an eighth of the widths: the whole step takes {ratio:.1f} x the head's processor time")
    print(f"  ({clock:.1f} x by the clock); by arithmetic {small:.1f} x its operations")
    print(f"published size, arithmetic alone: {full:.1f} x the operations")


if __name__ == "__main__":
    main()

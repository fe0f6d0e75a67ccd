"""What training holds whatever the batch: weights, gradients, optimizer and average, by arithmetic alone.

Where these alone are larger than the card, no batch size helps. That is how the fine-tuning of CogACT-Base on four
cards of 22 GiB failed: 7,630,224,071 weights x 16 bytes / 4 cards are 28.4 GiB on each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vla_ft.planning.rehearsal import Weight
from vla_ft.training.compatibility import SHARDED, ZERO, Setup

GIB = 2**30
SMALL_TENSOR = 4096
"""Below this many elements ``adamw8bit`` keeps float32 moments."""
MOMENTS_8BIT = 2 * (1 + 4 / 256)
"""Bytes: two codes, and a float32 scale for every 256 of each."""


@dataclass(frozen=True)
class Bytes:
    """Bytes by kind; also those of one number."""

    weights: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    average: float = 0.0

    @property
    def total(self) -> float:
        """All of them."""
        return self.weights + self.gradients + self.optimizer + self.average

    def __add__(self, other: Bytes) -> Bytes:
        return Bytes(
            self.weights + other.weights,
            self.gradients + other.gradients,
            self.optimizer + other.optimizer,
            self.average + other.average,
        )


@dataclass(frozen=True)
class Shares:
    """Over how many processes each kind is divided."""

    weights: int
    gradients: int
    optimizer: int
    average: int


def shares_of(setup: Setup) -> Shares:
    """Who holds what under an engine: ZeRO (Rajbhandari et al., 2020) divides the optimizer, then gradients, then
    weights; FSDP2 divides all three."""
    group, world = setup.shard_group, setup.world_size
    if setup.engine in SHARDED:
        return Shares(group, group, group, group)
    if setup.engine in ZERO:
        stage = int(setup.engine[-1])
        return Shares(world if stage == 3 else 1, world if stage >= 2 else 1, world, world)
    return Shares(1, 1, 1, 1)


def bytes_of_number(setup: Setup, *, trained: bool, ema: bool, small: bool = False) -> Bytes:
    """Bytes that one weight costs over all processes that share it, with its gradient, moments and average."""
    half = setup.precision in ("bf16_stochastic", "bf16_kahan")
    zero_half = setup.engine in ZERO and setup.precision == "bf16"
    if not trained:
        return Bytes(weights=2 if setup.frozen_dtype == "bf16" or zero_half else 4)
    moments = MOMENTS_8BIT if setup.optimizer == "adamw8bit" and not small else 8.0
    master = 4 if setup.engine in ZERO else 0  # beside the weights that compute
    lost = 2 if setup.precision == "bf16_kahan" else 0
    held = 2 if half or zero_half else 4
    summed = 4 if setup.engine in ("zero2", "zero3") else held  # in float32 whatever the weights are
    return Bytes(held, summed, moments + master + lost, 4 if ema else 0)


def states(trained: int, frozen: int, setup: Setup, *, ema: bool = False) -> Bytes:
    """Bytes on each card for so many trained and frozen weights, small tensors and remainders left out."""
    shares = shares_of(setup)
    learned, kept = (bytes_of_number(setup, trained=one, ema=ema) for one in (True, False))
    return Bytes(
        (learned.weights * trained + kept.weights * frozen) / shares.weights,
        learned.gradients * trained / shares.gradients,
        learned.optimizer * trained / shares.optimizer,
        learned.average * trained / shares.average,
    )


def states_of(weights: Iterable[Weight], setup: Setup, *, ema: bool = False) -> Bytes:
    """The same tensor by tensor, on the process that holds most."""
    shares, total = shares_of(setup), Bytes()
    for weight in weights:
        small = weight.count < SMALL_TENSOR
        one = bytes_of_number(setup, trained=weight.trained, ema=ema, small=small)
        total += Bytes(
            one.weights * _held(weight, shares.weights, setup),
            one.gradients * _held(weight, shares.gradients, setup),
            one.optimizer * _held(weight, shares.optimizer, setup),
            one.average * _held(weight, shares.average, setup),
        )
    return total


def rows_held(weight: Weight, shares: int) -> int:
    """Elements of the first process when a tensor is cut by its first dimension, as FSDP2 does."""
    if not weight.shape:
        return 1
    return -(-weight.shape[0] // shares) * (weight.count // max(1, weight.shape[0]))


def padded(weight: Weight, shares: int) -> int:
    """Elements of a tensor whose rows are filled up to a multiple of ``shares``, as FSDP2 gathers and reduces it."""
    return shares * rows_held(weight, shares)


def explain(held: Bytes, card_gib: float, cards: int, parameters: Sequence[int]) -> str:
    """Why lowering the batch does not help, in words, for states that exceed the card; empty when they do not."""
    if held.total <= card_gib * GIB:
        return ""
    trained, frozen = parameters
    weights = f"{trained:,} trained weights" + (f" and {frozen:,} frozen ones" if frozen else "")
    parts = {"weights": held.weights, "gradients": held.gradients, "optimizer": held.optimizer, "EMA": held.average}
    shown = ", ".join(f"{name} {value / GIB:.1f}" for name, value in parts.items() if value)
    return (
        f"{weights} need {held.total / GIB:.1f} GiB on each of {cards} card(s) before the first sample is seen "
        f"({shown}), and a card has {card_gib:.1f}. None of this depends on the batch: a smaller batch.per_device "
        "frees activations alone, so it cannot help. What helps is fewer bytes a weight (optimizer.name=adamw8bit, "
        "precision=bf16_kahan), more cards to share them, host memory (offload=all), or fewer trained weights "
        "(freeze, lora)."
    )


def _held(weight: Weight, shares: int, setup: Setup) -> float:
    return rows_held(weight, shares) if setup.engine in SHARDED else weight.count / shares

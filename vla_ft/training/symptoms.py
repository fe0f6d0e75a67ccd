"""Signs in a run's own numbers that something is wrong, each with its causes and what to do, each said once.

The judges below are pure functions of what has been logged and of the configuration. What they compare are medians of
several logged values, because a single batch says little; the thresholds stand beside each of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from vla_ft.config import RunConfig

EARLY = 20
"""Logged values that stand for the beginning of a run, and for where it is now."""
Line = Mapping[str, float]


@dataclass
class History:
    """What the judges look at: the first lines of a run, its newest ones, and the lowest loss it ever had."""

    first: list[Line] = field(default_factory=list)
    recent: deque[Line] = field(default_factory=lambda: deque(maxlen=EARLY))
    count: int = 0
    lowest: float = float("inf")
    """Lowest median of five successive total losses."""

    def add(self, line: Line) -> None:
        """Take another line of metrics; those without a training loss do not count."""
        if "total_loss" not in line:
            return
        if len(self.first) < EARLY:
            self.first.append(line)
        self.recent.append(line)
        self.count += 1
        if self.count >= 5:
            self.lowest = min(self.lowest, self.now("total_loss", 5))

    def now(self, name: str, lines: int = EARLY) -> float:
        """Median over the newest lines that have it; NaN without any."""
        return _median([line[name] for line in list(self.recent)[-lines:] if name in line])

    def begin(self, name: str) -> float:
        """Median over the run's first lines."""
        return _median([line[name] for line in self.first if name in line])

    @property
    def fraction_left(self) -> float:
        """Loss now over loss at the beginning, of the actions where that is told apart: a KL term falls by itself."""
        name = "action_loss" if "action_loss" in self.recent[-1] else "total_loss"
        return self.now(name) / max(self.begin(name), 1e-12)


def _median(values: Sequence[float]) -> float:
    return median(values) if values else float("nan")


def not_decreasing(history: History, config: RunConfig, parts: Sequence[str]) -> str | None:
    """After 100 logged values more than 95 % of the first loss is left."""
    if history.count < 100 or not history.fraction_left > 0.95:
        return None
    return (
        f"Loss not decreasing: after {_steps(history)} updates {history.fraction_left:.0%} of the first loss is left. "
        f"Lower optimizer.lr (now {config.optimizer.lr:g}; try {config.optimizer.lr / 2:g})"
        f"{_kl_weight(config, ' or ')}; look at the data with `vla-ft data check` and `vla-ft data inspect`: "
        "actions that do not follow from the images cannot be learned."
    )


def slow_convergence(history: History, config: RunConfig, parts: Sequence[str]) -> str | None:
    """After 200 logged values between 80 % and 95 % of the first loss is left."""
    if history.count < 200 or not 0.8 < history.fraction_left <= 0.95:
        return None
    return (
        f"Slow convergence: after {_steps(history)} updates {history.fraction_left:.0%} of the first loss is left. "
        f"Raise optimizer.lr (now {config.optimizer.lr:g}; try {config.optimizer.lr * 5:g})"
        f"{_kl_weight(config, ' or ')}. " + _encoder(config, parts)
    )


def exploding(history: History, config: RunConfig, parts: Sequence[str]) -> str | None:
    """The median of the last three losses is ten times the lowest that the run has had."""
    if history.count < 20 or not history.now("total_loss", 3) > 10 * history.lowest > 0:
        return None
    clip = config.optimizer.clip_grad_norm
    return (
        f"Loss exploding: {history.now('total_loss', 3):.4g} after {_steps(history)} updates, it was "
        f"{history.lowest:.4g}. Lower optimizer.lr (now {config.optimizer.lr:g}; try {config.optimizer.lr / 10:g}), "
        + ("" if clip else "set optimizer.clip_grad_norm=1, ")
        + "and check the data for outliers with `vla-ft data check`. An earlier checkpoint is not touched by it."
    )


def kl_too_high(history: History, config: RunConfig, parts: Sequence[str]) -> str | None:
    """Beyond 50 logged values the weighted KL term is over 80 % of the total loss, and above 1: more than the error
    of a policy that always says the mean action."""
    if history.count < 50 or "kl_loss" not in history.recent[-1]:
        return None
    term = history.now("total_loss") - history.now("action_loss")
    share = term / max(history.now("total_loss"), 1e-12)
    if not (share > 0.8 and term > 1):
        return None
    return (
        f"KL loss too high: {share:.0%} of the loss is the KL term (kl_loss {history.now('kl_loss'):.3g}) after "
        f"{_steps(history)} updates, so that the actions are hardly trained{_kl_weight(config, ': ')}."
    )


def waiting_for_data(history: History, config: RunConfig, parts: Sequence[str]) -> str | None:
    """Over the last ten lines, the first of the run aside, more than 30 % of the time no batch was ready."""
    if history.count < 11 or not history.now("waiting_share", 10) > 0.3:
        return None
    card = history.now("gpu_utilization", 10)
    return (
        f"Training very slow: {history.now('waiting_share', 10):.0%} of the time is spent waiting for batches"
        + (f" and the card is busy {card:.0f} % of it" if card == card else "")
        + f". Raise data.workers (now {config.data.workers} per process), shrink images with data.image_size, or keep "
        "the features of frozen parts (frozen_features.parts)."
    )


def idle_card(history: History, config: RunConfig, parts: Sequence[str]) -> str | None:
    """Over 20 lines batches are ready, but the card is busy less than 40 % of the time."""
    busy = history.now("gpu_utilization")
    if history.count < EARLY + 1 or not busy < 40 or history.now("waiting_share") > 0.3:
        return None
    return (
        f"Training very slow for this card: it is busy {busy:.0f} % of the time although batches are ready. The "
        f"updates are too small for it: raise batch.per_device (now {config.batch.per_device}), or set compile=true."
    )


JUDGES: tuple[Callable[[History, RunConfig, Sequence[str]], str | None], ...] = (
    exploding,
    not_decreasing,
    slow_convergence,
    kl_too_high,
    waiting_for_data,
    idle_card,
)


class Symptoms:
    """Looks at every line that a run logs and says each symptom once."""

    def __init__(self, config: RunConfig, parts: Sequence[str], say: Callable[[str], None]) -> None:
        """``parts``: the names of the model's parts, for ``freeze``."""
        self._config, self._parts, self._say = config, tuple(parts), say
        self._history = History()
        self._left = list(JUDGES)

    def remember(self, lines: Sequence[Line]) -> None:
        """What the run logged before it was continued: looked back on, not judged."""
        for line in lines:
            self._history.add(line)

    def look(self, line: Line) -> None:
        """Judge the run after another line of metrics."""
        self._history.add(line)
        if "total_loss" not in line:
            return
        for judge in list(self._left):
            said = judge(self._history, self._config, self._parts)
            if said is not None:
                self._left.remove(judge)
                self._say(said)


def _steps(history: History) -> str:
    return f"{history.recent[-1].get('step', history.count):,.0f}"


def _kl_weight(config: RunConfig, before: str) -> str:
    """The advice on the KL term, for policies that have one."""
    weight = getattr(config.model, "kl_weight", None)
    return f"{before}reduce model.kl_weight (now {weight:g}; try {weight / 2:g})" if weight else ""


def _encoder(config: RunConfig, parts: Sequence[str]) -> str:
    """Whether parts that hold published weights are frozen."""
    if config.freeze:
        return f"Frozen: {', '.join(config.freeze)}."
    return (
        "Nothing is frozen: a pretrained encoder that should keep what it knows needs "
        f"freeze=[...] (parts here: {', '.join(parts)})."
    )

"""How a single-device model runs on one or several processes. Models never know which engine holds them.

``Engine`` is both the interface and the engine of one process. Trainer, validation and checkpoints call these methods
and nothing else. Methods marked collective must be called by every process. The order of a run is: build the engine,
build the model (``builds_real`` says on which processes with values), ``wrap``, ``build_optimizer``, then
``zero_grad``, ``accumulating``/``loss``/``backward``, ``clip``, ``step`` for every update.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vla_ft.config import RunConfig
from vla_ft.errors import EndedByPeer, UserError
from vla_ft.policies.base import Batch, Loss, Model
from vla_ft.training.engines.pieces import Piece, Range
from vla_ft.training.optimizers import build_optimizer


class Engine:
    """One process, one device."""

    name: ClassVar[str] = "single"
    rank = 0
    world_size = 1
    model: Model
    """The model after ``wrap``; its parameters may be shards. Its buffers are whole."""
    module: nn.Module
    """What ``loss`` calls: the model, or a wrapper around it."""
    optimizer: torch.optim.Optimizer
    """Has ``param_groups`` with ``name``, ``lr`` and ``base_lr``, whatever steps underneath."""
    pieces: dict[str, Piece]
    """By name, for every parameter: which elements are here."""
    weights: dict[str, Tensor]
    """By name, for every parameter: this process's elements, plain tensors. Writing into them changes the weights
    that the next step starts from; call ``settle`` before and after."""
    trained: dict[str, nn.Parameter]
    """By name, what the optimizer steps: plain tensors again, aliases of ``weights``. Empty shares are in it."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        self.config, self.device = config, device

    # --- the model -------------------------------------------------------------------------------------------------

    @property
    def builds_real(self) -> bool:
        """Whether this process builds the model with values; otherwise on the meta device, and ``wrap`` fills it."""
        return True

    @property
    def shard(self) -> int:
        """Which share of the weights is here, from 0. Processes that hold copies of a share round it alike by this."""
        return 0

    def wrap(self, model: Model) -> None:
        """Take over a built, frozen and cast model: move or shard it, and set the attributes above. Collective."""
        self.model = self.module = model.to(self.device)
        self._hold_whole(model)

    def _hold_whole(self, model: Model) -> None:
        named = dict(model.named_parameters())
        self.pieces = {name: Piece.whole(p.shape) for name, p in named.items()}
        self.weights = {name: p.detach() for name, p in named.items()}
        self.trained = {name: p for name, p in named.items() if p.requires_grad}

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Make the optimizer of ``trained`` by the run's configuration; it is ``optimizer`` from then on."""
        self.optimizer = build_optimizer(
            self.model,
            self.config.optimizer,
            trained=self.trained,
            numels={name: piece.numel for name, piece in self.pieces.items()},
            precision=self.config.precision,
            noise=(self.config.seed, self.shard),
        )
        return self.optimizer

    def check(self) -> None:
        """Raise when what was built is not what was asked for: an internal error, never the user's."""
        expected = {name for name, p in self.model.named_parameters() if p.requires_grad}
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        if expected != self.trained.keys() or held != {id(p) for p in self.trained.values()}:
            raise RuntimeError(f"engine {self.name}: the optimizer does not hold exactly the trained weights")
        self._check_fields()

    def _check_fields(self) -> None:
        """Whether the fields of the configuration have left their marks: none may be ignored in silence."""
        config = self.config
        rounded = config.precision in ("bf16_stochastic", "bf16_kahan")
        optimizer = "RoundingAdamW" if rounded else "AdamW"
        optimizer = "EightBitAdamW" if config.optimizer.name == "adamw8bit" else optimizer
        types = {p.dtype for p in self.trained.values()}
        changed = config.activation_checkpointing or config.compile
        seen = {
            "optimizer": type(self.optimizer).__name__ == optimizer,
            "precision": types == {torch.bfloat16 if rounded else torch.float32},
            "blocks": all(("forward" in vars(block)) == changed for block in self.model.blocks()),
            "adapters": any(".lora_" in name for name in self.trained) == bool(config.lora),
        }
        wrong = [name for name, right in seen.items() if not right]
        if wrong:
            raise RuntimeError(f"engine {self.name}: {', '.join(wrong)} not as configured")

    def describe(self) -> str:
        """The engine in words, for the banner, from what was built."""
        return self.name

    # --- one update ------------------------------------------------------------------------------------------------

    def move(self, batch: Batch) -> Batch:
        """The batch on this process's device."""
        return {key: value.to(self.device, non_blocking=True) for key, value in batch.items()}

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The run's compute type: bfloat16 where torch's table allows it, or nothing."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.config.precision != "fp32")

    def loss(self, batch: Batch) -> Loss:
        """The model's loss of a batch on the device, in the run's precision. Collective."""
        with self.autocast():
            return self.module(batch) if torch.is_grad_enabled() else self.model(batch)

    def sample(self, batch: Batch) -> Tensor:
        """The model's action chunk, in the run's precision. Collective."""
        with self.autocast():
            return self.model.sample(batch)

    @contextlib.contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """Around ``loss`` and ``backward`` of one micro-batch; ``last`` of its update or not."""
        yield

    def backward(self, loss: Tensor) -> None:
        """Differentiate ``loss``, which the caller has divided by the number of micro-batches. Collective."""
        loss.backward()

    def clip(self, limit: float) -> Tensor:
        """Scale the gradients of an update so that their norm over all processes is at most ``limit``. Collective.

        Returns the norm before, a plain float32 scalar, equal on every process. Weights are not touched: the caller
        looks at the norm before it lets ``step`` happen.
        """
        gradients = [p.grad for p in self.trained.values() if p.grad is not None]
        norm = self._total_norm(local_norm(gradients, self.device))
        factor = (limit / (norm + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factor.to(gradient.device))
        return norm

    def _total_norm(self, norm: Tensor) -> Tensor:
        """The norm over all shares from that of this process's. Collective."""
        return norm

    def step(self) -> None:
        """Change the weights by their gradients. Collective."""
        self.optimizer.step()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    # --- weights by name -------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Drop whatever was computed from ``weights``, so that the next forward reads them afresh. Collective."""

    @contextlib.contextmanager
    def holding(self, average: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside, the trained weights are ``average`` (this process's elements by name). Collective."""
        self.settle()
        kept = _exchange(self.weights, average)
        self.settle()
        try:
            yield
        finally:
            self.settle()
            _exchange_back(self.weights, average, kept)
            self.settle()

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        """State of the optimizer by parameter name, this process's elements: entries as long as the share are cut like
        the weights, ``absmax*`` holds a number per block of the share, everything else is equal on every process."""
        names = {id(p): name for name, p in self.trained.items()}
        return {
            names[id(p)]: {key: torch.as_tensor(value) for key, value in entries.items() if not key.startswith("qmap")}
            for p, entries in self.optimizer.state.items()
        }

    def load_optimizer_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Inverse of ``optimizer_state``; tensors may be on the CPU and flat. Collective."""
        from vla_ft.training.optimizers import restore_state

        restore_state(self.optimizer, self.trained, state)

    def gather_ranges(self, local: Tensor, ranges: Sequence[Range]) -> Tensor | None:
        """The flat full tensor on the CPU of the main process, None elsewhere, from every process's share. Collective.

        ``ranges`` are those of a ``Piece``, or ``block_ranges`` of them.
        """
        return local.detach().reshape(-1).cpu()

    # --- between processes -----------------------------------------------------------------------------------------

    def mean(self, values: Tensor) -> Tensor:
        """Average over processes. Collective."""
        return values

    def sum(self, values: Tensor) -> Tensor:
        """Sum over processes. Collective."""
        return values

    def broadcast(self, value: Any) -> Any:
        """Rank 0's picklable object, on every process. Collective."""
        return value

    def gather(self, value: Any) -> list[Any]:
        """Every process's picklable object, by rank. Collective."""
        return [value]

    def agree(self, error: str | None) -> None:
        """Raise UserError on every process when any has an error; one of those that have it says it. Collective."""
        errors = self.gather(error)
        if error is not None and errors.index(error) == self.rank:
            raise UserError(error)
        if any(other is not None for other in errors):
            raise EndedByPeer("another process met a mistake")

    def close(self) -> None:
        """Leave the process group."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0


def local_norm(gradients: Sequence[Tensor], device: torch.device) -> Tensor:
    """Euclidean norm of all gradients together, float32 on ``device``; sums run in float32 whatever their type."""
    norms = [torch.linalg.vector_norm(g, dtype=torch.float32).to(device) for g in gradients if g.numel()]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros((), device=device)


@torch.no_grad()
def _exchange(weights: Mapping[str, Tensor], average: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put the average into the weights. Equal types trade places; a bfloat16 weight is kept, as a rounded average
    could not be given back. Returns what was kept."""
    kept = {}
    for name, value in average.items():
        weight = weights[name]
        if weight.dtype == value.dtype:
            old = weight.clone()
            weight.copy_(value)
            value.copy_(old)
        else:
            kept[name] = weight.clone()
            weight.copy_(value)
    return kept


@torch.no_grad()
def _exchange_back(weights: Mapping[str, Tensor], average: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> None:
    for name, value in kept.items():
        weights[name].copy_(value)
    _exchange(weights, {name: value for name, value in average.items() if name not in kept})

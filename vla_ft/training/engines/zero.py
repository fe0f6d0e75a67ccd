"""DeepSpeed's ZeRO (Rajbhandari et al., 2020): optimizer state (stage 1), gradients (2) and weights (3) in shares.

DeepSpeed runs forward, backward and averaging, torch's AdamW steps its flat float32 masters. Clipping, checkpoints and
averages of weights are ours, by name, so that a run goes on under any other engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vla_ft.config import RunConfig
from vla_ft.errors import UserError
from vla_ft.policies.base import Batch, Loss, Model
from vla_ft.training.engines.base import local_norm
from vla_ft.training.engines.filling import joined, scatter_ranges, take_values
from vla_ft.training.engines.pieces import Piece
from vla_ft.training.engines.process_group import ProcessGroupEngine
from vla_ft.training.engines.zero_access import (
    FlatMasters,
    Masters,
    PartitionedMasters,
    Partitioner,
    adopt_group,
    flats_by_name,
    frozen_share,
    load,
    partition,
    release,
)
from vla_ft.training.engines.zero_settings import deepspeed_settings
from vla_ft.training.optimizers import build_optimizer

_STATE = ("exp_avg", "exp_avg_sq")


class ZeroEngine(ProcessGroupEngine):
    """What the three stages share. One process is enough, for its offload."""

    stage: ClassVar[int]
    module: Any
    """DeepSpeed's engine around the model."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        self._deepspeed = load(device)  # before any group is joined: it may be missing
        super().__init__(config, device)
        adopt_group(self._deepspeed)
        self.module = None
        self._masters: Masters

    @property
    def builds_real(self) -> bool:
        return self.is_main

    @property
    def shard(self) -> int:
        return self.rank

    # --- the model -------------------------------------------------------------------------------------------------

    def wrap(self, model: Model) -> None:
        # Like FSDP's: shapes first, the same way on every process; then values from the main one, tensor by tensor.
        values = take_values(model)
        sizes = [p.numel() for p in model.parameters() if p.requires_grad]
        settings = deepspeed_settings(self.config, self.stage, sizes, pin=self.device.type == "cuda")
        dtype = torch.bfloat16 if self.config.precision == "bf16" else torch.float32
        cut = Partitioner(self._deepspeed, settings, dtype) if self.stage == 3 else None
        _materialize(model, self.device, dtype, cut)
        self._fill_buffers(model, values)
        self.model = model
        self._enter_by_forward(model)
        stepped = {name: p for name, p in model.named_parameters() if p.requires_grad}
        optimizer = build_optimizer(model, self.config.optimizer, trained=stepped)
        self.module = self._deepspeed.initialize(model=model, optimizer=optimizer, config=settings)[0]
        self._name_shares(model)
        self._fill(values)
        self.settle()

    def _enter_by_forward(self, model: Model) -> None:
        """Make the model's forward the entry for ``sample`` too.

        DeepSpeed's hooks surround it alone: they collect stage 3's weights, also those that are read from outside their
        own layer. It gives plain tuples, which hooks see through.
        """
        compute = model.forward

        def forward(batch: Batch, sampling: bool = False) -> tuple[Any, ...]:
            with self.autocast():  # inside: DeepSpeed ends one that it finds around itself
                if sampling:
                    return (model.sample(batch),)
                result = compute(batch)
                return result.loss, dict(result.metrics), dict(result.per_step)

        model.forward = forward  # type: ignore[assignment,method-assign]

    def _name_shares(self, model: Model) -> None:
        named = dict(model.named_parameters())
        names = {id(p): name for name, p in named.items()}
        kind = PartitionedMasters if self.stage == 3 else FlatMasters
        self._masters = kind(self.module.optimizer, names, self.rank, self.world_size)
        self.pieces, self.weights, self.trained = {}, {}, {}
        for name, parameter in named.items():
            if parameter.requires_grad:
                self.pieces[name] = self._masters.pieces[name]
                self.weights[name] = self._masters.share(name)
                self.trained[name] = nn.Parameter(self.weights[name])
            else:
                self.pieces[name], self.weights[name] = self._frozen(parameter)

    def _frozen(self, parameter: nn.Parameter) -> tuple[Piece, Tensor]:
        """A frozen weight's cut, and what is here of it."""
        if self.stage == 3:
            piece = partition(parameter, self.rank, self.world_size)
            return piece, frozen_share(parameter, piece)
        return Piece.whole(parameter.shape), parameter.detach()

    @torch.no_grad()
    def _fill(self, values: dict[str, Tensor]) -> None:
        """Give every process its elements of what the main one built. Collective."""
        for flat in self._masters.flats:
            flat.detach().zero_()  # padding
        for name, weight in self.weights.items():
            ranges = self.pieces[name].ranges
            ranges = ranges * self.world_size if len(ranges) != self.world_size else ranges
            weight.copy_(self._scatter(values.pop(name, None), ranges, weight).view(weight.shape))

    def _scatter(self, value: Tensor | None, ranges: Any, like: Tensor) -> Tensor:
        whole = None if value is None else value.to(like.dtype)
        return scatter_ranges(whole, ranges, like.dtype, self.rank)

    def _fill_buffers(self, model: Model, values: dict[str, Tensor]) -> None:
        for prefix, module in model.named_modules():
            for key, buffer in module._buffers.items():
                if buffer is not None:
                    ranges = [(0, buffer.numel())] * self.world_size
                    filled = self._scatter(values.pop(joined(prefix, key), None), ranges, buffer)
                    module._buffers[key] = filled.view(buffer.shape).to(self.device)

    def check(self) -> None:
        super().check()
        zero, engine = self.module.optimizer, self.module
        expected = {3: "DeepSpeedZeroOptimizer_Stage3"}.get(self.stage, "DeepSpeedZeroOptimizer")
        seen = (type(zero).__name__, int(engine.zero_optimization_stage()), engine.dp_world_size)
        if seen != (expected, self.stage, self.world_size):
            raise RuntimeError(f"engine {self.name}: {seen} instead of {(expected, self.stage, self.world_size)}")
        if self._masters.pieces.keys() != self.trained.keys() or type(self._masters.base) is not torch.optim.AdamW:
            raise RuntimeError(f"engine {self.name}: {type(self._masters.base).__name__} steps other weights")
        kept = torch.bfloat16 if self.config.precision == "bf16" else torch.float32
        if {p.dtype for p in self.model.parameters()} != {kept} or any(
            f.dtype != torch.float32 for f in self._masters.flats
        ):
            raise RuntimeError(f"engine {self.name}: precision={self.config.precision} was not followed")
        if self._masters.offloads != (self.config.offload != "none"):
            raise RuntimeError(f"engine {self.name}: offload={self.config.offload} was not followed")

    def describe(self) -> str:
        kept = "bfloat16" if self.config.precision == "bf16" else "float32"
        model = f"shares of {kept} weights" if self.stage == 3 else f"whole {kept} weights on every device"
        cut = f"float32 masters in {self.world_size} share(s)"
        return f"{self.name} of DeepSpeed {self._deepspeed.__version__}, {cut}, {model}"

    # --- one update ------------------------------------------------------------------------------------------------

    def loss(self, batch: Batch) -> Loss:
        return Loss(*self.module(batch))

    def sample(self, batch: Batch) -> Tensor:
        chunk: Tensor = self.module(batch, sampling=True)[0]
        return chunk

    @contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        self.module.set_gradient_accumulation_boundary(last)
        yield

    def backward(self, loss: Tensor) -> None:
        self.module.backward(loss, scale_wrt_gas=False)

    @torch.no_grad()
    def clip(self, limit: float) -> Tensor:
        gradients = self._masters.gradients()
        squared = local_norm(gradients, self.device).square()
        dist.all_reduce(squared)
        norm = squared.sqrt()
        factor = (limit / (norm + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factor.to(gradient.device))
        return norm

    def step(self) -> None:
        rates = {group["name"]: group["lr"] for group in self.optimizer.param_groups}
        for group in self._masters.base.param_groups:
            group["lr"] = rates[group["name"]]
        self.module.step()
        if not self.module.was_step_applied():
            raise RuntimeError(f"engine {self.name}: DeepSpeed left an update out")

    def zero_grad(self) -> None:
        self.module.optimizer.zero_grad(set_to_none=True)
        self._masters.forget_gradients()

    # --- weights by name -------------------------------------------------------------------------------------------

    def settle(self) -> None:
        self._masters.push()

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        states: dict[str, dict[str, Tensor]] = {}
        for group, names in flats_by_name(self._masters):
            state = self._masters.base.state.get(self._masters.flats[group], {})
            for name in names:
                if state and self.weights[name].numel():
                    states[name] = {key: self._masters.cut(name, state[key]) for key in _STATE}
                    states[name]["step"] = state["step"]
        return states

    def load_optimizer_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        for group, names in flats_by_name(self._masters):
            found = {name: state[name] for name in names if name in state}
            if found:
                self._restore(self._masters.flats[group], found)

    def _restore(self, flat: Tensor, found: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Set the state of one flat master from those of the weights in it, which share one count of steps."""
        steps = {int(entries["step"]) for entries in found.values()}
        if len(steps) != 1 or any(entries.keys() - {"step", *_STATE} for entries in found.values()):
            raise UserError(
                f"The checkpoint's optimizer state cannot go on under engine={self.name}: weights of one part were "
                f"stepped {sorted(steps)} times. Continue it with engine=fsdp2, ddp or single."
            )
        fused = any(group.get("fused") for group in self._masters.base.param_groups)
        kept = {key: torch.zeros_like(flat.detach()) for key in _STATE}
        for name, entries in found.items():
            for key in _STATE:
                self._masters.cut(name, kept[key]).copy_(entries[key].reshape(-1))
        step = torch.tensor(float(steps.pop()), device=flat.device if fused else "cpu")
        self._masters.base.state[flat] = {"step": step, **kept}

    def close(self) -> None:
        release(self.module)


class Zero1Engine(ZeroEngine):
    """Optimizer state and masters in shares."""

    name = "zero1"
    stage = 1


class Zero2Engine(ZeroEngine):
    """Gradients in shares too."""

    name = "zero2"
    stage = 2


class Zero3Engine(ZeroEngine):
    """Weights in shares too, collected layer by layer."""

    name = "zero3"
    stage = 3


def _materialize(model: Model, device: torch.device, dtype: torch.dtype, cut: Partitioner | None) -> None:
    """Give a model on the meta device storage; with ``cut``, of this process's shares alone. Values come later."""
    made: dict[int, nn.Parameter] = {}  # one for each parameter, so that tied ones stay tied
    for module in model.modules():
        for key, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in made:
                empty = torch.zeros(parameter.shape, dtype=dtype, device=device)
                made[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
                if cut is not None:
                    cut(made[id(parameter)])
            module._parameters[key] = made[id(parameter)]

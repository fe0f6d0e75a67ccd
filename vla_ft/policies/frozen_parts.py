"""Frozen parts of a model: which may be cached, whether nothing random is in them, and a model without them.

The trainer uses it on real tensors, the planner on fake ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from vla_ft.errors import UserError, unknown
from vla_ft.policies.base import Batch, FrozenFeatures, Model


class LeftOut(nn.Module):
    """Stands where a frozen part was. Its outputs come with the batch, so nobody may call it."""

    def forward(self, *_: object, **__: object) -> Tensor:
        """Always raises: the batch came without the cached features."""
        raise RuntimeError("this part was left out because its features are cached, and the batch brought none")


def cacheable(
    model: Model, parts: Sequence[str], random_keys: Sequence[str] = (), *, varied: bool = False
) -> dict[str, FrozenFeatures]:
    """The declarations of ``parts``. Raises UserError for a part that is unknown, trained, or follows something random.

    ``random_keys`` are the batch keys that the processor draws at random. ``varied``: a wording of the instruction is
    drawn for every sample (``data.instructions=vary``).
    """
    declared = model.frozen_features()
    chosen = {}
    for part in dict.fromkeys(parts):
        if part not in declared:
            raise unknown("part whose features can be cached", part, declared)
        chosen[part] = declared[part]
        module = model.get_submodule(chosen[part].module)
        trained = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
        if trained:
            prefix = chosen[part].module + "."
            groups = [g for g, of in model.parameter_groups().items() if any(n.startswith(prefix) for n, _ in of)]
            raise UserError(
                f"frozen_features.parts names '{part}', whose weights are trained ({trained[0]} and {len(trained) - 1} "
                f"more): its outputs change with every step. Freeze it with freeze=[{','.join(groups)}], or leave it "
                "out of frozen_features.parts."
            )
        drawn = [key for key in chosen[part].inputs if key in random_keys]
        if drawn:
            raise UserError(
                f"The features of '{part}' cannot be cached: {', '.join(drawn)} is augmented at random, so every pass "
                "over the data shows other pictures. Turn the augmentation off, or set frozen_features=null."
            )
        if varied and chosen[part].scope == "sample":  # one feature a sample is kept, of the first wording alone
            raise UserError(
                f"The features of '{part}' cannot be cached: data.instructions=vary draws another wording of the "
                "instruction in every pass over the data, and they are computed from one. Expected "
                "data.instructions=first: set it, or train without cached features with frozen_features=null."
            )
        # Functional dropout shows no module; `refuse_random` finds that one when the features are made.
        dropping = [n for n, m in module.named_modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0]
        if dropping:
            raise _random(part, f"{dropping[0]} drops activations at random in training")
        moving = [name for name, m in module.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if moving:
            raise _random(part, f"{moving[0]} normalises by the statistics of the batch in training")
    return chosen


def replaced_inputs(model: Model, cached: Mapping[str, FrozenFeatures]) -> set[str]:
    """Batch keys that nothing reads once the features of the parts ``cached`` come with the batch."""
    still_run = [one for part, one in model.frozen_features().items() if part not in cached]
    needed = {key for declared in still_run for key in declared.inputs}
    return {key for declared in cached.values() for key in declared.replaces} - needed


def refuse_random(model: Model, part: str, declared: FrozenFeatures, batch: Batch) -> None:
    """Run the part as training would, once. Raises UserError when it draws random numbers (dropout of any kind) or when
    its output depends on a weight that is trained."""
    device = next(iter(batch.values())).device
    was_training = model.training
    model.train()
    try:
        before = _generators(device)
        with torch.enable_grad():
            outputs = declared.compute(batch)
        drawn = any(not torch.equal(a, b) for a, b in zip(before, _generators(device), strict=True))
    finally:
        model.train(was_training)
    if drawn:
        raise _random(part, "it draws random numbers in training (dropout)")
    learned = [key for key, value in outputs.items() if value.requires_grad]
    if learned:
        raise UserError(
            f"The features of '{part}' cannot be cached: {learned[0]} depends on weights that are trained. Freeze what "
            "comes before it, or set frozen_features=null."
        )


def compute_rows(model: Model, declared: FrozenFeatures, batch: Batch) -> dict[str, Tensor]:
    """Features [B, ...] of a batch in eval mode without gradients, contiguous. Autocast is the caller's."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            outputs = declared.compute(batch)
    finally:
        model.train(was_training)
    if set(outputs) != set(declared.outputs):
        raise RuntimeError(f"{type(model).__name__} declares {declared.outputs} and computes {tuple(outputs)}")
    return {key: outputs[key].contiguous() for key in declared.outputs}


def with_features(
    batch: Batch, cached: Mapping[str, FrozenFeatures], rows: Mapping[str, Tensor], replaced: set[str], steps: int
) -> Batch:
    """The batch as training gets it from caches that hold ``rows`` [B, ...] of all parts ``cached``.

    Rows of one frame are repeated over the observation window of ``steps``: right in shape, for forecasts.
    ``replaced``: what ``replaced_inputs`` gave.
    """
    whole = {key: value for key, value in batch.items() if key not in replaced}
    for declared in cached.values():
        for key in declared.outputs:
            frames = rows[key].unsqueeze(1).repeat_interleave(steps, dim=1)
            whole[key] = frames if declared.scope == "frame" else rows[key]
    return whole


def leave_out(model: Model, declared: FrozenFeatures) -> dict[str, Tensor]:
    """Take the part out of the model. Returns its weights and buffers under their full names, where they were."""
    prefix = declared.module + "."
    tensors = {prefix + key: value.detach() for key, value in model.get_submodule(declared.module).state_dict().items()}
    parent, _, name = declared.module.rpartition(".")
    setattr(model.get_submodule(parent), name, LeftOut())
    return tensors


def weights_hash(module: nn.Module) -> str:
    """SHA-256 (hex) over names, dtypes, shapes and bytes of a module's weights and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _generators(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _random(part: str, why: str) -> UserError:
    return UserError(
        f"The features of '{part}' cannot be cached: {why}, so the same sample gives another output each time. Set its "
        "dropout to 0, or set frozen_features=null."
    )

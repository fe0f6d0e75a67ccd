"""The published measures of a sampled chunk: ``overall_avg_sample_mse`` and ``overall_avg_sample_l2err``.

Errors count in the dimensions that a robot has; the others of the unified vector are 0 on both sides. A dataset's own
measure is the mean over its samples, the overall one pools the numbers of a batch and is averaged over batches.
"""

from __future__ import annotations

from torch import Tensor

_LEAST_NORM = 1e-3


def squared_error(predicted: Tensor, action: Tensor) -> Tensor:
    """Squared error [B, H, D]."""
    return (predicted - action).float().square()


def relative_error(predicted: Tensor, action: Tensor, norm: Tensor) -> Tensor:
    """Absolute error [B, H, D] relative to ``norm`` [B, D], the root mean square of the episode's state."""
    return (predicted - action).float().abs() / (norm[:, None].float() + _LEAST_NORM)


def of_each(error: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``error`` [B, H, D] over ``mask`` [B, D], for each sample [B]."""
    weights = mask[:, None].float().expand_as(error)
    return (error * weights).sum((1, 2)) / weights.sum((1, 2)).clamp(min=1)


def pooled(error: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``error`` [B, H, D] over ``mask`` [B, D], of all numbers of the batch."""
    weights = mask[:, None].float().expand_as(error)
    return (error * weights).sum() / weights.sum().clamp(min=1)

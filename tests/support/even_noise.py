"""Noise that does not depend on how a batch is cut: every row that a model draws is the same.

Diffusion and flow policies draw noise and times for each sample, and every process has a generator of its own. With
even rows the loss of a step depends on the samples alone, so that two processes can be compared with one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

_SHARE = 0.37


@contextmanager
def even_noise() -> Iterator[None]:
    """Within it torch's global draws are even; those from a generator that is named stay as they are."""
    usual = {name: getattr(torch, name) for name in ("randn", "rand", "randint")}

    def even(name: str, make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def draw(*given: Any, generator: torch.Generator | None = None, **options: Any) -> Tensor:
            if generator is not None:
                return usual[name](*given, generator=generator, **options)
            return make(*given, **options)

        return draw

    def like(x: Tensor, **_: Any) -> Tensor:
        return _waves(*x.shape, dtype=x.dtype, device=x.device)

    draws = {"randn": _waves, "rand": _same, "randint": _middle}
    with (
        mock.patch.multiple(torch, **{name: even(name, make) for name, make in draws.items()}),
        mock.patch.object(torch, "randn_like", like),
    ):
        yield


def _size(given: tuple[Any, ...]) -> tuple[int, ...]:
    return tuple(given[0]) if given and not isinstance(given[0], int) else tuple(given)


def _waves(*given: Any, **options: Any) -> Tensor:
    """Rows of cosines, of about the spread of normal numbers."""
    shape = _size(given)
    row = math.sqrt(2) * torch.cos(2.0 * torch.arange(math.prod(shape[1:]), dtype=torch.float64)).reshape(shape[1:])
    return row.to(options.get("device"), options.get("dtype") or torch.get_default_dtype()).expand(shape).clone()


def _same(*given: Any, **options: Any) -> Tensor:
    return torch.full(_size(given), _SHARE, device=options.get("device"), dtype=options.get("dtype"))


def _middle(*given: Any, **options: Any) -> Tensor:
    *bounds, size = given
    low, high = (0, bounds[0]) if len(bounds) == 1 else bounds
    return torch.full(tuple(size), (low + high) // 2, device=options.get("device"), dtype=torch.int64)

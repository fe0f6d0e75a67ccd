"""What kernels allocate for themselves while they run: torch's allocator sees it, an operation's result does not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_FORWARD = torch.ops.aten.convolution.default
_BACKWARD = torch.ops.aten.convolution_backward.default


def cpu_workspace(function: Any, arguments: tuple[Any, ...], result: Any) -> int:
    """Bytes that an operation holds besides its arguments and result at its highest on this CPU; 0 for most.

    Convolutions go to oneDNN, which brings its operands into layouts of its own: the weight alone for channels-last
    images, and for others the source and the result as well (read off the allocator's events under torch 2.13).
    """
    if function not in (_FORWARD, _BACKWARD) or not torch.backends.mkldnn.enabled:
        return 0
    first, second = arguments[:2]
    if function is _FORWARD:
        source, weight = first, second
        return 2 * _size(weight) if _channels_last(source) else max(_size(source) + _size(weight), _size(result))
    gradient, source, weight = first, second, arguments[2]
    return 3 * _size(weight) if _channels_last(source) else max(_size(source) + _size(gradient), _size(weight))


def card_workspace(function: Any, arguments: tuple[Any, ...], result: Any) -> int:
    """The same on a card: cuDNN takes channels-last images with the weight in that layout, a copy (from torch's source,
    not measured). What cuDNN asks for beyond that depends on the algorithm and is part of the margin."""
    if function not in (_FORWARD, _BACKWARD):
        return 0
    source, weight = arguments[:2] if function is _FORWARD else arguments[1:3]
    return _size(weight) if _channels_last(source) else 0


def _channels_last(tensor: Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()

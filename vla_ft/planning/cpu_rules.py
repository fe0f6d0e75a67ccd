"""What this CPU's kernels allocate for themselves while they run: invisible in an operation's result."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def kernel_workspace(function: Any, arguments: tuple[Any, ...], result: Any) -> int:
    """Bytes that ``function`` holds besides its arguments and result at its highest; 0 for most.

    Convolutions go to oneDNN, which brings its operands into blocked layouts and the result back (read off the
    allocator's events, torch 2.13: forward source and weight beside the blocked result, or that and the plain one;
    backward source and output gradient, or the blocked weight gradient).
    """
    if not torch.backends.mkldnn.enabled or not torch.backends.mkldnn.is_available():
        return 0
    if function is torch.ops.aten.convolution.default:
        source, weight = arguments[:2]
        return max(_bytes(source) + _bytes(weight), _bytes(result))
    if function is torch.ops.aten.convolution_backward.default:
        gradient, source, weight = arguments[:3]
        return max(_bytes(source) + _bytes(gradient), _bytes(weight))
    return 0


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()

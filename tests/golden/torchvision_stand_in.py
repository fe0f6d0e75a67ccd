"""The few parts of torchvision that LeRobot's ACT asks for, written anew: for machines that have LeRobot without it.

``resnet18`` under torchvision's tensor names, a frozen batch norm and a getter of one layer's output. Everything else
that LeRobot imports from torchvision becomes an empty class. Importing this module puts it in torchvision's place.
That this is torchvision's function is not assumed: ours is compared with the real one in other golden files
(``policy_resnet18_end_to_end``, ``lerobot_act_cameras``), and ours with this one here.
"""

from __future__ import annotations

import importlib.machinery
import sys
import types
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn


class FrozenBatchNorm2d(nn.Module):
    """Batch norm by stored numbers alone."""

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((num_features,), value))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )


class _Block(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False), norm(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), norm(width)
        self.downsample = None
        if stride != 1 or inputs != width:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), norm(width))

    def forward(self, x: Tensor) -> Tensor:
        beside = x if self.downsample is None else self.downsample(x)
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))) + beside)


def resnet18(
    replace_stride_with_dilation: Any = None, weights: Any = None, norm_layer: type[nn.Module] = nn.BatchNorm2d
) -> nn.Module:
    """He et al. (2015), table 1, 18 layers, under torchvision's names. No weights are fetched."""
    assert weights is None and not any(replace_stride_with_dilation or ())
    layers: list[tuple[str, nn.Module]] = [
        ("conv1", nn.Conv2d(3, 64, 7, 2, 3, bias=False)), ("bn1", norm_layer(64)), ("relu", nn.ReLU()),
        ("maxpool", nn.MaxPool2d(3, 2, 1)),
    ]  # fmt: skip
    inputs = 64
    for number, width in enumerate((64, 128, 256, 512), 1):
        stride = 1 if number == 1 else 2
        blocks = nn.Sequential(_Block(inputs, width, stride, norm_layer), _Block(width, width, 1, norm_layer))
        layers.append((f"layer{number}", blocks))
        inputs = width
    model = nn.Sequential(OrderedDict([*layers, ("avgpool", nn.AdaptiveAvgPool2d(1)), ("fc", nn.Linear(512, 1000))]))
    return model


class IntermediateLayerGetter(nn.ModuleDict):
    """A model up to the last wanted layer; outputs by their new names."""

    def __init__(self, model: nn.Module, return_layers: dict[str, str]) -> None:
        kept, left = OrderedDict(), set(return_layers)
        for name, module in model.named_children():
            if not left:
                break
            kept[name] = module
            left.discard(name)
        super().__init__(kept)
        self.return_layers = dict(return_layers)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = OrderedDict()
        for name, module in self.items():
            x = module(x)
            if name in self.return_layers:
                found[self.return_layers[name]] = x
        return found


class _Empty(types.ModuleType):
    """A module in which every name is an empty class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (nn.Module,), {})


def _module(name: str, **contents: Any) -> _Empty:
    found = _Empty(name)
    found.__path__ = []
    found.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    vars(found).update(contents)
    sys.modules[name] = found
    parent, _, own = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], own, found)
    return found


_module("torchvision", __version__="0.0+stand.in")
for _name in ("transforms", "transforms.v2", "transforms.functional", "transforms.v2.functional", "io", "ops"):
    _module(f"torchvision.{_name}")
_module("torchvision.ops.misc", FrozenBatchNorm2d=FrozenBatchNorm2d)
_module("torchvision.models", resnet18=resnet18)
_module("torchvision.models._utils", IntermediateLayerGetter=IntermediateLayerGetter)

"""Position tables and frozen batch norm."""

from __future__ import annotations

import pytest
from golden_files import Golden

from vla_ft.nn.positions import sine_map, sinusoid_table
from vla_ft.nn.resnet import FrozenBatchNorm2d

FILES = pytest.mark.golden_files("act/position_tables*")


@FILES
def test_sine_maps(golden: Golden) -> None:
    """Keys are ``sine2d.<features>.<height>x<width>``."""
    keys = [k for k in golden.tensors if k.startswith("sine2d.")]
    assert keys
    for key in keys:
        _, features, size = key.split(".")
        height, width = map(int, size.split("x"))
        golden.close(sine_map(int(features), height, width), key, rtol=1e-5, atol=1e-5)


@FILES
def test_sinusoid_tables(golden: Golden) -> None:
    """Keys are ``sinusoid.<positions>x<features>``."""
    keys = [k for k in golden.tensors if k.startswith("sinusoid.")]
    assert keys
    for key in keys:
        positions, features = map(int, key.split(".")[1].split("x"))
        golden.close(sinusoid_table(positions, features), key, rtol=1e-6, atol=1e-6)


@FILES
def test_frozen_batch_norm(golden: Golden) -> None:
    names = ("weight", "bias", "running_mean", "running_var")
    norm = FrozenBatchNorm2d(len(golden["frozenbn.weight"]), eps=golden.facts["frozenbn_eps"])
    norm.load_state_dict({name: golden[f"frozenbn.{name}"] for name in names})
    assert not list(norm.parameters())
    golden.close(norm(golden["frozenbn.in"]), "frozenbn.out", rtol=1e-5, atol=1e-6)

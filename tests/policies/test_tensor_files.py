"""Opening foreign tensors: nothing is executed, and damage is told from absence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vla_ft.errors import UserError
from vla_ft.policies.tensor_files import read_tensors


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("executed"),))  # type: ignore[return-value]


def test_both_kinds(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(3.0)}
    save_file(tensors, tmp_path / "a.safetensors")
    torch.save(tensors, tmp_path / "a.ckpt")
    for name in ("a.safetensors", "a.ckpt"):
        assert torch.equal(read_tensors(tmp_path / name)["a"], tensors["a"])


def test_code_in_a_file_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Harmful()}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="Python objects beside tensors"):
        read_tensors(tmp_path / "a.pt")
    assert not (tmp_path / "executed").exists()


def test_truncated_missing_nested_and_strange_files(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1000)}, tmp_path / "a.safetensors")
    torch.save({"a": torch.zeros(1000)}, tmp_path / "a.pt")
    torch.save({"model": {"a": torch.zeros(1)}, "epoch": 3}, tmp_path / "nested.pt")
    for name in ("a.safetensors", "a.pt"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:600])
        with pytest.raises(UserError, match="Copy or download it again"):
            read_tensors(path)
    with pytest.raises(UserError, match="a dict with 'model', 'epoch', expected a plain state dict"):
        read_tensors(tmp_path / "nested.pt")
    with pytest.raises(UserError, match="No weights file at"):
        read_tensors(tmp_path / "absent.pt")
    (tmp_path / "a.txt").touch()
    with pytest.raises(UserError, match=r"ends in '\.txt'"):
        read_tensors(tmp_path / "a.txt")

"""Opening foreign tensors: nothing is executed or read too early, and damage is told from absence."""

from __future__ import annotations

import json
import struct
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vla_ft.errors import UserError
from vla_ft.policies import tensor_files
from vla_ft.policies.tensor_files import open_tensors, read_tensors

TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.bool)


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("executed"),))  # type: ignore[return-value]


def some_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {str(kind): (torch.rand(3, 5, generator=generator) * 9).to(kind) for kind in TYPES}
    return {**tensors, "scalar": torch.tensor(2.5), "empty": torch.empty(0, 4), "one": torch.ones(1)}


def check_same(found: tensor_files.TensorFiles, expected: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(expected) and len(found) == len(expected)
    for name, tensor in expected.items():
        assert found.shape(name) == tuple(tensor.shape) and found.dtype(name) == tensor.dtype
        assert torch.equal(found[name], tensor), name
    assert found.nbytes == sum(tensor.nbytes for tensor in expected.values())


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "legacy.ckpt"])
def test_every_kind_of_file_gives_back_what_was_saved(tmp_path: Path, name: str) -> None:
    tensors = some_tensors()
    if name == "a.safetensors":
        save_file(tensors, tmp_path / name, metadata={"format": "pt"})
    else:
        torch.save(tensors, tmp_path / name, _use_new_zipfile_serialization=name == "a.pt")
    check_same(open_tensors(tmp_path / name), tensors)
    copied = read_tensors(tmp_path / name)
    assert torch.equal(copied["torch.int64"], tensors["torch.int64"])


def test_views_keep_their_strides_and_share_their_storage(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    saved = {"base": base, "transposed": base.t(), "row": base[2], "columns": base[:, 1::2], "tied": base}
    torch.save(saved, tmp_path / "a.pt")
    found = open_tensors(tmp_path / "a.pt")
    for name, tensor in saved.items():
        assert torch.equal(found[name], tensor) and found[name].stride() == tensor.stride()
    found["base"][2, 0] = -1.0  # as torch.load would: views of one storage
    assert found["row"][0] == -1.0


def test_writing_to_a_tensor_leaves_the_file_alone(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(4)}, tmp_path / "a.safetensors")
    before = (tmp_path / "a.safetensors").read_bytes()
    tensor = open_tensors(tmp_path / "a.safetensors")["a"]
    tensor.add_(1.0)
    assert tensor.tolist() == [1.0] * 4
    assert (tmp_path / "a.safetensors").read_bytes() == before


def test_unaligned_safetensors(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    header += b" " * (-len(header) % 8) + b" "  # one byte off
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + struct.pack("<2f", 1.5, -2.0))
    assert open_tensors(tmp_path / "a.safetensors")["a"].tolist() == [1.5, -2.0]


def test_a_part_of_a_nested_file(tmp_path: Path) -> None:
    content = {
        "model": OrderedDict(llm={"a.weight": torch.ones(2)}, action={"net.b": torch.zeros(3)}),
        "n_averaged": 4,
    }
    torch.save(content, tmp_path / "nested.pt")
    assert set(open_tensors(tmp_path / "nested.pt", "model")) == {"llm.a.weight", "action.net.b"}
    assert set(open_tensors(tmp_path / "nested.pt", "model.action")) == {"net.b"}
    for inside, message in (("ema", "expected a part 'ema'"), ("model.vision", "'llm', 'action', expected a part")):
        with pytest.raises(UserError, match=message):
            open_tensors(tmp_path / "nested.pt", inside)
    torch.save({"model": {"a": torch.ones(1), "step": 3}}, tmp_path / "mixed.pt")
    with pytest.raises(UserError, match=r"holds \['step'\] in its part 'model', expected tensors alone"):
        open_tensors(tmp_path / "mixed.pt", "model")


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_folder_of_shards(tmp_path: Path, kind: str) -> None:
    stem = {"safetensors": "model", "bin": "pytorch_model"}[kind]
    shards = {f"{stem}-1.{kind}": {"a": torch.ones(2)}, f"{stem}-2.{kind}": {"b": torch.zeros(3)}}
    for name, tensors in shards.items():
        (save_file if kind == "safetensors" else torch.save)(tensors, tmp_path / name)
    index = tmp_path / f"{stem}.{kind}.index.json"
    index.write_text(json.dumps({"weight_map": {"a": f"{stem}-1.{kind}", "b": f"{stem}-2.{kind}"}}))
    check_same(open_tensors(tmp_path), {"a": torch.ones(2), "b": torch.zeros(3)})

    index.write_text(json.dumps({"weight_map": {"a": f"{stem}-2.{kind}"}}))
    with pytest.raises(UserError, match="lists tensors that are not there: 'a' in"):
        open_tensors(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": f"../{stem}-1.{kind}"}}))
    with pytest.raises(UserError, match="outside its folder"):
        open_tensors(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "gone.bin"}}))
    with pytest.raises(UserError, match=r"lacks gone\.bin"):
        open_tensors(tmp_path)
    index.write_text("{}")
    with pytest.raises(UserError, match="no index of shards"):
        open_tensors(tmp_path)
    index.unlink()
    with pytest.raises(UserError, match=r"No weights in folder .*pytorch_model\.bin\.$"):
        open_tensors(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match=r"a run of ours: `vla-ft export checkpoint=.* output="):
        open_tensors(tmp_path)


def test_code_in_a_file_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for new in (True, False):
        torch.save({"a": Harmful()}, tmp_path / "a.pt", _use_new_zipfile_serialization=new)
        with pytest.raises(UserError, match="Python objects beside tensors"):
            open_tensors(tmp_path / "a.pt")
    assert not (tmp_path / "executed").exists()


def test_truncated_missing_nested_and_strange_files(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1000)}, tmp_path / "a.safetensors")
    torch.save({"a": torch.zeros(1000)}, tmp_path / "a.pt")
    torch.save({"model": {"a": torch.zeros(1)}, "epoch": 3}, tmp_path / "nested.pt")
    for name in ("a.safetensors", "a.pt"):
        path = tmp_path / name
        for length in (600, 4, 0):
            path.write_bytes(path.read_bytes()[:length])
            with pytest.raises(UserError, match=r"Copy or download it again|is no torch file"):
                open_tensors(path)
    with pytest.raises(UserError, match="a dict with 'model', 'epoch', expected a plain state dict"):
        open_tensors(tmp_path / "nested.pt")
    with pytest.raises(UserError, match="No weights file at"):
        open_tensors(tmp_path / "absent.pt")
    (tmp_path / "a.txt").touch()
    with pytest.raises(UserError, match=r"ends in '\.txt'"):
        open_tensors(tmp_path / "a.txt")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]},
        {"dtype": "F31", "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2]},
        [],
    ],
)
def test_a_header_that_does_not_fit_its_data(tmp_path: Path, entry: object) -> None:
    header = json.dumps({"a": entry}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(UserError, match="no complete safetensors file"):
        open_tensors(tmp_path / "a.safetensors")


def test_an_old_torch_file_too_large_to_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": torch.zeros(100)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    monkeypatch.setattr(tensor_files, "LEGACY_LIMIT", 300)
    with pytest.raises(UserError, match=r"must be read whole: 0\.0 GB\. Save it again"):
        open_tensors(tmp_path / "old.pt")

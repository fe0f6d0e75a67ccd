from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vla_ft.errors import UserError
from vla_ft.tensor_stream import Entry, TensorReader, TensorWriter, file_names

TENSORS = {
    "a.weight": torch.arange(6, dtype=torch.float32).view(2, 3),
    "b": torch.tensor(3.5, dtype=torch.bfloat16),
    "c": torch.arange(9, dtype=torch.uint8),
    "nothing": torch.empty(0, 4),
    "flags": torch.tensor([True, False]),
}


def write(folder, tensors=TENSORS, limit=2**30, **options):
    entries = [Entry(name, tuple(value.shape), value.dtype) for name, value in tensors.items()]
    writer = TensorWriter(folder, "model", entries, limit, **options)
    writer.begin()
    for value in tensors.values():
        writer.write(value.reshape(-1))
    writer.finish()


def test_the_library_reads_what_was_streamed(tmp_path):
    write(tmp_path, metadata={"format": "pt"})
    read = load_file(tmp_path / "model.safetensors")
    assert read.keys() == TENSORS.keys()
    assert all(torch.equal(read[name], value) and read[name].dtype == value.dtype for name, value in TENSORS.items())
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_ranges_of_what_the_library_wrote(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    with TensorReader(tmp_path, "model") as reader:
        assert reader.range("a.weight", 2, 5).tolist() == [2, 3, 4]
        assert reader.range("a.weight", 5, 5).numel() == 0
        assert all(torch.equal(reader.tensor(name), value) for name, value in TENSORS.items())


def test_large_sets_are_split_with_an_index(tmp_path):
    write(tmp_path, limit=24)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
                     "model.safetensors.index.json"]  # fmt: skip
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["weight_map"]["a.weight"] == names[0]
    assert index["metadata"]["total_size"] == 24 + 2 + 9 + 2
    assert TensorReader.exists(tmp_path, "model")
    with TensorReader(tmp_path, "model") as reader:
        assert all(torch.equal(reader.tensor(name), value) for name, value in TENSORS.items())


def test_a_tensor_above_the_limit_has_a_file_of_its_own():
    entries = [Entry("small", (1,), torch.float32), Entry("large", (100,), torch.float32)]
    assert [len(part) for _, part in file_names("m", entries, limit=64)] == [1, 1]


def test_a_file_that_ends_early_is_told(tmp_path):
    write(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with TensorReader(tmp_path, "model") as reader, pytest.raises(UserError, match="ends before the tensor 'flags'"):
        reader.tensor("flags")
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="no complete safetensors file"):
        TensorReader(tmp_path, "model")


def test_what_was_not_announced_is_an_error_of_ours(tmp_path):
    writer = TensorWriter(tmp_path, "model", [Entry("a", (2,), torch.float32)])
    with pytest.raises(ValueError, match="announced"):
        writer.write(torch.zeros(3))
    with pytest.raises(ValueError, match="not written"):
        writer.finish()


def test_no_tensors_at_all(tmp_path):
    write(tmp_path, {})
    assert load_file(tmp_path / "model.safetensors") == {}

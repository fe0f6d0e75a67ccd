"""Wheels of a local folder: only what the lock admits is staged, layer by layer, and nothing stays behind."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from vla_ft.environment.table import Environment, load_table
from vla_ft.host.wheelhouse import sha256, staged


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name in ("torch-1.0+cpu-cp311-x.whl", "nvidia_nccl_cu12-2-x.whl", "safetensors-3-x.whl", "other-1-x.whl"):
        (folder / name).write_bytes(name.encode())
    return folder


@pytest.fixture
def environment(wheels: Path, tmp_path: Path) -> Environment:
    digests = {path.name: sha256(path) for path in wheels.iterdir()}
    (tmp_path / "requirements.lock").write_text(
        f"torch==1.0+cpu --hash=sha256:{digests['torch-1.0+cpu-cp311-x.whl']}\n"
        f"nvidia-nccl-cu12==2 --hash=sha256:{digests['nvidia_nccl_cu12-2-x.whl']}\n"
        f"safetensors==3 --hash=sha256:{'0' * 64}\n"
    )
    return replace(load_table().environment("cpu"), folder=tmp_path)


def test_staged_by_layer_and_removed(environment: Environment, wheels: Path, tmp_path: Path) -> None:
    said: list[str] = []
    stage = tmp_path / "stage"
    with staged(environment, [wheels], stage=stage, echo=said.append):
        found = sorted(str(path.relative_to(stage)) for path in stage.rglob("*.whl"))
        assert found == ["cuda/nvidia_nccl_cu12-2-x.whl", "torch/torch-1.0+cpu-cp311-x.whl"]
        original, copy = wheels / "torch-1.0+cpu-cp311-x.whl", stage / "torch" / "torch-1.0+cpu-cp311-x.whl"
        assert copy.stat().st_mtime_ns == original.stat().st_mtime_ns
    assert not list(stage.rglob("*.whl")) and len(list(wheels.iterdir())) == 4
    assert len(said) == 1 and "safetensors-3-x.whl" in said[0] and "not in the lock" in said[0]


def test_a_package_without_wheels_is_taken_as_its_archive(
    environment: Environment, wheels: Path, tmp_path: Path
) -> None:
    """A wheel that somebody made of it is another file on every machine: no lock can hold its hash."""
    archive, made = wheels / "deepspeed-0.1.tar.gz", wheels / "deepspeed-0.1-py3-none-any.whl"
    for path in (archive, made):
        path.write_bytes(path.name.encode())
    (wheels / "torch-1.0+cpu.tar.gz").write_bytes(b"torch is built by nobody here")
    pin = f"deepspeed==0.1 --hash=sha256:{sha256(archive)} --hash=sha256:{sha256(made)}\n"
    environment.lock.write_text(environment.lock.read_text() + pin)
    stage = tmp_path / "stage"
    with staged(environment, [wheels], stage=stage, echo=lambda line: None) as found:
        assert found.wheels["source"] == [archive]
        assert [path.name for path in found.wheels["torch"]] == ["torch-1.0+cpu-cp311-x.whl"]
        assert (stage / "source" / archive.name).is_file()
    assert not (stage / "source" / archive.name).exists()


def test_removed_after_a_failure(environment: Environment, wheels: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), staged(environment, [wheels], stage=tmp_path / "stage"):
        raise RuntimeError
    assert not list((tmp_path / "stage").rglob("*.whl"))


def test_second_build_waits(environment: Environment, wheels: Path, tmp_path: Path) -> None:
    said: list[str] = []
    entered = threading.Event()

    def second() -> None:
        with staged(environment, [], stage=tmp_path / "stage", echo=said.append):
            entered.set()

    with staged(environment, [wheels], stage=tmp_path / "stage", echo=lambda line: None):
        thread = threading.Thread(target=second)
        thread.start()
        assert not entered.wait(0.3)
        assert len(list((tmp_path / "stage").rglob("*.whl"))) == 2
    thread.join(10)
    assert entered.is_set() and "waiting" in said[0]

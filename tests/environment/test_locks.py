"""The committed locks, and the reader of locks."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from vla_ft.environment.locks import (
    FROM_SOURCE,
    LAYERS,
    changes,
    differences,
    parse_lock,
    read_lock,
    split,
    write_layers,
)
from vla_ft.environment.table import REPOSITORY, load_table
from vla_ft.errors import UserError

TABLE = load_table()
NAMES = [environment.name for environment in TABLE.environments]
A, B = "a" * 64, "b" * 64

LOCK = f"""# comment
numpy==2.4.6 \\
    --hash=sha256:{A} \\
    --hash=sha256:{B}
Nvidia_Cublas.cu12==12.6.4.1 \\
    --hash=sha256:{A}
nvidia-ml-py==13.0 --hash=sha256:{A}
torch==2.7.1+cu118 \\
    --hash=sha256:{B}
triton==3.3.1 ; platform_system == "Linux" \\
    --hash=sha256:{A}
"""


@pytest.mark.newcomer
@pytest.mark.parametrize("name", NAMES)
def test_a_lock_holds_pins_hashes_and_no_address(name):
    environment = TABLE.environment(name)
    for path in [environment.lock, *(environment.extra_lock(extra) for extra in environment.extras)]:
        assert "://" not in path.read_text()
        assert len(read_lock(path)) > 10  # raises for a line without an exact pin or without a hash


@pytest.mark.parametrize("name", NAMES)
def test_torch_is_the_file_of_the_table(name):
    environment = TABLE.environment(name)
    (torch,) = split(read_lock(environment.lock)).torch
    assert torch.version == environment.torch
    assert environment.torch_sha256 in torch.hashes


@pytest.mark.parametrize("name", NAMES)
def test_cuda_libraries_are_of_the_environments_cuda(name):
    environment = TABLE.environment(name)
    cuda = {pin.name: pin.version for pin in split(read_lock(environment.lock)).cuda}
    if environment.cuda is None:
        assert not cuda
        return
    major = environment.cuda.split(".")[0]
    assert all(pin == "triton" or re.search(rf"-cu{major}$", pin) for pin in cuda)
    assert cuda[f"nvidia-cuda-runtime-cu{major}"].startswith(environment.cuda + ".")


def test_the_stack_is_the_same_everywhere():
    layers = {name: split(read_lock(TABLE.environment(name).lock)) for name in NAMES}
    versions = {name: {pin.name: pin.version for pin in (*one.stack, *one.source)} for name, one in layers.items()}
    for name in NAMES:
        differing = {key for key in versions["cpu"].keys() | versions[name].keys()
                     if versions["cpu"].get(key) != versions[name].get(key)}  # fmt: skip
        assert not differing, name


def test_no_environment_holds_what_ties_it_to_one_torch_build():
    forbidden = {"torchvision", "torchaudio", "timm", "tensorflow"}
    for environment in TABLE.environments:
        names = {pin.name for pin in read_lock(environment.lock)}
        assert not names & forbidden
        for extra in environment.extras:
            added = {pin.name for pin in read_lock(environment.extra_lock(extra))}
            assert not added & (forbidden | names), "an add-on brings only what the lock lacks"


@pytest.mark.parametrize("name", NAMES)
def test_what_is_built_from_source_is_one_archive(name):
    """No wheel is published, so one hash; what its build imports comes before it."""
    layers = split(read_lock(TABLE.environment(name).lock))
    assert {pin.name: len(pin.hashes) for pin in layers.source} == dict.fromkeys(FROM_SOURCE, 1)
    assert "setuptools" in {pin.name for pin in layers.stack}


def test_layers_and_names():
    layers = split(parse_lock(f"{LOCK}DeepSpeed==0.1 --hash=sha256:{A}\n"))
    assert [pin.name for pin in layers.source] == ["deepspeed"]
    assert [pin.name for pin in layers.torch] == ["torch"]
    assert [pin.name for pin in layers.cuda] == ["nvidia-cublas-cu12", "triton"]
    assert [pin.name for pin in layers.stack] == ["numpy", "nvidia-ml-py"]
    assert layers.stack[0].hashes == (A, B)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("numpy>=2.0 --hash=sha256:" + A, "no exact pin"),
        ("numpy==2.0", "no sha256 hash"),
        ("numpy==2.0 --hash=sha256:" + A[:-1], "no sha256 hash"),
        ("--index-url somewhere", "no exact pin"),
        ("torch @ file:///x.whl --hash=sha256:" + A, "no exact pin"),
        (f"a==1 --hash=sha256:{A}\na==1 --hash=sha256:{B}", "pinned 2 times"),
        ("", "no pins"),
    ],
)
def test_what_is_no_lock_is_refused(line, message):
    with pytest.raises(UserError, match=message):
        parse_lock(line)


def test_written_layers_are_the_lock_again(tmp_path):
    lock = TABLE.environment("cu118").lock
    done = subprocess.run(
        [sys.executable, "-m", "vla_ft.environment.locks", "split", str(lock), str(tmp_path / "layers")],
        cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    layers = {name: (tmp_path / "layers" / f"{name}.txt").read_text() for name in LAYERS}
    assert layers["torch"].startswith("torch==2.7.1+cu118")
    assert len(parse_lock(layers["torch"])) == 1
    assert sorted("".join(layers.values()).splitlines()) == sorted(lock.read_text().splitlines())


def test_a_layer_without_packages_is_an_empty_file(tmp_path):
    _, cuda, _, _ = write_layers(TABLE.environment("cpu").lock, tmp_path)
    assert cuda.read_text() == ""


def test_a_missing_lock_is_a_sentence(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "vla_ft.environment.locks", "check", str(tmp_path / "cu999" / "requirements.lock")],
        cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert "invoke lock --env cu999" in done.stderr and "Traceback" not in done.stderr


def test_an_installation_is_held_against_the_lock():
    pins = parse_lock(LOCK)
    have = {pin.name: pin.version for pin in pins}
    assert differences(pins, have) == []
    have["torch"] = "2.7.1"
    del have["numpy"]
    assert differences(pins, have) == [
        "numpy is not installed; the lock pins 2.4.6",
        "torch is 2.7.1; the lock pins 2.7.1+cu118",
    ]


def test_changes_between_locks():
    old = parse_lock(LOCK)
    new = LOCK.replace("2.4.6", "2.5.0").replace("triton==3.3.1", "zipp==1.0")
    new = new.replace(f"+cu118 \\\n    --hash=sha256:{B}", f"+cu118 \\\n    --hash=sha256:{A}")
    assert changes(old, old) == []
    assert changes(old, parse_lock(new)) == [
        "~ numpy 2.4.6 -> 2.5.0",
        "# torch 2.7.1+cu118: other files (1 hashes, 1 before)",
        "- triton 3.3.1",
        "+ zipp 1.0",
    ]

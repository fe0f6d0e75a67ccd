"""The self-test on this interpreter, and that each check fails for what it is there to catch."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from vla_ft.environment import locks, selftest
from vla_ft.environment.table import Environment, load_table
from vla_ft.policies import registry

torch = pytest.importorskip("torch")


@pytest.fixture
def cpu() -> Environment:
    return load_table().environment("cpu")


def test_python(cpu: Environment) -> None:
    version = "{}.{}".format(*sys.version_info[:2])
    assert selftest.check_python(replace(cpu, python=version)).passed
    assert not selftest.check_python(replace(cpu, python="2.7")).passed


def lock_of_this_interpreter(folder: Path, **versions: str) -> None:
    have = {name: version for name, version in locks.installed().items() if name not in selftest.NOT_LOCKED}
    have.update(versions)
    lines = (f"{name}=={version} --hash=sha256:{'0' * 64}\n" for name, version in have.items())
    (folder / "requirements.lock").write_text("".join(lines))


def test_packages(cpu: Environment, tmp_path: Path) -> None:
    here = replace(cpu, folder=tmp_path)
    lock_of_this_interpreter(tmp_path)
    assert selftest.check_packages(here).passed
    lock_of_this_interpreter(tmp_path, numpy="0.1", absent="1")
    wrong = selftest.check_packages(here)
    assert not wrong.passed
    assert "absent is not installed" in wrong.detail and "the lock pins 0.1" in wrong.detail


def test_package_beside_the_lock(cpu: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock_of_this_interpreter(tmp_path)
    have = {**locks.installed(), "stowaway": "1"}
    monkeypatch.setattr(locks, "installed", lambda: have)
    wrong = selftest.check_packages(replace(cpu, folder=tmp_path))
    assert not wrong.passed and wrong.detail == "stowaway is installed and not locked"


def test_torch_of_another_environment(cpu: Environment) -> None:
    assert not selftest.check_torch(replace(cpu, torch="9.9.9")).passed
    assert not selftest.check_torch(replace(cpu, torch=torch.__version__, cuda="1.2")).passed


def test_missing_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    cu128 = load_table().environment("cu128")
    monkeypatch.setattr(torch._C, "_cuda_getArchFlags", lambda: "sm_80 sm_86 sm_90", raising=False)
    wrong = selftest.check_architectures(cu128)
    assert not wrong.passed and "sm_120" in wrong.detail
    monkeypatch.setattr(torch._C, "_cuda_getArchFlags", lambda: " ".join(cu128.sm), raising=False)
    assert selftest.check_architectures(cu128).passed


def test_compiler_is_needed(cpu: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest.shutil, "which", lambda name: None)
    assert not selftest.check_compiler(cpu).passed


@pytest.mark.parametrize("backend", ["sdpa", "eager", "flex_attention"])
def test_attention(backend: str) -> None:
    assert selftest.check_attention(backend).passed


def test_wrong_attention_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", lambda q, k, v: q * 1.001)
    assert not selftest.check_attention("sdpa").passed


def test_claimed_backend_that_is_not_there(cpu: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    report = selftest.run(cpu, ["flash_attention_2"])
    (check,) = (check for check in report["checks"] if check["name"] == "attention flash_attention_2")
    assert not check["passed"] and not report["passed"]


def test_flash_attention_of_another_abi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_func=None, __version__="0"))
    assert not selftest.check_attention("flash_attention_2").passed


def test_policy_that_does_not_import(monkeypatch: pytest.MonkeyPatch) -> None:
    assert selftest.check_policies().passed
    monkeypatch.setitem(registry.POLICIES, "broken", "vla_ft.policies.nowhere")
    with pytest.raises(ModuleNotFoundError):
        selftest.check_policies()

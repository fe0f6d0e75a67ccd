"""The self-test on this interpreter, and that each check fails for what it is there to catch."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from vla_ft.environment import locks, selftest
from vla_ft.environment.selftest import attention, cards, compiler, libraries, report, software
from vla_ft.environment.selftest.check import Check
from vla_ft.environment.table import Environment, load_table
from vla_ft.policies import registry

torch = pytest.importorskip("torch")
HEADER = Path(sysconfig.get_path("include"), "Python.h")


@pytest.fixture
def cpu() -> Environment:
    return load_table().environment("cpu")


def test_python(cpu: Environment) -> None:
    version = "{}.{}".format(*sys.version_info[:2])
    assert software.check_python(replace(cpu, python=version)).passed
    assert not software.check_python(replace(cpu, python="2.7")).passed


def lock_of_this_interpreter(folder: Path, **versions: str) -> None:
    have = {name: version for name, version in locks.installed().items() if name not in software.NOT_LOCKED}
    have.update(versions)
    lines = (f"{name}=={version} --hash=sha256:{'0' * 64}\n" for name, version in have.items())
    (folder / "requirements.lock").write_text("".join(lines))


def test_packages(cpu: Environment, tmp_path: Path) -> None:
    here = replace(cpu, folder=tmp_path)
    lock_of_this_interpreter(tmp_path)
    assert software.check_packages(here).passed
    lock_of_this_interpreter(tmp_path, numpy="0.1", absent="1")
    wrong = software.check_packages(here)
    assert not wrong.passed
    assert "absent is not installed" in wrong.detail and "the lock pins 0.1" in wrong.detail


def test_package_beside_the_lock(cpu: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock_of_this_interpreter(tmp_path)
    have = {**locks.installed(), "stowaway": "1"}
    monkeypatch.setattr(locks, "installed", lambda: have)
    wrong = software.check_packages(replace(cpu, folder=tmp_path))
    assert not wrong.passed and wrong.detail == "stowaway is installed and not locked"


def test_torch_of_another_environment(cpu: Environment) -> None:
    assert not software.check_torch(replace(cpu, torch="9.9.9")).passed
    assert not software.check_torch(replace(cpu, torch=torch.__version__, cuda="1.2")).passed


def test_missing_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    cu128 = load_table().environment("cu128")
    monkeypatch.setattr(torch._C, "_cuda_getArchFlags", lambda: "sm_80 sm_86 sm_90", raising=False)
    wrong = software.check_architectures(cu128)
    assert not wrong.passed and "sm_120" in wrong.detail
    monkeypatch.setattr(torch._C, "_cuda_getArchFlags", lambda: " ".join(cu128.sm), raising=False)
    assert software.check_architectures(cu128).passed


def test_compiler_is_needed(cpu: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler.shutil, "which", lambda name: None)
    assert not compiler.check_compiler(cpu).passed


@pytest.mark.skipif(not HEADER.exists() or not shutil.which("gcc"), reason=f"gcc or {HEADER} is not here")
def test_an_extension_compiles_and_loads(cpu: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    assert compiler.check_compiler(cpu).passed
    assert not list((tmp_path / "triton").iterdir())
    monkeypatch.setattr(compiler, "SOURCE", compiler.SOURCE.replace("PyInit_", "PyInit_other_"))
    assert "PyInit" in compiler.check_compiler(cpu).detail


@pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is not here")
def test_a_compiler_without_pythons_headers_is_noticed(
    cpu: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler.sysconfig, "get_path", lambda name: str(tmp_path))
    wrong = compiler.check_compiler(cpu)
    assert not wrong.passed and "Python.h" in wrong.detail and "libpython3-dev" in wrong.detail


def test_every_library_of_the_stack(cpu: Environment) -> None:
    found = {check.name: check for check in libraries.check_stack(cpu)}
    assert set(found) == {f"library {name}" for name in libraries.PROBES}
    assert not [check.detail for check in found.values() if not check.passed]


def test_a_library_that_does_not_import_is_named_and_the_others_are_tried(
    cpu: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    found = {check.name: check for check in libraries.check_stack(cpu)}
    assert [name for name, check in found.items() if not check.passed] == ["library peft"]
    assert found["library peft"].detail.startswith("peft cannot be used here: ModuleNotFoundError: ")


def test_bitsandbytes_without_the_environments_cuda(cpu: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    only = {"bitsandbytes": libraries.PROBES["bitsandbytes"]}
    monkeypatch.setattr(libraries, "PROBES", only)
    (right,) = libraries.check_stack(load_table().environment("cu118"))
    assert right.passed and "libbitsandbytes_cuda118.so" in right.detail
    (wrong,) = libraries.check_stack(replace(cpu, cuda="9.9"))
    assert not wrong.passed and "holds no libbitsandbytes_cuda99.so" in wrong.detail


def test_deepspeed_with_operators_of_another_machine(cpu: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed import git_version_info

    monkeypatch.setattr(libraries, "PROBES", {"deepspeed": libraries.PROBES["deepspeed"]})
    monkeypatch.setitem(git_version_info.installed_ops, "cpu_adam", True)
    (wrong,) = libraries.check_stack(cpu)
    assert not wrong.passed and wrong.detail.endswith("cpu_adam")


def test_ffmpeg_without_a_codec(cpu: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "PROBES", {"av": libraries.PROBES["av"]})
    monkeypatch.setattr(libraries, "DECODERS", ("h264", "vp99"))
    (wrong,) = libraries.check_stack(cpu)
    assert not wrong.passed and "UnknownCodecError" in wrong.detail


@pytest.mark.parametrize("backend", ["sdpa", "eager", "flex_attention"])
def test_attention(backend: str) -> None:
    assert attention.check_attention(backend).passed


def test_wrong_flex_attention_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.nn.attention import flex_attention

    monkeypatch.setattr(flex_attention, "flex_attention", lambda q, k, v: q * 1.001)
    assert not attention.check_attention("flex_attention").passed


def test_wrong_attention_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", lambda q, k, v: q * 1.001)
    assert not attention.check_attention("sdpa").passed


def test_claimed_backend_that_is_not_there(cpu: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    report = selftest.run(cpu, ["flash_attention_2"])
    (check,) = (check for check in report["checks"] if check["name"] == "attention flash_attention_2")
    assert not check["passed"] and not report["passed"]


def test_flash_attention_of_another_abi(monkeypatch: pytest.MonkeyPatch) -> None:
    module, padding = SimpleNamespace(flash_attn_func=print, __version__="0"), SimpleNamespace(unpad_input=print)
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    monkeypatch.setitem(sys.modules, "flash_attn.bert_padding", padding)
    assert attention.check_attention("flash_attention_2").passed
    module.flash_attn_func = None
    assert not attention.check_attention("flash_attention_2").passed


def test_flash_attention_without_what_its_padding_needs(cpu: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(flash_attn_func=print, __version__="0")
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    monkeypatch.setitem(sys.modules, "flash_attn.bert_padding", None)
    assert not selftest.run(cpu, ["flash_attention_2"])["passed"]


def test_what_is_claimed_by_default_is_what_is_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cu128, spec = load_table().environment("cu128"), importlib.util.find_spec
    found: dict[str, object] = {"flash_attn": None}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: found.get(name, False) or spec(name, *a))
    assert attention.installed_backends(cu128) == ["sdpa", "flex_attention", "eager"]
    claims: list[list[str]] = []
    monkeypatch.setattr(
        "vla_ft.environment.selftest.report.run", lambda e, b: claims.append(b) or {"checks": [], "passed": True}
    )
    monkeypatch.delenv("VLA_FT_ATTENTION", raising=False)
    assert selftest.main(["--environment", "cu128"]) == 0
    monkeypatch.setenv("VLA_FT_ATTENTION", "flash_attention_2,sdpa")
    assert selftest.main(["--environment", "cu128"]) == 0
    assert claims == [["sdpa", "flex_attention", "eager"], ["flash_attention_2", "sdpa"]]
    found["flash_attn"] = object()
    assert attention.installed_backends(cu128) == list(cu128.attention)


def test_policy_that_does_not_import(monkeypatch: pytest.MonkeyPatch) -> None:
    assert software.check_policies().passed
    monkeypatch.setitem(registry.POLICIES, "broken", "vla_ft.policies.nowhere")
    with pytest.raises(ModuleNotFoundError):
        software.check_policies()


def test_a_local_environment_proves_itself_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLA_FT_ENVIRONMENT", raising=False)
    monkeypatch.setattr(report.sys, "prefix", "/clone/.venvs/cu128")
    assert report.environment_here() == "cu128"
    monkeypatch.setattr(report.sys, "prefix", "/usr")
    assert report.environment_here() == "cpu"
    monkeypatch.setenv("VLA_FT_ENVIRONMENT", "cu126")
    assert report.environment_here() == "cu126"


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch):
    """Makes torch report a card; what is computed on it is computed on the CPU."""

    def make(name: str, capability: tuple[int, int]) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: name)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
        monkeypatch.setattr(torch.cuda, "device", lambda index: contextlib.nullcontext())
        monkeypatch.setattr(cards, "device", lambda index: torch.device("cpu"))

    return make


def on_card(name: str, backends: list[str]) -> dict[str, Check]:
    return {check.name: check for check in cards.check_card(0, load_table().environment(name), backends)}


def test_a_card_computes_with_every_backend(card) -> None:
    card("NVIDIA H200", (9, 0))
    found = on_card("cu128", ["sdpa", "flex_attention", "eager"])
    assert list(found) == ["gpu 0", "gpu 0 matmul", "gpu 0 sdpa", "gpu 0 flex_attention", "gpu 0 eager"]
    assert all(check.passed for check in found.values())


def test_a_card_that_computes_wrongly_fails(card, monkeypatch: pytest.MonkeyPatch) -> None:
    card("NVIDIA H200", (9, 0))
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", lambda q, k, v: q)
    found = on_card("cu128", ["sdpa", "eager"])
    assert [name for name, check in found.items() if not check.passed] == ["gpu 0 sdpa"]


@pytest.mark.parametrize(("environment", "name", "capability"), [
    ("cu118", "NVIDIA GeForce RTX 5090", (12, 0)), ("cu128", "NVIDIA GeForce GTX 1050", (6, 1)),
])  # fmt: skip
def test_a_card_of_another_environment_is_left_alone(card, environment, name, capability) -> None:
    card(name, capability)
    (only,) = on_card(environment, ["sdpa", "eager"]).values()
    assert only.passed and name in only.detail and "not for this environment" in only.detail


def test_cards_before_ampere_skip_what_starts_there(card) -> None:
    card("Tesla T4", (7, 5))
    found = on_card("cu126", ["flash_attention_2", "sdpa", "flex_attention", "eager"])
    assert list(found) == ["gpu 0", "gpu 0 matmul", "gpu 0 sdpa", "gpu 0 eager"]


def test_a_card_that_breaks_fails_the_report(card, cpu: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    card("NVIDIA H200", (9, 0))
    monkeypatch.setattr(cards, "device", lambda index: torch.device("cuda", 7))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    report = selftest.run(load_table().environment("cu128"), ["eager"])
    last = report["checks"][-1]
    assert (report["gpus"], last["name"], last["passed"]) == (1, "gpu 0", False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
def test_the_cards_of_this_machine() -> None:
    """A product and each installed backend on every card here, for an environment that holds it."""
    table = load_table()
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        environment = next(one for one in table.environments if one.cuda == torch.version.cuda)
        backends = attention.installed_backends(environment)
        found = list(cards.check_card(index, environment, backends))
        assert all(check.passed for check in found), found
        if environment.holds(capability) and capability >= (8, 0):
            assert len(found) == 2 + len(backends)

"""An image proves itself: ``python -m vla_ft.environment.selftest [--environment NAME] [--attention A,B] [--json]``.

Runs inside an environment. Without a card it shows that the image holds what its label says and code for its cards;
with one it also computes on it. Exit code 1 when a check fails.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from vla_ft.environment import locks
from vla_ft.environment.table import Environment, load_table

NOT_LOCKED = {"pip", "vla-ft", "flash-attn"}
"""What may be installed beside the lock: pip, this project, and flash-attn, which the table pins."""


@dataclass(frozen=True)
class Check:
    """One statement about the environment."""

    name: str
    passed: bool
    detail: str


def check_python(environment: Environment) -> Check:
    """The interpreter is the one that the lock was made for."""
    found = "{}.{}.{}".format(*sys.version_info[:3])
    return Check("python", found.rpartition(".")[0] == environment.python, f"{found}, expected {environment.python}")


def check_packages(environment: Environment) -> Check:
    """Every locked version is installed, and nothing else is."""
    pins = locks.read_lock(environment.lock)
    have = locks.installed()
    wrong = locks.differences(pins, have)
    wrong += [
        f"{name} is installed and not locked" for name in sorted(set(have) - {pin.name for pin in pins} - NOT_LOCKED)
    ]
    return Check(
        "packages", not wrong, "; ".join(wrong) or f"{len(pins)} locked versions, lock {environment.lock_hash}"
    )


def check_torch(environment: Environment) -> Check:
    """torch is the build that the table names, and so is its CUDA."""
    import torch

    # The default index's build calls itself 2.8.0+cu128 where its file is named 2.8.0.
    expected = {environment.torch, f"{environment.torch}+{environment.name}"}
    right = torch.__version__ in expected and torch.version.cuda == environment.cuda
    return Check(
        "torch", right, f"torch {torch.__version__}, CUDA {torch.version.cuda}, expected CUDA {environment.cuda}"
    )


def check_architectures(environment: Environment) -> Check:
    """torch holds code for the cards of the environment. The public call would return nothing without a card."""
    import torch

    flags = (torch._C._cuda_getArchFlags() or "").split() if environment.cuda else []
    if not environment.cuda:
        return Check("architectures", not torch.backends.cuda.is_built(), "no CUDA code in torch, as expected")
    missing = sorted(set(environment.sm) - set(flags))
    return Check(
        "architectures",
        not missing,
        f"torch lacks {', '.join(missing)}; it holds {' '.join(flags)}" if missing else " ".join(flags),
    )


def check_libraries(environment: Environment) -> Check:
    """cuDNN and NCCL load; both answer without a card."""
    import torch

    cudnn, nccl = torch.backends.cudnn.version(), ".".join(map(str, torch.cuda.nccl.version()))
    return Check("libraries", bool(cudnn), f"cuDNN {cudnn}, NCCL {nccl}")


def check_compiler(environment: Environment) -> Check:
    """A C compiler is there for Triton's launcher; with CUDA, a kernel compiles for every card of the environment."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return Check("compiler", False, "neither cc nor gcc is on PATH; Triton needs one at run time")
    if not environment.cuda:
        return Check("compiler", True, compiler)
    wanted = sorted(
        {card.compute_capability for card in load_table().cards if environment.holds(card.compute_capability)}
    )
    # Triton starts at sm_80; older cards run eager.
    wanted = [one for one in wanted if one >= (8, 0)]
    compiled = [f"sm_{major}{minor}" for major, minor in wanted if _compile_kernel(major * 10 + minor)]
    return Check("compiler", len(compiled) == len(wanted), f"{compiler}; Triton kernel for {' '.join(compiled)}")


def _compile_kernel(capability: int) -> bool:
    """Compile an addition for a compute capability (86 for 8.6) down to a cubin, with Triton's own ptxas."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from vla_ft.environment.selftest_kernel import add

    signature = {"x": "*fp32", "y": "*fp32", "n": "i32", "block": "constexpr"}
    source = ASTSource(fn=add, signature=signature, constexprs={(3,): 128})
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    return bool(compiled.asm["cubin"])


def check_attention(backend: str) -> Check:
    """A backend that the label names can be imported, and computes on the CPU where it can."""
    import torch

    name = f"attention {backend}"
    if backend == "flash_attention_2":
        module = importlib.import_module("flash_attn")
        return Check(name, callable(module.flash_attn_func), f"flash_attn {module.__version__}")
    if backend == "flex_attention":
        importlib.import_module("torch.nn.attention.flex_attention")
        return Check(name, True, "imports")
    q = torch.randn(1, 2, 8, 16, generator=torch.Generator().manual_seed(0))
    error = (_attend(backend, q) - _attend("eager", q.double())).abs().max().item()
    return Check(name, error < 1e-5, f"computes; differs from the formula by {error:.1e}")


def check_policies() -> Check:
    """Every policy of the registry imports."""
    from vla_ft.policies.registry import POLICIES, load_policy

    for name in POLICIES:
        load_policy(name)
    return Check("policies", True, ", ".join(sorted(POLICIES)))


def check_gpu(index: int, environment: Environment, backends: list[str]) -> Iterator[Check]:
    """On a card: torch holds its code, a matrix product is right, and each backend computes."""
    import torch

    name = torch.cuda.get_device_name(index)
    capability = torch.cuda.get_device_capability(index)
    yield Check(f"gpu {index}", environment.holds(capability), f"{name}, sm_{capability[0]}{capability[1]}")
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(256, 256, generator=generator), torch.randn(256, 256, generator=generator)
    error = ((a.to(f"cuda:{index}") @ b.to(f"cuda:{index}")).cpu() - a @ b).abs().max().item()
    # TF32 is off by default, so this is single precision: 256 products of unit normals differ by far less than 1e-2.
    yield Check(f"gpu {index} matmul", error < 1e-2, f"differs from the CPU by {error:.1e}")
    q = torch.randn(2, 4, 128, 64, generator=generator).to(f"cuda:{index}", torch.float16)
    exact = _attend("eager", q.cpu().double())
    for backend in backends:
        if backend == "flash_attention_2" and capability < (8, 0):
            continue
        error = (_attend(backend, q).cpu().double() - exact).abs().max().item()
        yield Check(f"gpu {index} {backend}", error < 1e-2, f"differs from the formula by {error:.1e}")


def _attend(backend: str, q: Any) -> Any:
    """Self-attention of ``q`` [B, heads, T, D] through one backend; ``eager`` is the formula written out."""
    import torch

    if backend == "eager":
        return torch.softmax(q @ q.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1) @ q
    if backend == "sdpa":
        return torch.nn.functional.scaled_dot_product_attention(q, q, q)
    if backend == "flex_attention":
        from torch.nn.attention.flex_attention import flex_attention

        return torch.compile(flex_attention)(q, q, q)
    from flash_attn import flash_attn_func

    transposed = q.transpose(1, 2)
    return flash_attn_func(transposed, transposed, transposed).transpose(1, 2)


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    """A check that raises has failed: the last line of its error is the detail, the rest goes to standard error."""
    try:
        return check()
    except Exception as error:
        traceback.print_exc()
        return Check(name, False, f"{type(error).__name__}: {error}")


def run(environment: Environment, backends: list[str]) -> dict[str, Any]:
    """All checks, as a report: environment, passed, gpus and one entry a check."""
    checks = [
        _guarded("python", lambda: check_python(environment)),
        _guarded("packages", lambda: check_packages(environment)),
        _guarded("torch", lambda: check_torch(environment)),
        _guarded("architectures", lambda: check_architectures(environment)),
        _guarded("compiler", lambda: check_compiler(environment)),
    ]
    if environment.cuda:
        checks.append(_guarded("libraries", lambda: check_libraries(environment)))
    for backend in backends:
        checks.append(_guarded(f"attention {backend}", lambda backend=backend: check_attention(backend)))  # type: ignore[misc]
    checks.append(_guarded("policies", check_policies))
    gpus = 0
    if importlib.util.find_spec("torch"):
        import torch

        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(gpus):
        try:
            checks += check_gpu(index, environment, backends)
        except Exception as error:
            traceback.print_exc()
            checks.append(Check(f"gpu {index}", False, f"{type(error).__name__}: {error}"))
    return {
        "environment": environment.name,
        "passed": all(check.passed for check in checks),
        "gpus": gpus,
        "checks": [asdict(check) for check in checks],
    }


def main(arguments: list[str] | None = None) -> int:
    """The command line; prints the report as the last line with ``--json``, else one line a check."""
    parser = argparse.ArgumentParser(prog="python -m vla_ft.environment.selftest", description=__doc__)
    parser.add_argument("--environment", default=os.environ.get("VLA_FT_ENVIRONMENT", "cpu"))
    parser.add_argument("--attention", default=os.environ.get("VLA_FT_ATTENTION"), help="backends, comma separated")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    environment = load_table().environment(options.environment)
    claimed = environment.attention if options.attention is None else options.attention.split(",")
    report = run(environment, [name for name in claimed if name])
    if options.json:
        print(json.dumps(report))
    else:
        for check in report["checks"]:
            print(f"{'pass' if check['passed'] else 'FAIL'}  {check['name']}: {check['detail']}")
    return 0 if report["passed"] else 1


if __name__ == "__main__":
    raise SystemExit(main())

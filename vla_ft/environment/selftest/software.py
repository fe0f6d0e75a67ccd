"""The self-test's checks of what is installed: interpreter, packages, torch with its CUDA, policies."""

from __future__ import annotations

import sys

from vla_ft.environment import locks
from vla_ft.environment.selftest.check import Check
from vla_ft.environment.table import Environment

NOT_LOCKED = {"pip", "vla-ft", "flash-attn"}
"""What may be installed beside the lock: pip, this project, and flash-attn, which the table pins."""


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


def check_libraries() -> Check:
    """cuDNN and NCCL load; both answer without a card."""
    import torch

    cudnn, nccl = torch.backends.cudnn.version(), ".".join(map(str, torch.cuda.nccl.version()))
    return Check("libraries", bool(cudnn), f"cuDNN {cudnn}, NCCL {nccl}")


def check_policies() -> Check:
    """Every policy of the registry imports."""
    from vla_ft.policies.registry import POLICIES, load_policy

    for name in POLICIES:
        load_policy(name)
    return Check("policies", True, ", ".join(sorted(POLICIES)))

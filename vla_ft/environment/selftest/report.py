"""All checks of the self-test as one report, and its command line."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vla_ft.environment.selftest.attention import check_attention, installed_backends
from vla_ft.environment.selftest.cards import check_card
from vla_ft.environment.selftest.check import Check
from vla_ft.environment.selftest.compiler import check_compiler
from vla_ft.environment.selftest.libraries import check_stack
from vla_ft.environment.selftest.software import (
    check_architectures,
    check_libraries,
    check_packages,
    check_policies,
    check_python,
    check_torch,
)
from vla_ft.environment.table import Environment, load_table


def run(environment: Environment, backends: Sequence[str]) -> dict[str, Any]:
    """All checks, as a report: environment, passed, gpus and one entry a check."""
    checks: list[Check] = []
    for name, check in (
        ("python", check_python),
        ("packages", check_packages),
        ("torch", check_torch),
        ("architectures", check_architectures),
        ("compiler", check_compiler),
    ):
        checks += _guarded(name, check, environment)
    if environment.cuda:
        checks += _guarded("libraries", check_libraries)
    checks += _guarded("stack", check_stack, environment)
    for backend in backends:
        checks += _guarded(f"attention {backend}", check_attention, backend)
    checks += _guarded("policies", check_policies)
    gpus = _cards()
    for index in range(gpus):
        checks += _guarded(f"gpu {index}", check_card, index, environment, backends)
    return {
        "environment": environment.name,
        "passed": all(check.passed for check in checks),
        "gpus": gpus,
        "checks": [asdict(check) for check in checks],
    }


def _cards() -> int:
    if importlib.util.find_spec("torch") is None:
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _guarded(name: str, check: Callable[..., Check | Iterator[Check]], *arguments: object) -> list[Check]:
    """What a check answers, up to an error, which is a failure too: its last line is the detail, the rest goes to
    standard error.
    """
    done: list[Check] = []
    try:
        answer = check(*arguments)
        for one in [answer] if isinstance(answer, Check) else answer:
            done.append(one)
    except Exception as error:
        traceback.print_exc()
        done.append(Check(name, False, f"{type(error).__name__}: {error}"))
    return done


def environment_here() -> str:
    """Name of the environment that this interpreter is in: what the image says, else the local environment's folder."""
    known = [one.name for one in load_table().environments]
    folder = Path(sys.prefix).name
    return os.environ.get("VLA_FT_ENVIRONMENT") or (folder if folder in known else "cpu")


def main(arguments: list[str] | None = None) -> int:
    """The command line; prints the report as the last line with ``--json``, else one line a check."""
    parser = argparse.ArgumentParser(prog="python -m vla_ft.environment.selftest")
    parser.add_argument(
        "--environment", default=environment_here(), help="default: the one that this interpreter is in"
    )
    parser.add_argument(
        "--attention",
        default=os.environ.get("VLA_FT_ATTENTION"),
        help="backends that are claimed, comma separated; default: those that are installed",
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    environment = load_table().environment(options.environment)
    claimed = installed_backends(environment) if options.attention is None else options.attention.split(",")
    report = run(environment, [name for name in claimed if name])
    if options.json:
        print(json.dumps(report))
    else:
        for check in report["checks"]:
            print(f"{'pass' if check['passed'] else 'FAIL'}  {check['name']}: {check['detail']}")
    return 0 if report["passed"] else 1

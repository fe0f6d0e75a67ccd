"""The layers of the package: imports go one way, and the host tools take no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vla_ft"
# What each part may import besides itself and the top-level modules errors, checkpoints, devices and tensor_stream.
MAY_IMPORT = {
    "environment": set(),
    "host": {"environment"},
    "data": set(),
    "nn": set(),
    "weights": set(),
    "policies": {"data", "nn", "weights"},
    "config": {"data", "policies", "weights"},
    "training": {"config", "data", "policies", "nn", "environment", "weights"},
    "planning": {"config", "data", "policies", "training", "environment"},
    "deployment": {"config", "data", "policies", "weights"},
    "reporting": set(),
    "simulation": {"data"},
    "inspection": {"config", "data", "policies", "weights"},
    "language": {"config", "data", "policies", "weights"},
}


def imported_parts(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("vla_ft."):
            names.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            names |= {a.name.split(".")[1] for a in node.names if a.name.startswith("vla_ft.")}
    return names - {"errors", "checkpoints", "devices", "tensor_stream"}


@pytest.mark.parametrize("part", sorted(MAY_IMPORT))
def test_imports_go_one_way(part):
    files = [PACKAGE / f"{part}.py"] if (PACKAGE / f"{part}.py").is_file() else sorted((PACKAGE / part).rglob("*.py"))
    assert files, f"{part} is gone: mend MAY_IMPORT"
    allowed = {part} | MAY_IMPORT[part]
    # An image's self-test imports every policy: that is what it tests.
    checked = [f for f in files if "selftest" not in f.parts]
    wrong = {str(f.relative_to(PACKAGE)): extra for f in checked if (extra := imported_parts(f) - allowed)}
    assert not wrong


def test_no_policy_imports_another():
    folders = [p.name for p in (PACKAGE / "policies").iterdir() if (p / "__init__.py").is_file()]
    for name in folders:
        for file in (PACKAGE / "policies" / name).rglob("*.py"):
            others = {o for o in folders if o != name and f"vla_ft.policies.{o}" in file.read_text()}
            assert not others, f"{file} imports {others}"


@pytest.mark.newcomer
def test_the_package_the_command_line_and_the_host_tools_take_no_training_library():
    code = """
import sys, pkgutil, importlib, vla_ft, vla_ft.cli, vla_ft.environment, vla_ft.host
for package in (vla_ft.environment, vla_ft.host):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if "selftest" not in module.name:  # that one runs inside environments alone
            importlib.import_module(module.name)
heavy = {"torch", "numpy", "pydantic", "omegaconf", "h5py", "PIL", "matplotlib"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

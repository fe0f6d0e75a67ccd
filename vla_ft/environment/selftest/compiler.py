"""The self-test's check that Triton can work: it builds its launcher with a C compiler at run time."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

from vla_ft.environment.selftest.check import Check
from vla_ft.environment.table import Environment, load_table

MODULE = "vla_ft_selftest_module"
SOURCE = f"""
#include <Python.h>
static struct PyModuleDef definition = {{PyModuleDef_HEAD_INIT, "{MODULE}", NULL, -1, NULL}};
PyMODINIT_FUNC PyInit_{MODULE}(void) {{
    PyObject *module = PyModule_Create(&definition);
    if (module) PyModule_AddStringConstant(module, "version", PY_VERSION);
    return module;
}}
"""
TRITON_FLOOR = (8, 0)
"""Triton's oldest compute capability; what it compiles is not used on older cards."""


def check_compiler(environment: Environment) -> Check:
    """A C extension compiles and loads, as Triton's launcher must; with CUDA, a kernel does for every card."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return Check("compiler", False, "neither cc nor gcc is on PATH; Triton needs one at run time")
    problem = build_extension(compiler)
    if problem:
        return Check("compiler", False, f"{compiler} cannot build a Python extension, which Triton does: {problem}")
    if not environment.cuda:
        return Check("compiler", True, f"{compiler}; a Python extension compiles and loads")
    wanted = sorted(
        {card.compute_capability for card in load_table().cards if environment.holds(card.compute_capability)}
    )
    wanted = [one for one in wanted if one >= TRITON_FLOOR]
    compiled = [f"sm_{major}{minor}" for major, minor in wanted if _compile_kernel(major * 10 + minor)]
    return Check(
        "compiler",
        len(compiled) == len(wanted),
        f"{compiler}; a Python extension compiles and loads; Triton kernel for {' '.join(compiled)}",
    )


def build_extension(compiler: str) -> str | None:
    """Compile a C extension against this interpreter's headers and load it; None, or what went wrong.

    Built where Triton keeps what it compiles, because a folder may be mounted ``noexec`` (a container's /tmp is).
    """
    cache = os.environ.get("TRITON_CACHE_DIR")
    if cache:
        Path(cache).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="vla-ft-selftest-", dir=cache) as folder:
        source, library = Path(folder, f"{MODULE}.c"), Path(folder, f"{MODULE}.so")
        source.write_text(SOURCE, encoding="utf-8")
        words = [compiler, "-shared", "-fPIC", "-I", sysconfig.get_path("include"), str(source), "-o", str(library)]
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode != 0:
            lines = [line.strip() for line in done.stderr.splitlines() if "error" in line] or [done.stderr.strip()]
            hint = " (Debian: libpython3-dev)" if "Python.h" in lines[0] else ""
            return lines[0] + hint
        spec = importlib.util.spec_from_file_location(MODULE, library)
        assert spec is not None and spec.loader is not None
        try:
            module = importlib.util.module_from_spec(spec)
        except ImportError as error:
            return str(error)
    found, expected = str(module.version), sysconfig.get_config_var("py_version")
    return None if found.startswith(sysconfig.get_python_version()) else f"headers of {found}, interpreter {expected}"


def _compile_kernel(capability: int) -> bool:
    """Compile an addition for a compute capability (86 for 8.6) down to a cubin, with Triton's own ptxas."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from vla_ft.environment.selftest.kernel import add

    signature = {"x": "*fp32", "y": "*fp32", "n": "i32", "block": "constexpr"}
    source = ASTSource(fn=add, signature=signature, constexprs={(3,): 128})
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    return bool(compiled.asm["cubin"])

"""The cpu image, for real: what its self-test proved, who it runs as, what it says, what it keeps to itself."""

from __future__ import annotations

import json
import re
import secrets
import subprocess
from pathlib import Path

import pytest
from container_support import TINY, build, cpu_arguments, search, source_archive, steps, wheel, write_lock

from vla_ft.environment.selftest import libraries
from vla_ft.environment.table import load_table
from vla_ft.host import containers, images, labels
from vla_ft.host.wheelhouse import sha256

pytestmark = pytest.mark.docker


def test_image_proves_itself(cpu_image: images.Built) -> None:
    checks = {check["name"]: check for check in cpu_image.report["checks"]}
    assert cpu_image.report["passed"] and all(check["passed"] for check in checks.values())
    assert {"python", "packages", "torch", "architectures", "compiler", "attention sdpa", "policies"} <= checks.keys()
    assert {f"library {name}" for name in libraries.PROBES} <= checks.keys()
    kept = json.loads((images.EVIDENCE / "cpu" / "selftest.json").read_text())
    assert kept == cpu_image.report


def test_self_test_fails_on_a_wrong_claim(cpu_image: images.Built) -> None:
    """A label that claims flash-attn on this image would stop the build."""
    words = ["python", "-m", "vla_ft.environment.selftest", "--json", "--attention", "flash_attention_2,sdpa"]
    finished = containers.run_isolated(cpu_image.image, words)
    failed = [check["name"] for check in json.loads(finished.output.splitlines()[-1])["checks"] if not check["passed"]]
    assert (finished.exit_code, failed) == (1, ["attention flash_attention_2"])


def test_zero_trains_without_a_cpp_compiler(cpu_image: images.Built) -> None:
    """All stages give the same losses, and nothing is compiled: there is no g++ in the image to do it with.

    The container has no network, so not even its own name resolves: the processes meet on loopback.
    """
    script = (
        "command -v g++ c++ && exit 9\n"
        "export DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 GLOO_SOCKET_IFNAME=lo\n"
        "timeout 300 python -m torch.distributed.run --standalone --local-addr 127.0.0.1 --nproc-per-node 2 "
        "/opt/vla_ft/tests/container/zero_on_cpu.py || exit 1\n"
        "find /cache/extensions -type f 2>/dev/null | wc -l"
    )
    finished = containers.run_isolated(cpu_image.image, ["sh", "-c", script])
    assert finished.exit_code == 0, finished.errors
    *results, compiled = [line for line in finished.output.splitlines() if line[:1] == "{" or line.strip().isdigit()]
    found = [json.loads(line) for line in results]
    names = ["DeepSpeedZeroOptimizer", "DeepSpeedZeroOptimizer", "DeepSpeedZeroOptimizer_Stage3"]
    assert [one["optimizer"] for one in found] == names and compiled == "0"
    assert found[0]["losses"] == found[1]["losses"] == found[2]["losses"]
    assert found[0]["losses"][2] < found[0]["losses"][0]


def test_labels(cpu_image: images.Built) -> None:
    environment = load_table().environment("cpu")
    found = containers.image(cpu_image.image)
    assert found is not None
    assert found.labels[labels.ENVIRONMENT] == "cpu"
    assert found.labels[labels.LOCK] == environment.lock_hash
    assert found.labels[labels.TORCH] == environment.torch
    assert found.labels[labels.CUDA] == ""
    assert found.labels[labels.ATTENTION] == "sdpa,flex_attention,eager"
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", found.labels[labels.REVISION])


def test_user_is_not_root_and_the_project_is_not_writable(cpu_image: images.Built) -> None:
    found = containers.image(cpu_image.image)
    assert found is not None and found.attrs["Config"]["User"] == "1000:1000"
    script = (
        "import os, tempfile, getpass, vla_ft\n"
        "print(os.getuid(), getpass.getuser(), os.access(os.path.dirname(vla_ft.__file__), os.W_OK))\n"
        "tempfile.TemporaryFile(dir=os.environ['HOME']); tempfile.TemporaryFile(dir=os.environ['HF_HOME'][:6])\n"
    )
    finished = containers.run_isolated(cpu_image.image, ["python", "-c", script], user="60123:60123")
    assert (finished.exit_code, finished.output.split()) == (0, ["60123", "trainer", "False"]), finished.errors


def test_source_change_keeps_every_installed_layer(cpu_image: images.Built, context: Path, base: str | None) -> None:
    with (context / "vla_ft" / "errors.py").open("a") as file:
        file.write(f"# changed {secrets.token_hex(8)}\n")  # as no earlier run of this test did: its layer may be cached
    done = steps(build(context, "vla_ft:test-rebuild", base, cpu_arguments()))
    subprocess.run(["docker", "image", "rm", "vla_ft:test-rebuild"], check=True, capture_output=True)
    installs = {step: cached for step, cached in done.items() if "install-wheels" in step or "pip install" in step}
    assert len(installs) >= 4 and all(installs.values()), done
    assert [step for step, cached in done.items() if "COPY vla_ft vla_ft" in step and not cached], done


def test_stack_change_keeps_torch(context: Path, base: str | None) -> None:
    """Hand-made wheels stand for torch and the stack, so this needs no network."""
    torch, first, second = (wheel(context, name) for name in ("torch", "first", "second"))
    write_lock(context, torch, first)
    build(context, "vla_ft:test-layers-1", base, TINY, target="packages")
    write_lock(context, torch, second)
    done = steps(build(context, "vla_ft:test-layers-2", base, TINY, target="packages"))
    made = ["vla_ft:test-layers-1", "vla_ft:test-layers-2"]
    subprocess.run(["docker", "image", "rm", *made], check=True, capture_output=True)
    runs = {step: cached for step, cached in done.items() if "RUN" in step}
    (torch_cached,) = (cached for step, cached in runs.items() if "locks/torch.txt" in step)
    (stack_cached,) = (cached for step, cached in runs.items() if "locks/stack.txt" in step)
    assert torch_cached and not stack_cached


def test_source_archive_is_built_after_torch_and_the_stack(context: Path, base: str | None) -> None:
    """A hand-made archive: its build notes what it can import and what it was told. No network is asked."""
    torch, stack = wheel(context, "torch"), wheel(context, "stacked")
    archive = source_archive(context, "deepspeed", needs=("torch_made_for_a_test", "stacked_made_for_a_test"))
    write_lock(context, torch, stack, archive)
    name = "vla_ft:test-source"
    build(context, name, base, TINY, target="packages")
    words = ["python", "-c", "import deepspeed_made_for_a_test as made; print(made.told)"]
    finished = containers.run_isolated(name, words)
    subprocess.run(["docker", "image", "rm", name], check=True, capture_output=True)
    assert finished.output.split() == ["cpu", "0"], finished.output + finished.errors


def test_local_flash_attention_wheel(context: Path, base: str | None) -> None:
    """The release's wheels are named with a local version that their metadata lacks; by name, pip refuses them."""
    torch, stack = wheel(context, "torch"), wheel(context, "stacked")
    write_lock(context, torch, stack)
    flash = wheel(context, "flash_attn", layer="flash-attn", local="+cu12torch9.9cxx11abiTRUE")
    line = f"flash-attn @ file:///wheelhouse/{flash.name} --hash=sha256:{sha256(flash)}"
    name = "vla_ft:test-flash"
    build(context, name, base, {**TINY, "FLASH_ATTN": line}, target="packages")
    finished = containers.run_isolated(name, ["pip", "list", "--format", "freeze"])
    subprocess.run(["docker", "image", "rm", name], check=True, capture_output=True)
    version = flash.name.split("-")[1].split("+")[0]
    assert f"flash-attn=={version}" in finished.output.replace("_", "-"), finished.output + finished.errors


def test_secrets_reach_no_layer(context: Path, base: str | None, tmp_path: Path) -> None:
    """Every wheel here is new, so the steps that read the secrets run, and then the whole saved image is searched."""
    marker = f"vla-ft-secret-{secrets.token_hex(12)}"
    authority, configuration = tmp_path / "ca.pem", tmp_path / "pip.conf"
    authority.write_text(f"# {marker}\n")
    configuration.write_text(f"[global]\nextra-index-url = https://user:{marker}@index.invalid/simple\n")
    torch, stack = wheel(context, "torch"), wheel(context, "stacked")
    write_lock(context, torch, stack)
    name = "vla_ft:test-secrets"
    output = build(context, name, base, TINY, target="packages", secrets={"ca": authority, "pip_conf": configuration})
    assert not [step for step, cached in steps(output).items() if "install-wheels /opt" in step and cached]
    saved = tmp_path / "image.tar"
    subprocess.run(["docker", "image", "save", "--output", str(saved), name], check=True)
    subprocess.run(["docker", "image", "rm", name], check=True, capture_output=True)
    found = search(saved, (marker.encode(), torch.name.split("-")[1].encode()))
    assert found == {marker.encode(): False, torch.name.split("-")[1].encode(): True}

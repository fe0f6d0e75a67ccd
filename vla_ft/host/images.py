"""Images: the arguments of a build from the table, the build itself, and the self-test that it has to pass.

Docker's SDK cannot speak BuildKit, so the build is a printed ``docker buildx build`` command.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vla_ft
from vla_ft.environment.facts import NVML_OK, gather_gpus
from vla_ft.environment.table import REPOSITORY, Environment, Table, load_table
from vla_ft.errors import UserError
from vla_ft.host import attention, containers, labels, wheelhouse
from vla_ft.host.wheel_folders import wheel_folders

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""The user's choice among this machine's cards; compose.yaml hands it on as well."""
MAXIMUM_SECRET = 500 * 1024
"""Bytes; BuildKit refuses a larger secret."""
EVIDENCE = REPOSITORY / "build"
"""Logs and self-test reports of builds, ignored by git."""

Echo = Callable[[str], None]


class BuildFailed(Exception):
    """The build or the self-test of an image failed: not the user's doing. The image's name has not been moved."""


@dataclass(frozen=True)
class Options:
    """What a user may say about a build beside the environment."""

    base: str | None = None
    """Base image; None: the Dockerfile's, by digest."""
    wheelhouse: tuple[str, ...] = ()
    """Folders of wheels that take precedence over the indexes; those of pip's find-links come after."""
    ca_bundle: str | None = None
    """Certificate authorities for the downloads; None: the file that SSL_CERT_FILE names, if any."""
    flash_attn: str = "auto"
    pip_conf: str | None = None
    """A pip configuration (mirrors, tokens), handed in as a secret."""
    apt_sources: str | None = None
    """A sources list to be used instead of the base's own, handed in as a secret."""


@dataclass(frozen=True)
class Built:
    """A finished and proved image."""

    image: str
    environment: Environment
    attention: tuple[str, ...]
    megabytes: float
    """Size as Docker reports it, 10^6 bytes."""
    build_seconds: float
    selftest_seconds: float
    report: dict[str, Any]
    """What the self-test printed: environment, passed, gpus, checks (name, passed, detail)."""


def ca_bundle(given: str | None) -> Path | None:
    """The certificate bundle of a build. Raises UserError when it is missing or larger than BuildKit admits."""
    name = given or os.environ.get("SSL_CERT_FILE")
    if not name:
        return None
    path = Path(name)
    if not path.is_file():
        raise UserError(f"The certificate bundle {name} does not exist. Give another with --ca-bundle.")
    if path.stat().st_size > MAXIMUM_SECRET:
        raise UserError(
            f"{name} has {path.stat().st_size} bytes; a build secret may have {MAXIMUM_SECRET}. "
            "Give only your own authority with --ca-bundle."
        )
    return path


def revision(repository: Path = REPOSITORY) -> str:
    """Commit of the clone, ``-dirty`` with uncommitted changes, ``unknown`` outside a clone."""
    git = ["git", "-C", str(repository)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode != 0:
        return "unknown"
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=False).stdout
    return head.stdout.strip() + ("-dirty" if changed.strip() else "")


def source_hash(repository: Path = REPOSITORY) -> str:
    """First 12 hexadecimal digits of a sha256 over the package's files, names included."""
    digest = hashlib.sha256()
    files = (path for path in (repository / "vla_ft").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    for path in sorted(files):
        digest.update(f"{path.relative_to(repository)}\0{wheelhouse.sha256(path)}\n".encode())
    return digest.hexdigest()[:12]


def secrets(options: Options) -> dict[str, Path]:
    """Build secrets by the ids that the Dockerfile mounts."""
    found = {"ca": ca_bundle(options.ca_bundle)}
    for name, given in (("pip_conf", options.pip_conf), ("apt_sources", options.apt_sources)):
        if given and not Path(given).is_file():
            raise UserError(f"--{name.replace('_', '-')} {given} does not exist. Give a file.")
        found[name] = Path(given) if given else None
    return {name: path for name, path in found.items() if path}


def arguments(environment: Environment, table: Table, chosen: attention.Attention, commit: str) -> dict[str, str]:
    """Build arguments of an environment, from the table alone."""
    cards = [card.name for card in table.cards if environment.holds(card.compute_capability)]
    return {
        "ENVIRONMENT": environment.name,
        "TORCH_INDEX": environment.torch_index or "",
        "FLASH_ATTN": chosen.requirement,
        "ATTENTION": ",".join(chosen.backends),
        "NVIDIA_VISIBLE_DEVICES": "all" if environment.cuda else "void",
        "LOCK": environment.lock_hash,
        "TORCH": environment.torch,
        "CUDA": environment.cuda or "",
        "SM": ",".join(environment.sm),
        "CARDS": ",".join(cards),
        "SOURCE": source_hash(),
        "REVISION": commit,
        "VERSION": vla_ft.__version__,
    }


def command(tag: str, build_arguments: dict[str, str], build_secrets: dict[str, Path], base: str | None) -> list[str]:
    """The ``docker buildx build`` command, run from the repository."""
    words = ["docker", "buildx", "build", "--load", "--progress", "plain"]
    words += ["--file", "docker/Dockerfile", "--tag", tag]
    for name, path in sorted(build_secrets.items()):
        words += ["--secret", f"id={name},src={path}"]
    given = {**build_arguments, "BASE": base} if base else build_arguments
    for name, value in given.items():
        words += ["--build-arg", f"{name}={value}"]
    return [*words, "."]


def build(
    environment: Environment, options: Options | None = None, echo: Echo = print, *, name: str | None = None
) -> Built:
    """Build an environment's image, prove it, and only then give it its name (or another ``name``).

    Raises UserError for what the user can mend and BuildFailed when the build or the self-test fails.
    """
    options = options or Options()
    containers.require_plugin("buildx")
    build_secrets = secrets(options)
    folders = wheel_folders(options.wheelhouse)
    chosen = attention.decide(environment, options.flash_attn, folders, build_secrets.get("ca"))
    echo(chosen.reason)
    for entry in environment.unverified:
        echo(f"Not checked by this project: {entry.what} ({entry.source}).")
    name = name or labels.image_name(environment.name)
    candidate = labels.candidate_name(name)
    build_arguments = arguments(environment, load_table(), chosen, revision())
    words = command(candidate, build_arguments, build_secrets, options.base)
    folder = EVIDENCE / environment.name
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with wheelhouse.staged(environment, folders, chosen.wheel, echo=echo) as staged:
        for wheel in (wheel for wheels in staged.wheels.values() for wheel in wheels):
            echo(f"From a local folder: {wheel}")
        echo(f"$ {shlex.join(words)}")
        _run(words, folder / "build.log", options.base, echo)
    build_seconds = time.monotonic() - started

    started = time.monotonic()
    report = _proved(candidate, name, folder / "selftest.json", echo)
    selftest_seconds = time.monotonic() - started
    named = containers.rename(candidate, name)
    megabytes = named.attrs["Size"] / 1e6
    return Built(name, environment, chosen.backends, megabytes, build_seconds, selftest_seconds, report)


def _proved(candidate: str, name: str, path: Path, echo: Echo) -> dict[str, Any]:
    """The candidate's self-test report, kept at ``path`` and shown. Raises BuildFailed when a check failed.

    A failed candidate is kept under a name of its own, of which there is one; after any other end it is removed.
    """
    failed = labels.failed_name(name)
    try:
        report = selftest(candidate, echo)
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        for line in report_lines(report):
            echo(line)
        if not report["passed"]:
            raise BuildFailed(f"Its self-test failed; the report is {path}.")
    except BuildFailed as error:
        containers.rename(candidate, failed)
        raise BuildFailed(f"{name} stays what it was: the new image is {failed}. {error}") from error
    except BaseException:
        containers.remove_image(candidate)
        raise
    return report


def _run(words: Sequence[str], log: Path, base: str | None, echo: Echo) -> None:
    """Run a build, show and keep its output, and put its usual failures into words."""
    tail: deque[str] = deque(maxlen=60)
    with (
        log.open("w", encoding="utf-8") as file,
        subprocess.Popen(
            words, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            tail.append(line)
            echo(line.rstrip())
    if process.returncode == 0:
        return
    raise explain("".join(tail), base, log)


def explain(output: str, base: str | None, log: Path) -> Exception:
    """The error for a failed build's last lines: a sentence for what the user can mend, else where the log is."""
    if "> [internal] load metadata for" in output:
        return UserError(
            f"The base image {base or 'named in docker/Dockerfile'} is not here and cannot be pulled. Make one on the "
            "spot with `invoke base` and build with `--base local/debian:bookworm`, or name another with --base."
        )
    if "THESE PACKAGES DO NOT MATCH THE HASHES" in output:
        return BuildFailed(f"A downloaded file is not the one that the lock names. Nothing was installed. Log: {log}.")
    if "No space left on device" in output or "no space left on device" in output:
        return UserError(
            "The disk of the Docker engine is full. Free some with `docker builder prune`, then build again."
        )
    if "CERTIFICATE_VERIFY_FAILED" in output:
        return UserError(
            "A download failed because its certificate is not trusted. If your site signs its own, give the file of "
            "its authority with --ca-bundle."
        )
    return BuildFailed(f"The build failed; its last lines are above, all of them in {log}.")


def selftest(image: str, echo: Echo = print) -> dict[str, Any]:
    """Run the self-test inside an image, with this machine's cards where the engine can hand them over.

    What the image claims is read from its labels. Raises BuildFailed when there is no report.
    """
    import docker

    found = containers.image(image)
    if found is None:
        raise UserError(f"Image {image} is not here. Make it with `invoke build --gpu NAME`.")
    words = ["python", "-m", "vla_ft.environment.selftest", "--json"]
    for option, label in (("--environment", labels.ENVIRONMENT), ("--attention", labels.ATTENTION)):
        words += [option, containers.label(found.attrs, label)]
    wanted = bool(containers.label(found.attrs, labels.CUDA))
    # Asked for even where the engine names no NVIDIA runtime: NVIDIA's hook serves engines that know nothing of it.
    gpus = wanted and (containers.has_nvidia_runtime() or gather_gpus().state == NVML_OK)
    if wanted and not gpus:
        echo("No card is visible here: the self-test runs without one and shows what the image holds.")
    chosen = {name: os.environ[name] for name in (VISIBLE,) if name in os.environ}
    try:
        finished = containers.run_isolated(image, words, gpus=gpus, environment=chosen)
    except docker.errors.APIError as error:
        if not gpus:
            raise
        echo(
            f"The engine cannot hand over this machine's cards ({error.explanation}); the self-test runs without them."
        )
        finished = containers.run_isolated(image, words)
    except TimeoutError as error:
        raise BuildFailed(str(error)) from error
    try:
        report: dict[str, Any] = json.loads(finished.output.splitlines()[-1])
    except (IndexError, json.JSONDecodeError) as error:
        raise BuildFailed(
            f"The self-test ended with code {finished.exit_code} and no report:\n{finished.errors.strip()}"
        ) from error
    report["passed"] = report["passed"] and finished.exit_code == 0
    return report


def report_lines(report: dict[str, Any]) -> list[str]:
    """A self-test's report for people, one line a check."""
    return [
        f"{'pass' if check['passed'] else 'FAIL'}  {check['name']}: {check['detail']}" for check in report["checks"]
    ]

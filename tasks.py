"""Tasks: `invoke --list`, `invoke --help TASK`. Each one reads its options, calls ``vla_ft.host`` and prints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from invoke import Collection, Context, Exit, task

from vla_ft.environment.doctor import as_data, examine, healthy
from vla_ft.environment.facts import gather, to_json
from vla_ft.environment.table import load_table
from vla_ft.errors import UserError
from vla_ft.host import base_image, compose, containers, images, jobs
from vla_ft.host.engine import with_engine
from vla_ft.host.jobs import Job
from vla_ft.host.launching import decide, run_local
from vla_ft.host.locking import refresh
from vla_ft.host.matrix import matrix as ci_matrix
from vla_ft.host.report import print_cards, print_findings

GPU_HELP = "card (rtx5090), environment (cu128), or auto: what this machine has"
LOCAL_HELP = "the local environment, without Docker"
WHEELS_HELP = "folder with wheels that takes precedence over every index"
ARGS_HELP = "arguments, quoted; or put them after --"


@contextmanager
def mistakes() -> Iterator[None]:
    """A user's mistake ends a task with its sentence and exit code 2, without a traceback."""
    try:
        yield
    except UserError as error:
        raise Exit(str(error), code=2) from error


def say(line: str) -> None:
    """Print at once, also into a pipe: a build is watched while it runs."""
    print(line, flush=True)


def launch(job: Job, gpu: str, local: str, wheelhouse: str | None) -> None:
    """Say where a job runs, run it there, and end with its exit code; ``local`` is the reason to use no image."""
    with mistakes():
        place = decide(gpu, local, with_engine(gather()), load_table())
        print(place.sentence, flush=True)
        if place.image is not None and job.service is not None:
            code = compose.run_service(place.environment, job.service, job.service_arguments)
        else:
            code = run_local(job, place.environment, Path(wheelhouse) if wheelhouse else None)
    if code:
        raise Exit(code=code)


@task(help={"json": "machine-readable", "record": "also write the facts to this file, for a report of a fault"})
def doctor(ctx: Context, json: bool = False, record: str | None = None) -> None:
    """What is here, which environment fits, what is wrong and how to mend it. Exit code 1 if something is wrong."""
    with mistakes():
        facts = with_engine(gather())
        if record:
            _write(Path(record), to_json(facts))
        results = examine(facts, load_table())
    if json:
        _print_json(as_data(results))
    else:
        print_findings(results)
    if not healthy(results):
        raise Exit(code=1)


@task(
    iterable=["env"],
    help={"env": "environment; may be repeated; all without it", "upgrade": "move every pin to the newest that fits"},
)
def lock(ctx: Context, env: list[str], upgrade: bool = False) -> None:
    """Make locks again and print what changed (needs `pip install -e .[lock]`)."""
    with mistakes():
        for done in refresh(load_table(), env, upgrade):
            name = f"{done.lock.parent.name}/{done.lock.name}"
            print(f"{name}: {len(done.changes) or 'no'} changes")
            for line in done.changes:
                print(f"  {line}")


@task(help={"json": "one line of JSON instead of indented", "gpus": "cards of your runners, comma separated"})
def matrix(ctx: Context, json: bool = False, gpus: str = "") -> None:
    """The CI matrix from the table: `build` for hosted runners, `gpu` for self-hosted ones."""
    with mistakes():
        rows = ci_matrix(load_table(), [name for name in gpus.replace(" ", "").split(",") if name])
    _print_json(rows, indent=None if json else 2)


@task(help={"gpu": GPU_HELP, "local": LOCAL_HELP, "wheelhouse": WHEELS_HELP, "args": ARGS_HELP})
def smoke(ctx: Context, gpu: str = "auto", local: bool = False, wheelhouse: str | None = None, args: str = "") -> None:
    """A few real optimizer steps on mock data, in the image where one is built, else in the local environment."""
    with mistakes():
        job = jobs.smoke(jobs.words(args, ctx.remainder))
    launch(job, gpu, "--local" if local else "", wheelhouse)


@task(
    help={
        "gpu": GPU_HELP,
        "local": LOCAL_HELP,
        "wheelhouse": WHEELS_HELP,
        "args": ARGS_HELP,
        "detach": "return at once; `invoke logs` and `invoke stop` find the run again",
        "name": "name of a detached run; default: the time",
    }
)
def train(
    ctx: Context,
    gpu: str = "auto",
    local: bool = False,
    wheelhouse: str | None = None,
    args: str = "",
    detach: bool = False,
    name: str = "",
) -> None:
    """Train: `invoke train -- recipe=act data.path=DIR`. Without arguments, the default recipe on mock data."""
    with mistakes():
        job = jobs.train(jobs.words(args, ctx.remainder))
        if detach:
            started = compose.run_detached(load_table().environment_for(gpu), job.service_arguments, name, local)
            print(f"Run {started} has started. `invoke logs --name {started}` shows it, `invoke stop` ends it.")
            return
    launch(job, gpu, "--local" if local else "", wheelhouse)


@task(help={"gpu": GPU_HELP, "local": LOCAL_HELP, "wheelhouse": WHEELS_HELP, "args": ARGS_HELP})
def fetch(ctx: Context, gpu: str = "auto", local: bool = False, wheelhouse: str | None = None, args: str = "") -> None:
    """Published weights, checked: `invoke fetch -- resnet18`; without a name, the list of them."""
    with mistakes():
        job = jobs.fetch(jobs.words(args, ctx.remainder))
    launch(job, gpu, "--local" if local else "", wheelhouse)


@task(help={"gpu": GPU_HELP, "wheelhouse": WHEELS_HELP, "args": ARGS_HELP})
def data(ctx: Context, gpu: str = "auto", wheelhouse: str | None = None, args: str = "") -> None:
    """Datasets: `invoke data -- inspect DIR`, `check DIR`, `convert from=DIR to=DIR format=lerobot`."""
    with mistakes():
        job = jobs.data(jobs.words(args, ctx.remainder))
    launch(job, gpu, "containers see datasets read-only", wheelhouse)


@task(help={"gpu": GPU_HELP, "wheelhouse": WHEELS_HELP, "args": ARGS_HELP})
def recipe(ctx: Context, gpu: str = "auto", wheelhouse: str | None = None, args: str = "") -> None:
    """A complete recipe for a dataset: `invoke recipe -- from-data datasets/mine policy=act`."""
    with mistakes():
        job = jobs.recipe(jobs.words(args, ctx.remainder))
    launch(job, gpu, "recipe has no service of its own", wheelhouse)


@task(help={"gpu": GPU_HELP, "wheelhouse": WHEELS_HELP, "args": ARGS_HELP})
def export(ctx: Context, gpu: str = "auto", wheelhouse: str | None = None, args: str = "") -> None:
    """One file of weights from a checkpoint: `invoke export -- checkpoint=runs/act output=act.safetensors`."""
    with mistakes():
        job = jobs.export(jobs.words(args, ctx.remainder))
    launch(job, gpu, "export has no service of its own", wheelhouse)


@task(help={"gpu": GPU_HELP, "wheelhouse": WHEELS_HELP, "args": ARGS_HELP})
def test(ctx: Context, gpu: str = "auto", wheelhouse: str | None = None, args: str = "") -> None:
    """The test suite, in the local environment: `invoke test --args "-k locks"`."""
    with mistakes():
        job = jobs.tests(jobs.words(args, ctx.remainder))
    launch(job, gpu, "tests run on this clone's source", wheelhouse)


@task(help={"gpu": GPU_HELP, "local": LOCAL_HELP, "wheelhouse": WHEELS_HELP, "args": ARGS_HELP})
def plan(ctx: Context, gpu: str = "auto", local: bool = False, wheelhouse: str | None = None, args: str = "") -> None:
    """What fits before anything is loaded: `invoke plan -- recipe=act card=rtx3090 cards=4`. Needs no card."""
    with mistakes():
        job = jobs.plan(jobs.words(args, ctx.remainder))
    launch(job, gpu, "--local" if local else "", wheelhouse)


@task(help={"wheelhouse": WHEELS_HELP, "args": ARGS_HELP})
def record(ctx: Context, wheelhouse: str | None = None, args: str = "") -> None:
    """Record demonstrations in the simulator: `invoke record -- episodes=20 output=datasets/transfer_cube`."""
    with mistakes():
        job = jobs.record(jobs.words(args, ctx.remainder))
    launch(job, "cpu", "the simulator is in no image", wheelhouse)


@task(
    iterable=["wheelhouse"],
    help={
        "gpu": GPU_HELP,
        "list": "show every card and its environment, and build nothing",
        "base": "base image instead of the pinned one; `invoke base` makes local/debian:bookworm",
        "wheelhouse": WHEELS_HELP + "; may be repeated",
        "ca-bundle": "certificate authorities for the downloads; default: the file that SSL_CERT_FILE names",
        "flash-attn": "auto (where the prebuilt wheel can be had), require, or off",
        "pip-conf": "pip configuration (mirrors, tokens); stays out of the image",
        "apt-sources": "Debian sources list; stays out of the image",
    },
)
def build(
    ctx: Context,
    wheelhouse: list[str],
    gpu: str = "auto",
    list: bool = False,
    base: str | None = None,
    ca_bundle: str | None = None,
    flash_attn: str = "auto",
    pip_conf: str | None = None,
    apt_sources: str | None = None,
) -> None:
    """Build an environment's image, prove it by its self-test, and point compose at it."""
    with mistakes():
        table = load_table()
        if list:
            print_cards(table)
            return
        environment = table.environment_for(gpu)
        options = images.Options(base, tuple(wheelhouse), ca_bundle, flash_attn, pip_conf, apt_sources)
        try:
            built = images.build(environment, options, say)
        except images.BuildFailed as error:
            raise Exit(str(error), code=1) from error
        values = compose.use(environment)
        print(
            f"{built.image}: {built.megabytes:.0f} MB, attention {', '.join(built.attention)}; built in "
            f"{built.build_seconds:.1f} s, proved in {built.selftest_seconds:.1f} s. "
            f".env points compose at it, as user {values['VLA_FT_UID']}."
        )


@task(help={"gpu": GPU_HELP})
def use(ctx: Context, gpu: str = "auto") -> None:
    """Point `docker compose` at an environment's image: writes .env (your other lines stay) and makes its folders."""
    with mistakes():
        environment = load_table().environment_for(gpu)
        for name, value in compose.use(environment).items():
            print(f"{name}={value}")
        compose.require_image(environment)


@task(help={"tag": "name of the image", "mirror": "Debian mirror, instead of the machine's usual one"})
def base(ctx: Context, tag: str = base_image.TAG, mirror: str | None = None) -> None:
    """Make a base image on the spot, where none can be pulled: Debian with Python 3.11 (needs root and debootstrap)."""
    with mistakes():
        print(f"{tag}: {base_image.make(tag, mirror, say)}. Build on it with `invoke build --base {tag}`.")


@task(help={"gpu": GPU_HELP, "args": "command instead of a shell, quoted; or put it after --"})
def shell(ctx: Context, gpu: str = "auto", args: str = "") -> None:
    """A shell (or a command) in the environment's image, with data, runs and caches mounted as in training."""
    with mistakes():
        code = compose.run_service(load_table().environment_for(gpu), "shell", jobs.words(args, ctx.remainder))
    if code:
        raise Exit(code=code)


@task(help={"name": "the run; default: the newest", "follow": "until the run ends", "tail": "lines to begin with"})
def logs(ctx: Context, name: str | None = None, follow: bool = True, tail: int = 100) -> None:
    """What a detached run prints. Ctrl-C leaves the run alone."""
    with mistakes(), suppress(KeyboardInterrupt):
        for piece in containers.stream_logs(containers.find_run(name), follow, tail):
            print(piece, end="", flush=True)


@task(help={"name": "the run; default: the newest", "grace": "seconds for its last checkpoint", "keep": "keep its log"})
def stop(ctx: Context, name: str | None = None, grace: int = containers.GRACE_SECONDS, keep: bool = False) -> None:
    """Ask a detached run to save and end, and remove its container; the run folder stays."""
    with mistakes():
        run = containers.find_run(name)
        print(f"{run.name}: ended with code {containers.stop_run(run, grace)}")
        if not keep:
            containers.remove_run(run)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror}. Name a file in a folder that you own.") from error


def _print_json(data: object, indent: int | None = 2) -> None:
    print(json.dumps(data, indent=indent))


ns = Collection(
    base,
    build,
    data,
    doctor,
    export,
    fetch,
    lock,
    logs,
    matrix,
    plan,
    recipe,
    record,
    shell,
    smoke,
    stop,
    test,
    train,
    use,
)

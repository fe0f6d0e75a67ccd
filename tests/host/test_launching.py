"""Where a task runs, and with which command line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vla_ft.environment.facts import GIB, Device, Engine, Facts, Gpus, Image
from vla_ft.environment.table import REPOSITORY, load_table
from vla_ft.errors import UserError
from vla_ft.host import jobs, launching
from vla_ft.host.launching import decide, run_local

TABLE = load_table()
LAPTOP = Facts(engine=Engine("unreachable"))
WORKSTATION = Facts(
    gpus=Gpus("ok", "570.133.07", (Device("NVIDIA GeForce RTX 5090", (12, 0), 32 * GIB),)),
    engine=Engine("ok", images=(Image("vla_ft:cu128", "cu128", TABLE.environment("cu128").lock_hash),)),
)


def test_a_laptop_without_engine_and_card_gets_the_local_cpu_environment():
    place = decide("auto", "", LAPTOP, TABLE)
    assert (place.environment.name, place.image) == ("cpu", None)
    assert place.sentence == "cpu, local environment: no NVIDIA card is visible here; no Docker engine answers"


def test_an_image_of_the_present_lock_is_used():
    place = decide("auto", "", WORKSTATION, TABLE)
    assert place.sentence == "cu128, image vla_ft:cu128: NVIDIA GeForce RTX 5090 with driver 570.133.07"


def test_local_goes_before_the_image():
    assert decide("auto", "--local", WORKSTATION, TABLE).image is None


@pytest.mark.parametrize(
    "image",
    [
        Image("vla_ft:cu128", "cu128", "0" * 12),
        Image("vla_ft:cpu", "cpu", TABLE.environment("cpu").lock_hash),
        Image("other:cu128", "cu128", TABLE.environment("cu128").lock_hash),
    ],
)
def test_an_image_of_another_lock_environment_or_name_is_not(image):
    place = decide("auto", "", replace(WORKSTATION, engine=Engine("ok", images=(image,))), TABLE)
    assert place.image is None
    assert "`invoke build --gpu cu128` makes one" in place.sentence


def test_a_named_card_needs_no_card_here():
    assert decide("rtx3090", "", LAPTOP, TABLE).environment.name == "cu118"
    with pytest.raises(UserError, match="Did you mean 'rtx3090'"):
        decide("rtx3091", "", LAPTOP, TABLE)


def test_a_named_card_without_its_image_is_told_what_to_do():
    empty = replace(WORKSTATION, engine=Engine("ok"))
    with pytest.raises(UserError, match=r"invoke build --gpu rtx5090`, or add --local"):
        decide("rtx5090", "", empty, TABLE)
    assert decide("rtx5090", "--local", empty, TABLE).image is None


def test_command_lines():
    assert jobs.smoke().command("PY") == ["PY", "-m", "vla_ft", "smoke"]
    assert jobs.smoke(["steps=3"]).service_arguments == ("steps=3",)
    assert jobs.train([]).arguments == ("train",)
    assert jobs.train(["recipe=x"]).arguments == ("train", "recipe=x")
    assert jobs.tests().arguments[:2] == ("-n", "auto"), "the whole suite, by a process per core"
    assert jobs.tests(["-k", "locks"]).command("PY") == ["PY", "-m", "pytest", "-k", "locks"]
    assert jobs.record(["episodes=2"]).extra == "sim"


def test_arguments_keep_their_quotes():
    assert jobs.words("-k 'a or b'", "x=1") == ["-k", "a or b", "x=1"]
    with pytest.raises(UserError, match="No closing quotation"):
        jobs.words("'a", "")


def test_a_job_runs_in_its_environment_and_folder(monkeypatch):
    class Local:
        def __init__(self, environment, echo):
            self.name = environment.name
            self.bytecode = Path(f"/{environment.name}/bytecode")

        def ensure(self, wheelhouse):
            return Path(f"/{self.name}/python")

        def add_extra(self, extra, wheelhouse):
            return Path(f"/{self.name}+{extra}/python")

    monkeypatch.setattr(launching, "LocalEnvironment", Local)
    monkeypatch.delenv("VLA_FT_DEVICE", raising=False)
    monkeypatch.delenv("PYTHONPYCACHEPREFIX", raising=False)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    ran, said, devices, kept = [], [], [], []

    def run(command, env, cwd):
        ran.append((command, env["VLA_FT_ENVIRONMENT"], cwd))
        devices.append(env.get("VLA_FT_DEVICE"))
        kept.append((env.get("PYTHONDONTWRITEBYTECODE"), env["PYTHONPYCACHEPREFIX"]))
        return 7

    cpu = TABLE.environment("cpu")
    assert run_local(jobs.tests(["-q"]), cpu, run=run, echo=said.append) == 7
    assert ran == [(["/cpu/python", "-m", "pytest", "-q"], "cpu", REPOSITORY)]
    assert said == ["$ /cpu/python -m pytest -q"]
    run_local(jobs.record([]), cpu, run=run, echo=said.append)
    assert ran[1] == (["/cpu+sim/python", "-m", "vla_ft", "record"], "cpu", None)
    assert devices == [None, None]
    assert kept == [(None, "/cpu/bytecode")] * 2

    devices.clear()
    for job in (jobs.train([]), jobs.smoke()):
        for name in ("cpu", "cu126"):
            run_local(job, TABLE.environment(name), run=run, echo=said.append)
    assert devices == ["cpu", "cuda"] * 2
    monkeypatch.setenv("VLA_FT_DEVICE", "cpu")
    run_local(jobs.train([]), TABLE.environment("cu126"), run=run, echo=said.append)
    assert devices[-1] == "cpu"
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", "/mine")
    run_local(jobs.train([]), cpu, run=run, echo=said.append)
    assert kept[-1] == (None, "/mine")

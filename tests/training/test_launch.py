from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from vla_ft.training.launch import processes_for

# `launch` starts Python with the words that it is given: a stand-in program takes their place here.
LAUNCHER = "import sys; from vla_ft.training.launch import launch; sys.exit(launch(sys.argv[1:], 2))"
CHILD = """
import os, signal, sys, time
rank = os.environ["RANK"]
if sys.argv[1] == "fail":
    sys.exit(2) if rank == "1" else time.sleep(60)
if sys.argv[1] == "wait":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    open(f"ready{rank}", "w").close()
    time.sleep(60)
os.write(1, f"{rank} {os.environ['WORLD_SIZE']} {os.environ['LOCAL_RANK']}\\n".encode())
"""


@pytest.fixture
def launcher(tmp_path):
    def start(word: str) -> subprocess.Popen:
        code = textwrap.dedent(
            f"""
            import subprocess, sys
            original = subprocess.Popen
            class Replaced(original):
                def __init__(self, command, **options):
                    super().__init__([sys.executable, "-c", {CHILD!r}, *command[1:]], **options)
            subprocess.Popen = Replaced
            {LAUNCHER}
            """
        )
        return subprocess.Popen([sys.executable, "-c", code, word], cwd=tmp_path, stdout=subprocess.PIPE, text=True,
                                env={**os.environ, "PYTHONPATH": os.getcwd()})  # fmt: skip

    return start


def test_every_process_knows_its_rank(launcher):
    process = launcher("ok")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert sorted(out.splitlines()) == ["0 2 0", "1 2 1"]


def test_one_failure_ends_all_with_its_exit_code(launcher):
    started = time.monotonic()
    process = launcher("fail")
    process.communicate(timeout=60)
    assert process.returncode == 2
    assert time.monotonic() - started < 50, "the other process was left to sleep"


def test_signals_pass_through(launcher, tmp_path):
    process = launcher("wait")
    while not ((tmp_path / "ready0").exists() and (tmp_path / "ready1").exists()):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 75


def test_processes(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("VLA_FT_DEVICE", raising=False)
    assert processes_for("auto", "cpu") == 1
    assert processes_for(3, "cpu") == 3
    monkeypatch.setenv("RANK", "0")
    assert processes_for(3, "cpu") == 1, "a launcher has started this process already"


# What happens to gloo's threads is left to chance; this one aborts every time the interpreter is torn down.
DOOMED = """
import atexit, os, sys
class Doomed:
    def __del__(self):
        os.abort()
doomed = Doomed()
atexit.register(print, "handlers ran")
from vla_ft.training.launch import leave
print("done")
leave(3)
"""


@pytest.mark.parametrize(("variables", "code"), [({}, -signal.SIGABRT), ({"WORLD_SIZE": "2"}, 3)], ids=["one", "two"])
def test_one_of_several_leaves_whatever_its_threads_do(variables, code):
    environment = {key: value for key, value in os.environ.items() if key != "WORLD_SIZE"}
    ended = subprocess.run([sys.executable, "-c", DOOMED], env=environment | variables, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (code, "done\nhandlers ran\n")

"""Local environments: order of the steps, stamps, and what happens when a step fails. A stand-in runs pip."""

from __future__ import annotations

import json
import shutil
import sys

import pytest

from vla_ft.environment.locks import FROM_SOURCE, parse_lock, read_lock
from vla_ft.environment.table import ENVIRONMENTS, load_table
from vla_ft.errors import UserError
from vla_ft.host import interpreters, local, wheelhouse
from vla_ft.host.interpreters import find_python
from vla_ft.host.local import STAMP, LocalEnvironment
from vla_ft.host.wheelhouse import sha256


class Pip:
    """Runs nothing: keeps the commands and the pins that they were given, and fails at the word ``fail_at``."""

    def __init__(self):
        self.commands = []
        self.pins = []
        self.fail_at = None

    def __call__(self, command, log):
        words = list(command)
        self.commands.append(words)
        log.write_text("a line of pip\n")
        if "venv" in words:
            python = local.Path(words[-1]) / "bin" / "python"
            python.parent.mkdir(parents=True)
            python.write_text("#!/bin/sh\nexit 0\n")
            python.chmod(0o755)
        if "-r" in words:
            text = local.Path(words[words.index("-r") + 1]).read_text()
            self.pins.append([pin.name for pin in parse_lock(text)])
        return 1 if self.fail_at and self.fail_at in " ".join(words) else 0


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Makes a LocalEnvironment on a copy of envs/ with a stand-in for pip; wheel folders of this machine are hidden."""
    shutil.copytree(ENVIRONMENTS, tmp_path / "envs")
    monkeypatch.setattr(local, "find_python", lambda version: sys.executable)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setattr("vla_ft.host.wheel_folders._configured", list)
    pip, said = Pip(), []

    def made(name="cpu"):
        environment = load_table(tmp_path / "envs").environment(name)
        return LocalEnvironment(environment, tmp_path / "venvs", pip, said.append)

    made.pip, made.said, made.envs = pip, said, tmp_path / "envs"
    return made


def installs(pip):
    return [" ".join(words) for words in pip.commands if "install" in words]


def test_layers_go_in_by_hash_and_in_order(make):
    python = make("cu126").ensure()
    assert python.name == "python" and python.exists()
    assert [pins[0] for pins in make.pip.pins] == ["torch", "nvidia-cublas-cu12", "absl-py", "deepspeed"]
    for line in installs(make.pip)[:4]:
        assert "--require-hashes --no-deps" in line and "--index-url" not in line
    assert "--editable" in installs(make.pip)[4] and "--no-build-isolation" in installs(make.pip)[4]
    assert make.pip.commands[-1][-1] == "check"


def test_only_what_has_no_wheel_is_built_and_alike_on_every_machine(make):
    make("cu126").ensure()
    *wheels, source, _ = installs(make.pip)
    assert source.startswith("env DS_ACCELERATOR=cpu DS_BUILD_OPS=0 PIP_USE_PEP517=1 ")
    assert "--no-binary :all: --no-build-isolation --no-cache-dir" in source
    assert not any("--no-binary" in line or "DS_BUILD_OPS" in line for line in wheels)


def test_the_second_call_does_nothing_and_a_new_lock_does_everything(make):
    make().ensure()
    count = len(make.pip.commands)
    make().ensure()
    assert len(make.pip.commands) == count
    lock = make.envs / "cpu" / "requirements.lock"
    lock.write_text(lock.read_text().replace("psutil==7.2.2", "psutil==7.3.0"))
    make().ensure()
    assert len(make.pip.commands) == 2 * count
    assert any("anew" in line for line in make.said)


def test_a_failed_step_leaves_no_stamp_and_is_made_anew(make):
    make.pip.fail_at = "--no-input check"
    with pytest.raises(UserError, match=r"failed at: check of what depends on what.*\n.*\na line of pip"):
        make().ensure()
    assert not (make().folder / STAMP).exists()
    make.pip.fail_at = None
    make().ensure()
    assert json.loads((make().folder / STAMP).read_text())["lock"]
    assert sum("venv" in words for words in make.pip.commands) == 2


def test_only_torch_asks_torchs_index_and_not_for_long(make):
    cu118 = make("cu118")
    cu118.ensure()
    torch, *others = installs(make.pip)
    assert f"--index-url {cu118.environment.torch_index} --retries 1" in torch
    assert not any("--index-url" in line for line in others)


@pytest.fixture
def wheel(make, tmp_path):
    """Puts a wheel into a folder; with ``locked``, cu118's lock admits just its content, as if it were the real one."""
    folder, lock = tmp_path / "wheels", make.envs / "cu118" / "requirements.lock"
    folder.mkdir()

    def put(name, locked=True):
        path = folder / name
        path.write_bytes(name.encode())
        if locked:
            project, version = wheelhouse.project(path)
            (pin,) = (one for one in read_lock(lock) if (one.name, one.version) == (project, version))
            line = f"{pin.name}=={version} --hash=sha256:{sha256(path)}\n"
            lock.write_text(lock.read_text().replace(pin.text, line))
        return folder

    return put


def test_a_wheel_folder_goes_before_torchs_index(make, wheel):
    folder = wheel(make("cu118").environment.torch_wheel)
    make("cu118").ensure(folder)
    torch, *others = installs(make.pip)
    assert f"--find-links {folder} --no-index" in torch and "--index-url" not in torch
    assert all("--no-index" not in line for line in others)
    assert all(f"--find-links {folder}" in line for line in others[:2])


def test_a_wheel_folder_that_holds_everything_asks_no_index(make, wheel):
    for pin in read_lock(make("cu118").environment.lock):
        stem = f"{pin.name.replace('-', '_')}-{pin.version}"
        folder = wheel(f"{stem}.tar.gz" if pin.name in FROM_SOURCE else f"{stem}-cp311-x.whl")
    make("cu118").ensure(folder)
    *layers, project = installs(make.pip)
    assert len(layers) == 4 and all(f"--find-links {folder} --no-index" in line for line in layers)
    assert "--no-build-isolation" in project


def test_pips_own_wheel_folder_counts_as_well(make, wheel, monkeypatch):
    folder = wheel(make("cu118").environment.torch_wheel)
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    make("cu118").ensure()
    assert "--no-index" in installs(make.pip)[0]


def test_a_torch_of_another_content_is_passed_over_aloud(make, wheel):
    folder = wheel(make("cu118").environment.torch_wheel, locked=False)
    make("cu118").ensure(folder)
    assert "--index-url" in installs(make.pip)[0] and "--no-index" not in installs(make.pip)[0]
    assert any("torch-2.7.1+cu118" in line and "sha256 is not in the lock" in line for line in make.said)


def test_a_wheel_folder_with_another_torch_is_passed_over(make, wheel):
    folder = wheel(make("cpu").environment.torch_wheel, locked=False)
    make("cu118").ensure(folder)
    assert "--index-url" in installs(make.pip)[0]
    assert not any("not in the lock" in line for line in make.said)


def test_an_index_out_of_reach_asks_for_the_wheel_by_name(make):
    make.pip.fail_at = "--index-url"
    with pytest.raises(
        UserError,
        match=r"Put torch-2\.7\.1\+cu118-cp311-cp311-manylinux_2_28_x86_64\.whl with the lock's sha256 into a folder",
    ):
        make("cu118").ensure()


def test_a_wheel_folder_that_is_none_is_refused(make, tmp_path):
    with pytest.raises(UserError, match="is no folder"):
        make("cpu").ensure(tmp_path / "nowhere")


def test_a_changed_project_file_reinstalls_the_project_alone(make):
    make().ensure()
    stamp = make().folder / STAMP
    stamp.write_text(stamp.read_text().replace('"project": "', '"project": "older'))
    count = len(make.pip.commands)
    make().ensure()
    assert [words[-1] for words in make.pip.commands[count:]] == [str(local.REPOSITORY), "check"]
    make().ensure()
    assert len(make.pip.commands) == count + 2


def test_an_add_on_is_installed_once_for_each_lock(make):
    make().add_extra("sim")
    assert "mujoco" in make.pip.pins[-1] and "numpy" not in make.pip.pins[-1]
    count = len(make.pip.commands)
    make().add_extra("sim")
    assert len(make.pip.commands) == count
    lock = make.envs / "cpu" / "sim.lock"
    lock.write_text(lock.read_text().replace("mujoco==", "mujoco==1!"))
    make().add_extra("sim")
    assert len(make.pip.commands) == count + 2


def test_an_unknown_add_on_is_refused(make):
    with pytest.raises(UserError, match=r"'cu126' has no add-on 'sim'\. Known: none"):
        make("cu126").add_extra("sim")


def test_a_moved_clone_makes_its_environment_anew(make):
    make().ensure()
    stamp = make().folder / STAMP
    stamp.write_text(stamp.read_text().replace('"repository": "', '"repository": "/elsewhere'))
    count = len(make.pip.commands)
    make().ensure()
    assert len(make.pip.commands) == 2 * count


def test_other_platforms_are_refused_before_anything_is_made(make, monkeypatch):
    monkeypatch.setattr(local.platform, "machine", lambda: "aarch64")
    with pytest.raises(UserError, match="x86_64 only; this is Linux on aarch64"):
        make().ensure()
    assert not make().folder.exists()


def test_a_stub_that_leads_nowhere_is_passed_over(tmp_path, monkeypatch):
    stub, real = tmp_path / "stubs", tmp_path / "real"
    for folder, text in ((stub, "exit 127"), (real, f'exec {sys.executable} "$@"')):
        folder.mkdir()
        path = folder / f"python{sys.version_info[0]}.{sys.version_info[1]}"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    monkeypatch.setenv("PATH", f"{stub}:{real}")
    monkeypatch.setattr(interpreters.sys, "executable", str(tmp_path / "gone"))
    assert find_python(version) == str(real / f"python{version}")


def test_no_python_names_what_was_tried(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"Python 3\.99 with venv was not found.*python3\.99-venv"):
        find_python("3.99")

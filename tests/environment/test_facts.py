"""NVML's answers as facts, with stand-in bindings that raise and return what the real ones do."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from vla_ft.environment import facts as module
from vla_ft.environment.facts import Facts, Gpus, Image, from_json, gather, gather_gpus, to_json


class NVMLError(Exception):
    def __init__(self, value):
        super().__init__(f"NVML error {value}")
        self.value = value


def bindings(init_error=None, devices=(), ask_error=None):
    """A module in the shape of pynvml; ``calls`` counts shutdowns."""
    calls = []

    def init():
        if init_error:
            raise NVMLError(init_error)

    def count():
        if ask_error:
            raise NVMLError(ask_error)
        return len(devices)

    return SimpleNamespace(
        NVMLError=NVMLError,
        NVML_ERROR_LIBRARY_NOT_FOUND=12,
        NVML_ERROR_DRIVER_NOT_LOADED=9,
        NVML_ERROR_LIB_RM_VERSION_MISMATCH=18,
        nvmlInit=init,
        nvmlShutdown=lambda: calls.append("shutdown"),
        nvmlDeviceGetCount=count,
        nvmlDeviceGetHandleByIndex=lambda index: devices[index],
        nvmlDeviceGetCudaComputeCapability=lambda device: device[1],
        nvmlDeviceGetName=lambda device: device[0],
        nvmlDeviceGetMemoryInfo=lambda device: SimpleNamespace(total=device[2]),
        nvmlSystemGetDriverVersion=lambda: b"535.183.06",
        calls=calls,
    )


def test_cards_and_driver():
    nvml = bindings(devices=[(b"NVIDIA A100-SXM4-40GB", (8, 0), 40 * 2**30), ("Tesla T4", (7, 5), 15 * 2**30)])
    found = gather_gpus(nvml)
    assert (found.state, found.driver) == ("ok", "535.183.06")
    assert [(one.name, one.compute_capability, one.memory_gib) for one in found.devices] == [
        ("NVIDIA A100-SXM4-40GB", (8, 0), 40.0),
        ("Tesla T4", (7, 5), 15.0),
    ]
    assert nvml.calls == ["shutdown"]


@pytest.mark.parametrize(("error", "state"), [(12, "no library"), (9, "no driver"), (18, "mismatch"), (999, "failed")])
def test_each_way_of_having_no_answer_is_told_apart(error, state):
    assert gather_gpus(bindings(init_error=error)) == Gpus(state, message=f"NVML error {error}")


def test_a_driver_without_a_card_is_no_driver_for_us():
    assert gather_gpus(bindings()).state == "no driver"


def test_a_card_that_falls_off_the_bus_is_a_failure_and_shuts_down():
    nvml = bindings(ask_error=15)
    assert gather_gpus(nvml).state == "failed"
    assert nvml.calls == ["shutdown"]


def test_missing_bindings_are_no_missing_driver(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gather_gpus().state == "no bindings"


def test_facts_go_to_json_and_back():
    nvml = bindings(devices=[("NVIDIA GeForce RTX 3090", (8, 6), 24 * 2**30)])
    engine = module.Engine("ok", "28.2.2", True, "2.36.0", "0.24.0", "/x", (Image("vla_ft:cpu", "cpu", "abc"),))
    facts = Facts(gpus=gather_gpus(nvml), engine=engine, shared_memory_bytes=64, disk_free_bytes={"/x": 5})
    assert from_json(to_json(facts)) == facts


@pytest.mark.newcomer
def test_this_machine_can_be_gathered(tmp_path):
    facts = gather(tmp_path)
    assert facts.gpus.state in {"ok", "no library", "no driver", "mismatch", "failed"}
    assert facts.disk_free_bytes[str(tmp_path)] > 0
    assert from_json(to_json(facts)) == facts

"""Energy by NVML's counter. There is no GPU here: a library with NVML's own calls stands in for the driver's."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
from pathlib import Path

import pynvml
import pytest

from flows.machine.environment import gpus
from tasks.models.energy import Meter, read_joules

_LIBRARY = """
#include <stdlib.h>
#include <stdio.h>
#include <string.h>
/* devices 0 and 1; each counts millijoules as its file in NVML_TEST says */
int nvmlInitWithFlags(unsigned int flags) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = 2; return 0; }
int nvmlDeviceGetName(void *device, char *name, unsigned int length) {
  return snprintf(name, length, "GPU %d", (int)(size_t)device - 1) < 0;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) {
  if (index > 1) return 2;
  *device = (void *)(size_t)(index + 1);
  return 0;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
  if (strcmp(uuid, "GPU-second")) return 2;
  *device = (void *)2;
  return 0;
}
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *energy) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%d", getenv("NVML_TEST"), (int)(size_t)device - 1);
  FILE *file = fopen(path, "r");
  if (!file) return 3;
  int read = fscanf(file, "%llu", energy);
  fclose(file);
  return read == 1 ? 0 : 3;
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    directory = tmp_path_factory.mktemp("nvml")
    (directory / "nvml.c").write_text(_LIBRARY)
    built = directory / "libnvml.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", built, directory / "nvml.c"], check=True)
    return ctypes.CDLL(str(built))


@pytest.fixture
def driver(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pynvml, "nvmlLib", library)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})


@pytest.fixture
def counters(driver: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NVML_TEST", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "0").write_text("5000000000000")  # more than 32 bits of millijoules
    (tmp_path / "1").write_text("1000")
    return tmp_path


def test_joules_are_those_since_the_start_of_all_devices(counters: Path) -> None:
    meter = Meter(counters / "energy.json", 2)
    (counters / "0").write_text("5000000002500")
    (counters / "1").write_text("2000")
    meter.note(at_once=True)
    assert read_joules(counters / "energy.json") == pytest.approx(3.5)


def test_an_attempt_goes_on_from_those_before(counters: Path) -> None:
    file = counters / "energy.json"
    file.write_text(json.dumps({"joules": 10.0}))
    meter = Meter(file, 1)
    (counters / "0").write_text("5000000001000")
    meter.note()  # not yet time
    assert read_joules(file) == 10.0
    meter.note(at_once=True)
    assert read_joules(file) == pytest.approx(11.0)


def test_only_visible_devices_are_read(counters: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-second")
    meter = Meter(counters / "energy.json", 1)
    (counters / "0").write_text("9000000000000")
    (counters / "1").write_text("4000")
    meter.note(at_once=True)
    assert read_joules(counters / "energy.json") == pytest.approx(3.0)


def test_nothing_is_told_where_a_device_does_not(counters: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = counters / "energy.json"
    Meter(file, 3).note(at_once=True)
    assert read_joules(file) is None
    for visible in ("GPU-second", "0,GPU-unknown"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        Meter(file, 2).note(at_once=True)
        assert read_joules(file) is None
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    (counters / "0").unlink()  # as of a part of a GPU: the call is refused
    Meter(file, 1).note(at_once=True)
    assert read_joules(file) is None


def test_the_driver_lists_the_gpus(driver: None) -> None:
    assert gpus() == ["GPU 0", "GPU 1"]


def test_without_a_driver_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    monkeypatch.setattr(pynvml, "CDLL", lambda name: ctypes.CDLL(f"no-such-{name}"))
    assert gpus() == []
    Meter(tmp_path / "energy.json", 1).note(at_once=True)
    assert read_joules(tmp_path / "energy.json") is None


def test_nor_with_a_driver_that_is_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pynvml, "nvmlLib", ctypes.CDLL(None))  # none of its calls
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    assert gpus() == []
    Meter(tmp_path / "energy.json", 1).note(at_once=True)
    assert read_joules(tmp_path / "energy.json") is None

"""Energy by NVML's counter. There is no GPU here: a library with NVML's own calls stands in for the driver's."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tasks.models.energy import Meter, read_joules

_LIBRARY = """
#include <stdlib.h>
#include <stdio.h>
#include <string.h>
/* devices 0 and 1; each counts millijoules as its file in NVML_TEST says */
int nvmlInit_v2(void) { return 0; }
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
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    directory = tmp_path_factory.mktemp("nvml")
    (directory / "nvml.c").write_text(_LIBRARY)
    built = directory / "libnvml.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", built, directory / "nvml.c"], check=True)
    return str(built)


@pytest.fixture
def counters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NVML_TEST", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "0").write_text("5000000000000")  # more than 32 bits of millijoules
    (tmp_path / "1").write_text("1000")
    return tmp_path


def test_joules_are_those_since_the_start_of_all_devices(library: str, counters: Path) -> None:
    meter = Meter(counters / "energy.json", 2, library)
    (counters / "0").write_text("5000000002500")
    (counters / "1").write_text("2000")
    meter.note(at_once=True)
    assert read_joules(counters / "energy.json") == pytest.approx(3.5)


def test_an_attempt_goes_on_from_those_before(library: str, counters: Path) -> None:
    file = counters / "energy.json"
    file.write_text(json.dumps({"joules": 10.0}))
    meter = Meter(file, 1, library)
    (counters / "0").write_text("5000000001000")
    meter.note()  # not yet time
    assert read_joules(file) == 10.0
    meter.note(at_once=True)
    assert read_joules(file) == pytest.approx(11.0)


def test_only_visible_devices_are_read(library: str, counters: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-second")
    meter = Meter(counters / "energy.json", 1, library)
    (counters / "0").write_text("9000000000000")
    (counters / "1").write_text("4000")
    meter.note(at_once=True)
    assert read_joules(counters / "energy.json") == pytest.approx(3.0)


@pytest.mark.parametrize("count", [3])
def test_nothing_is_told_where_a_device_does_not(library: str, counters: Path, count: int) -> None:
    file = counters / "energy.json"
    for meter in (Meter(file, count, library), Meter(file, 1, "libno-such-driver.so.1")):
        meter.note(at_once=True)
        assert read_joules(file) is None
    (counters / "0").unlink()  # as of a part of a GPU: the call is refused
    Meter(file, 1, library).note(at_once=True)
    assert read_joules(file) is None

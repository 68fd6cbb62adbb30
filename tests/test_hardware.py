"""What the machine has, how busy it is and what it draws, with and without what tells."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from nima.monitoring.hardware import EnergyMeter, Gpus, machine
from nima.monitoring.log_file import logging_to
from nima.monitoring.monitor import Monitor
from nima.workspace import surroundings
from nima.workspace.surroundings import cpu_model

SOURCE = Path(__file__).parent.parent / "src"


def test_the_machine_is_described_in_plain_values() -> None:
    found = machine()
    assert found == json.loads(json.dumps(found))
    assert found["cpu"]
    assert found["memory_bytes"] > 1e8
    assert found["usable_cores"] >= 1
    assert isinstance(found["gpus"], list)


def test_the_processor_is_called_by_its_makers_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "CPUINFO", tmp_path / "cpuinfo")
    assert cpu_model()
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Brand: X 9000\n")
    assert cpu_model() == "Brand: X 9000"


# ----------------------------------------------------------------------------------------------- energy


def zone(powercap: Path, name: str, kind: str, microjoules: int, wraps_at: int = 1000_000_000) -> Path:
    folder = powercap / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{kind}\n")
    (folder / "max_energy_range_uj").write_text(f"{wraps_at}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    return folder / "energy_uj"


def test_the_joules_of_all_packages_are_added_and_counters_may_wrap(tmp_path: Path) -> None:
    first = zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 999_000_000)
    zone(tmp_path, "intel-rapl:0:0", "core", 77)
    zone(tmp_path, "intel-rapl:2", "psys", 77)
    meter = EnergyMeter(Gpus(), tmp_path)
    assert meter.read()["cpu_joules"] == 0.0
    first.write_text("8000000\n")
    assert meter.read()["cpu_joules"] == pytest.approx(3.0)
    second.write_text("2000000\n")
    assert meter.read()["cpu_joules"] == pytest.approx(3.0 + 3.0)


def test_energy_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    assert "cpu_joules" not in EnergyMeter(Gpus(), tmp_path / "nothing").read()
    zone(tmp_path, "intel-rapl:0", "package-0", 5).write_text("no number")
    assert "cpu_joules" not in EnergyMeter(Gpus(), tmp_path).read()


# ------------------------------------------------------------------------------------------------- GPUs

# A driver library with two boards, of which the second tells neither its load nor its energy.
DRIVER = """
#include <string.h>
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned int gpu, memory; } Load;
static unsigned long long drawn = 1000;
int nvmlInitWithFlags(unsigned int flags) { return 0; }
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int i, void **gpu) { *gpu = (void *)(1UL + i); return 0; }
int nvmlDeviceGetName(void *gpu, char *name, unsigned int size) { strcpy(name, "NVIDIA H200"); return 0; }
int nvmlDeviceGetUUID(void *gpu, char *id, unsigned int size)
{ strcpy(id, gpu == (void *)1 ? "GPU-one" : "GPU-two"); return 0; }
int nvmlSystemGetDriverVersion(char *version, unsigned int size) { strcpy(version, "999.1"); return 0; }
int nvmlDeviceGetMemoryInfo(void *gpu, Memory *memory)
{ memory->total = 1000; memory->free = 600; memory->used = 400; return 0; }
int nvmlDeviceGetUtilizationRates(void *gpu, Load *load) { load->gpu = 50; return gpu == (void *)1 ? 0 : 3; }
int nvmlDeviceGetPowerUsage(void *gpu, unsigned int *milliwatts) { *milliwatts = 700000; return 0; }
int nvmlDeviceGetTotalEnergyConsumption(void *gpu, unsigned long long *millijoules)
{ *millijoules = drawn; drawn += 2000; return gpu == (void *)1 ? 0 : 3; }
"""
LOOK = """
import json
from pathlib import Path
from nima.monitoring.hardware import EnergyMeter, Gpus
gpus = Gpus()
meter = EnergyMeter(gpus, Path("nowhere"))
print(json.dumps([gpus.description(), gpus.load(), meter.read()]))
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler on this machine: it makes the stand-in for NVIDIA's driver")
    folder = tmp_path_factory.mktemp("driver")
    (folder / "driver.c").write_text(DRIVER)
    library = folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, folder / "driver.c"], check=True)
    return folder


def seen_with(driver: Path, chosen: str | None) -> list[dict[str, Any]]:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "LD_LIBRARY_PATH": str(driver)}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    if chosen is not None:
        environment["CUDA_VISIBLE_DEVICES"] = chosen
    command = [sys.executable, "-c", LOOK]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("chosen", ["0", "GPU-one"])
def test_a_gpu_tells_its_load_memory_power_and_energy(driver: Path, chosen: str) -> None:
    description, load, energy = seen_with(driver, chosen)
    assert description == {"gpus": [{"name": "NVIDIA H200", "memory_bytes": 1000}], "gpu_driver": "999.1"}
    assert load == {"gpu_percent": 50.0, "gpu_memory_bytes": 400.0, "gpu_watts": 700.0}
    assert energy == {"gpu_joules": 2.0}


def test_what_one_of_the_gpus_does_not_tell_is_left_out(driver: Path) -> None:
    description, load, energy = seen_with(driver, None)
    assert len(description["gpus"]) == 2
    assert load == {"gpu_memory_bytes": 800.0, "gpu_watts": 1400.0}
    assert set(energy) == {"gpu_joules"}


def test_gpus_that_are_hidden_are_not_counted(driver: Path) -> None:
    description, load, energy = seen_with(driver, "")
    assert (description, load, energy) == ({"gpus": []}, {}, {})


# ----------------------------------------------------------------------------------------------- monitor


def busy(seconds: float) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        sum(range(1000))


def test_the_monitor_tells_means_peaks_and_energy_without_a_gpu(tmp_path: Path) -> None:
    counter = zone(tmp_path / "powercap", "intel-rapl:0", "package-0", 0)
    log = tmp_path / "log"
    with logging_to(log, "info", "train"):
        meter = EnergyMeter(Gpus(), tmp_path / "powercap")
        with Monitor(0.05, tmp_path, meter=meter) as monitor:
            busy(0.4)
            (tmp_path / "written").write_bytes(bytes(2_000_000))
            counter.write_text("5000000")
            figures = monitor.figures()
    assert figures["process_cpu_percent_mean"] > 5
    assert 0 <= figures["cpu_percent_mean"] <= 100
    assert figures["process_memory_bytes_max"] > 1e7
    assert figures["disk_percent_max"] > 0
    assert figures["cpu_joules"] == pytest.approx(5.0)
    assert figures["disk_written_bytes"] >= 0
    assert "cpu_joules_mean" not in figures
    looks = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(looks) >= 2
    assert {look["message"] for look in looks} == {"load"}


def test_a_monitor_that_is_off_still_knows_the_energy(tmp_path: Path) -> None:
    counter = zone(tmp_path / "powercap", "intel-rapl:0", "package-0", 0)
    with Monitor(0, tmp_path, meter=EnergyMeter(Gpus(), tmp_path / "powercap")) as monitor:
        counter.write_text("7000000")
        assert not monitor.thread.is_alive()
        assert monitor.figures()["cpu_joules"] == pytest.approx(7.0)


def test_the_monitor_holds_up_no_crash_and_is_gone_after_the_run(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Monitor(0.01, tmp_path):
        1 / 0  # noqa: B018
    assert not any(thread.name == "monitor" for thread in threading.enumerate())


def test_a_look_costs_little(tmp_path: Path) -> None:
    with Monitor(0, tmp_path) as monitor:
        started = time.perf_counter()
        for _ in range(20):
            monitor.look()
    assert (time.perf_counter() - started) / 20 < 0.02

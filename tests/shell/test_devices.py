"""Devices: no GPU is here, so NVML's answers are made up; cgroup limits are trees of files."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import psutil
import pynvml
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oomguard.machine.gpus import Gpu, gpus, host_memory, visible, wait_until_free
from oomguard.units import GIB, MIB

UUIDS = {0: "GPU-aa11", 1: "GPU-aa22", 2: "GPU-bb33"}
CARD = Gpu(index=0, uuid="GPU-aa11", name="card", total_bytes=24 * GIB, used_bytes=GIB)


def has_driver() -> bool:
    return Path("/proc/driver/nvidia/version").exists()


@pytest.mark.skipif(has_driver(), reason="an NVIDIA driver is here")
def test_without_a_driver_there_are_no_gpus():
    assert gpus() == ()


@pytest.mark.gpu
@pytest.mark.skipif(not has_driver(), reason="no NVIDIA driver is here")
def test_gpus_are_those_that_nvidia_smi_lists(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    query = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    listed = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()
    assert [gpu.uuid for gpu in gpus()] == listed
    assert all(0 < gpu.used_bytes < gpu.total_bytes for gpu in gpus())


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (None, (0, 1, 2)),
        ("", ()),
        ("-1", ()),
        ("2,0", (2, 0)),
        (" 1 , 2", (1, 2)),
        ("0,-1,1", (0,)),
        ("0,7,1", (0,)),
        ("1,1", ()),
        ("GPU-bb33,GPU-aa1", (2, 0)),
        ("GPU-aa", ()),
        ("GPU-zz,0", ()),
        ("NoDevFiles", ()),
        ("MIG-1/2/3", ()),
    ],
)
def test_visible_devices(asked, expected):
    assert visible(asked, UUIDS) == expected


@given(st.none() | st.text(alphabet="0123,-GPUab ", max_size=20))
def test_visible_devices_are_some_of_all_and_each_once(asked):
    found = visible(asked, UUIDS)
    assert len(set(found)) == len(found)
    assert set(found) <= set(UUIDS)


def machine(tmp_path: Path, groups: str, mount: str) -> Path:
    own = tmp_path / "self"
    own.mkdir()
    (own / "cgroup").write_text(groups)
    (own / "mountinfo").write_text(f"35 32 0:32 / {tmp_path / 'fs'} rw - {mount}\n")
    return tmp_path


def group(folder: Path, files: dict[str, object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name).write_text(f"{value}\n")


def test_v2_limits_count_up_to_the_root_without_reclaimable_cache(tmp_path):
    stat = f"anon 1\nactive_file 7\ninactive_file {64 * MIB}"
    usage = {"memory.current": 192 * MIB, "memory.stat": stat}
    group(tmp_path / "fs" / "a", {"memory.max": 512 * MIB, **usage})
    group(tmp_path / "fs" / "a" / "b", {"memory.max": "max", **usage})
    found = host_memory(machine(tmp_path, "0::/a/b\n", "cgroup2 cgroup2 rw"))
    assert found.total_bytes == 512 * MIB
    assert found.available_bytes == 384 * MIB


def test_v1_limit_counts_and_no_limit_does_not(tmp_path):
    usage = {"memory.usage_in_bytes": 300 * MIB, "memory.stat": f"total_inactive_file {MIB}"}
    group(tmp_path / "fs", {"memory.limit_in_bytes": 9223372036854771712, **usage})
    group(tmp_path / "fs" / "job", {"memory.limit_in_bytes": 256 * MIB, **usage})
    found = host_memory(machine(tmp_path, "4:memory:/job\n0::/\n", "cgroup cgroup rw,memory"))
    assert (found.total_bytes, found.available_bytes) == (256 * MIB, 0)


@pytest.mark.parametrize("groups", ["", "0::/gone\n", "2:cpu:/\n"])
def test_without_a_limit_it_is_the_machines_memory(tmp_path, groups):
    found = host_memory(machine(tmp_path, groups, "cgroup2 cgroup2 rw"))
    assert found.total_bytes == psutil.virtual_memory().total
    assert host_memory(tmp_path / "no-proc").total_bytes == found.total_bytes


def test_here_it_is_no_more_than_the_machine_has():
    found = host_memory()
    assert 0 < found.available_bytes <= found.total_bytes <= psutil.virtual_memory().total


class Card:
    """A GPU that gives memory back at each look, and the time that passes between looks."""

    def __init__(self, *used_bytes: int) -> None:
        self.now, self.used_bytes, self.slept = 100.0, list(used_bytes), 0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += 1

    def read(self) -> tuple[Gpu, ...]:
        used_bytes = self.used_bytes.pop(0) if len(self.used_bytes) > 1 else self.used_bytes[0]
        return (replace(CARD, used_bytes=used_bytes),)


def wait(card: Card, timeout_s: float):
    return wait_until_free(
        (CARD,), timeout_s=timeout_s, poll_s=0.5, clock=card.clock, sleep=card.sleep, read=card.read
    )


def test_it_waits_until_the_memory_is_back_within_the_tolerance():
    card = Card(20 * GIB, 2 * GIB, GIB + 257 * MIB, GIB + 256 * MIB)
    report = wait(card, 60)
    assert (report.free, report.waited_s, report.busy) == (True, 1.5, "")
    assert dict(report.held_bytes) == {}


def test_it_gives_up_at_the_timeout_and_says_what_is_held():
    card = Card(5 * GIB)
    report = wait(card, 1.25)
    assert (report.free, report.waited_s, card.slept) == (False, 1.25, 3)
    assert dict(report.held_bytes) == {"GPU-aa11": 4 * GIB}
    assert "GPU-aa11" in report.busy
    assert "4.00 GiB" in report.busy


def test_a_gpu_that_was_fuller_before_or_is_gone_is_free():
    assert wait(Card(0), 60).waited_s == 0
    gone = wait_until_free((CARD,), timeout_s=60, clock=lambda: 0.0, read=tuple)
    assert gone.free


def test_without_gpus_nothing_is_read_or_waited_for():
    def never() -> tuple[Gpu, ...]:
        pytest.fail("read")

    assert wait_until_free((), read=never).free


class Memory:
    """What NVML reports of a GPU's memory."""

    total = used = 0


@pytest.mark.parametrize("refused", [True, False])
def test_a_gpu_without_memory_of_its_own_has_the_hosts(monkeypatch, refused):
    # GB10: nvidia-smi shows "Not Supported"; a Jetson's NVML has no such call at all.
    def memory(_handle):
        if refused:
            raise pynvml.NVMLError_NotSupported
        return Memory

    answers = {
        "nvmlInit": lambda: None, "nvmlShutdown": lambda: None, "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda index: index, "nvmlDeviceGetMemoryInfo": memory,
        "nvmlDeviceGetCudaComputeCapability": lambda _: (12, 1),
        "nvmlDeviceGetUUID": lambda _: "GPU-cc11", "nvmlDeviceGetName": lambda _: "NVIDIA GB10",
    }  # fmt: skip
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, answer)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (found,) = gpus()
    assert found.unified
    assert found.total_bytes == host_memory().total_bytes
    assert 0 < found.used_bytes < found.total_bytes


def test_a_gpu_that_does_not_answer_is_left_out(monkeypatch):
    def gone(_handle):
        raise pynvml.NVMLError_GpuIsLost

    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 1)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", gone)
    assert gpus() == ()


def test_what_other_programs_hold_of_shared_ram_is_not_waited_for():
    before = replace(CARD, unified=True)
    now = replace(before, used_bytes=20 * GIB)
    assert wait_until_free((before,), timeout_s=9, clock=lambda: 0.0, read=lambda: (now,)).free

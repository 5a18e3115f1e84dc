"""The kernel's word: real OOM kills in a memory cgroup, and how cgroups are found."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from oomguard.errors import UsageError
from oomguard.machine.cgroups import Cgroup, own_cgroup
from oomguard.process.limits import CapBy, Caps
from oomguard.process.messages import Kernel, ProcessExited
from oomguard.units import MIB
from shell.process_attempts import make_attempts, needs_cgroup

attempts = pytest.fixture(make_attempts)
CAP = Caps(host_memory_bytes=96 * MIB, host_memory_by=CapBy.CGROUP)
TOO_MUCH = "bytearray(400 << 20)"
KILLED_WORKER = f"""
import subprocess, sys
print(subprocess.call([sys.executable, '-c', '{TOO_MUCH}']))
sys.stdout.flush()
import signal; signal.pause()
"""


@needs_cgroup
def test_a_kill_by_the_kernel_is_told_before_the_exit(attempts):
    attempt = attempts.python(TOO_MUCH, caps=CAP)
    assert attempt.running.kernel_watched
    assert attempt.exit() == -9
    assert attempt.of(Kernel) == [Kernel(oom_kills=1, total=1)]
    assert attempt.seen[-2:] == [Kernel(oom_kills=1, total=1), ProcessExited(returncode=-9)]


@needs_cgroup
def test_a_killed_worker_is_told_while_the_job_goes_on(attempts):
    attempt = attempts.python(KILLED_WORKER, caps=CAP)
    attempt.wait_for(Kernel)
    attempt.wait_output(b"-9\n")
    assert attempt.running.alive() == (attempt.running.pid,)


@needs_cgroup
def test_a_plain_kill_is_no_oom(attempts):
    attempt = attempts.python("import os; os.kill(os.getpid(), 9)", caps=CAP)
    assert attempt.exit() == -9
    assert attempt.running.kernel_watched
    assert attempt.of(Kernel) == []


@needs_cgroup
def test_what_fits_under_the_cap_runs(attempts):
    attempt = attempts.python("bytearray(32 << 20)", caps=CAP)
    assert attempt.exit() == 0
    assert attempt.of(Kernel) == []


@needs_cgroup
def test_groups_of_supervisors_that_were_killed_are_swept(attempts):
    dead = subprocess.Popen(["true"])
    dead.wait()
    own = own_cgroup()
    assert own is not None
    left, used = (own.folder / f"oomguard-{pid}-x" for pid in (dead.pid, os.getpid()))
    left.mkdir()
    used.mkdir()
    try:
        attempts.start("true").exit()
        assert not left.exists()
        assert used.exists()
    finally:
        used.rmdir()


def test_without_cgroups_a_cap_by_one_is_refused_and_points_to_rlimit(attempts, monkeypatch):
    monkeypatch.setattr("oomguard.process.start.own_cgroup", lambda: None)
    with pytest.raises(UsageError, match="cgroup") as caught:
        attempts.start("true", caps=CAP)
    assert "rlimit" in caught.value.next_step


def test_without_cgroups_and_without_a_cap_the_job_runs_unwatched(attempts, monkeypatch):
    monkeypatch.setattr("oomguard.process.start.own_cgroup", lambda: None)
    attempt = attempts.start("true")
    assert attempt.exit() == 0
    assert not attempt.running.kernel_watched


# Layouts of other machines, as trees of files.
V1 = "35 32 0:32 {root} {point} rw,relatime - cgroup cgroup rw,memory\n"
V2 = "41 31 0:38 {root} {point} rw,relatime - cgroup2 cgroup2 rw\n"
OTHER = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n"


def machine(tmp_path: Path, groups: str, mount: str, root: str, below: str) -> tuple[Path, Path]:
    point = tmp_path / "sys fs"
    (point / below).mkdir(parents=True)
    own = tmp_path / "self"
    own.mkdir()
    (own / "cgroup").write_text(groups)
    escaped = str(point).replace(" ", "\\040")
    (own / "mountinfo").write_text(OTHER + mount.format(root=root, point=escaped))
    return tmp_path, point / below


@pytest.mark.parametrize(
    ("groups", "mount", "root", "below", "version"),
    [
        ("4:memory:/job/7\n1:cpu:/\n0::/\n", V1, "/", "job/7", 1),
        ("4:cpu,memory:/docker/ab/x\n", V1, "/docker/ab", "x", 1),
        ("4:memory:/docker/ab\n", V1, "/elsewhere", "", 1),
        ("0::/user.slice/session-1.scope\n", V2, "/", "user.slice/session-1.scope", 2),
    ],
)
def test_own_group_is_found(tmp_path, *, groups, mount, root, below, version):
    procfs, folder = machine(tmp_path, groups, mount, root, below)
    assert own_cgroup(procfs) == Cgroup(folder=folder, version=version)


@pytest.mark.parametrize("groups", ["", "0::/../outside\n", "1:cpu:/\n", "0::/gone\n"])
def test_no_group_is_found_where_there_is_none(tmp_path, groups):
    procfs, _ = machine(tmp_path, groups, V2, "/", "")
    assert own_cgroup(procfs) is None
    assert own_cgroup(tmp_path / "no-proc") is None


def test_v2_that_does_not_hand_the_controller_down_makes_no_group(tmp_path):
    (tmp_path / "cgroup.subtree_control").touch()  # and no memory.events appears below
    with pytest.raises(OSError, match=r"memory\.events"):
        Cgroup(folder=tmp_path, version=2).make("child")
    assert not (tmp_path / "child").exists()


def test_v2_files(tmp_path):
    group = Cgroup(folder=tmp_path, version=2)
    assert group.oom_kills() is None
    (tmp_path / "memory.events").write_text("low 0\noom 4\noom_kill 3\noom_group_kill 9\n")
    assert group.oom_kills() == 3
    for name in ("memory.max", "memory.swap.max", "memory.oom.group"):
        (tmp_path / name).touch()
    group.cap(4096)
    written = [(tmp_path / n).read_text() for n in ("memory.max", "memory.swap.max")]
    assert written == ["4096", "0"]
    assert (tmp_path / "memory.oom.group").read_text() == "0"
    (tmp_path / "memory.max").unlink()
    with pytest.raises(OSError, match=r"memory\.max"):
        group.cap(4096)

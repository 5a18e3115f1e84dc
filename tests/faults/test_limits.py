"""Limits of the machine and other users: processes, descriptors, shared memory, clocks, pids."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys

import pytest

from faults.cells import JOB, Cell, scenarios
from oomguard.run.events import Started

FLAGS = ("--per_device_train_batch_size", "8")
OOM_AT_5 = {"OOM_ABOVE": "4", "OOM_AT": "5"}
ROOT_ONLY = "root alone may do this"


def script(cell: Cell, code: str) -> tuple[str, ...]:
    (cell.folder / "job.py").write_text("import os, sys, time\n" + code)
    return (sys.executable, str(cell.folder / "job.py"), *FLAGS)


def needs(*command: str) -> None:
    """Skip where a command of the system is missing or not allowed."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip(ROOT_ONLY)


def a_limit_on_processes_is_the_jobs_own_failure(cell):
    needs("setpriv", "--reuid", "65534", "--clear-groups", "true")
    code = "import resource\nos.setuid(65534)\nresource.setrlimit(resource.RLIMIT_NPROC, (0, 0))\n"
    assert cell.launch(job=script(cell, code + "os.fork()")) == 1
    assert cell.kinds == ["not_oom"]
    assert "Resource temporarily unavailable" in cell.report["reason"]


def a_pid_that_is_somebody_elses_by_now_is_left_alone(cell):
    cell.launch(at="started", do="kill")
    (started,) = (event for event in cell.events if isinstance(event, Started))
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as other:
        try:
            events = cell.run / "events.jsonl"
            lines = events.read_text().splitlines(keepends=True)
            changed = [
                line.replace(f'"pid":{started.pid}', f'"pid":{other.pid}')
                if json.loads(line)["event"] == "started"
                else line
                for line in lines
            ]
            assert changed != lines
            events.write_text("".join(changed))
            assert cell.resume() == 0, cell.said
            assert other.poll() is None
        finally:
            other.kill()
    assert cell.is_trained()


#: A mount namespace of its own with a /dev/shm of 64 KiB, which is full.
FULL_SHM = """
import ctypes, mmap, signal, subprocess
if ctypes.CDLL(None, use_errno=True).unshare(0x20000): raise OSError(ctypes.get_errno(), 'unshare')
subprocess.run(['mount', '--make-rprivate', '/'], check=True)
subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', '/dev/shm'], check=True)
"""


#: Source: torch/utils/data/_utils/signal_handling.py and torch/csrc/DataLoader.cpp.
BUS_ERROR = (
    "DataLoader worker (pid 41) is killed by signal: Bus error. It is possible that dataloader's "
    "workers are out of shared memory. Please try to raise your shared memory limit."
)


def a_full_shared_memory_is_told_from_main_memory(cell):
    needs("unshare", "-m", "true")
    code = FULL_SHM + (
        "if sys.argv[2] != '8': sys.exit()\n"
        "worker = os.fork()\n"
        "if worker == 0:\n"
        "    with open('/dev/shm/batch', 'w+b') as file:\n"
        "        file.truncate(1 << 20)\n"
        "        mmap.mmap(file.fileno(), 1 << 20)[:] = bytes(1 << 20)\n"
        "    os._exit(0)\n"
        "_, status = os.waitpid(worker, 0)\n"
        "assert os.waitstatus_to_exitcode(status) == -signal.SIGBUS\n"
        f"raise RuntimeError({BUS_ERROR!r})\n"
    )
    cell.launch(job=script(cell, code))
    assert cell.kinds[0] == "shm_oom", cell.said
    assert "out of shared memory (/dev/shm)" in cell.said


def in_another_time(cell: Cell, seconds: int) -> tuple[str, ...]:
    """Return the usual job in a time namespace whose monotonic clock differs."""
    needs("unshare", "--time", "--monotonic", str(seconds), "--fork", "true")
    code = (
        "import subprocess\n"
        f"outside = ['unshare', '--time', '--monotonic', '{seconds}', '--fork']\n"
        f"done = subprocess.run([*outside, *{[str(word) for word in JOB[:2]]!r}, *sys.argv[1:]])\n"
        "sys.exit(done.returncode)\n"
    )
    (cell.folder / "outer.py").write_text("import sys\n" + code)
    return (sys.executable, str(cell.folder / "outer.py"), *JOB[2:])


def another_time(seconds: int):
    def a_clock(cell):
        cell.env = OOM_AT_5
        cell.launch(job=in_another_time(cell, seconds))
        assert cell.codes == [0], cell.said
        assert cell.kinds == ["device_oom", "ok"]
        assert cell.is_trained()
        times = [event.t for event in cell.events]
        assert times == sorted(times)

    ahead = "ahead" if seconds > 0 else "behind"
    a_clock.__name__ = f"a_job_whose_clock_is_{ahead}_is_followed"
    return a_clock


SCENARIOS = (
    a_limit_on_processes_is_the_jobs_own_failure,
    a_pid_that_is_somebody_elses_by_now_is_left_alone,
    a_full_shared_memory_is_told_from_main_memory,
    another_time(100_000),
    another_time(-1_000),
)
played, test_limits = scenarios(*SCENARIOS)


@pytest.mark.parametrize("count", [32, 64])
def test_few_descriptors_are_enough(tmp_path, count):
    (tmp_path / "job.py").write_text("for n in range(9): print('step', n)")
    words = ("launch", "--no-predict", "--name", "run", "--", sys.executable, "job.py", *FLAGS)
    done = subprocess.run(
        [sys.executable, "-m", "oomguard", *words],
        cwd=tmp_path, capture_output=True, check=False, text=True,
        env={**os.environ, "XDG_DATA_HOME": str(tmp_path)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (count, count)),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "trained, in 1 attempt" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason=ROOT_ONLY)
@pytest.mark.parametrize("what", ["file", "folder"])
def test_strategies_of_another_user_that_cannot_be_read_are_named(open_folder, what):
    mine = open_folder / what
    mine.mkdir()
    (mine / "001_mine.py").write_text("raise RuntimeError('this must not run')")
    mine.chmod(0o755)
    (mine if what == "folder" else mine / "001_mine.py").chmod(0o000)
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom oomguard.ladder.load import _files, _load\n"
        "from oomguard.errors import StrategyError\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: [_load(path, 'mine') for path in _files(Path(sys.argv[1]))]\n"
        "except StrategyError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(mine)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert str(mine) in done.stdout
    assert "Permission denied" in done.stdout
    assert "this must not run" not in done.stdout + done.stderr

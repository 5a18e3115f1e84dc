"""Starting an attempt: the command as asked, its environment, its files, or one clear error."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path

import psutil
import pytest

from oomguard import monitor
from oomguard.errors import FrameworkError, OomguardError, RunFolderError, UsageError
from oomguard.job.command import File
from oomguard.machine.cgroups import own_cgroup
from oomguard.process.limits import CapBy, Caps
from oomguard.units import MIB
from shell.process_attempts import WAIT, Attempts, make_attempts, unique

attempts = pytest.fixture(make_attempts)
ODD = "a b'c\"d $HOME ü\n\t*"
SHOW = "import json, os, sys; print(json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]))"


def shown(attempts: Attempts, *arguments: str, **options: object) -> tuple[list, str, dict]:
    attempt = attempts.python(SHOW, *arguments, **options)
    assert attempt.exit() == 0, attempt.output
    argv, cwd, environ = json.loads(attempt.output)
    return argv, cwd, environ


@pytest.mark.parametrize(
    ("code", "expected"),
    [("raise SystemExit(3)", 3), ("pass", 0), ("import os; os.kill(os.getpid(), 9)", -9)],
)
def test_exit_code_is_the_commands_own_and_negative_for_a_signal(attempts, code, expected):
    assert attempts.python(code).exit() == expected


def test_arguments_and_folder_arrive_unchanged(attempts, tmp_path):
    folder = tmp_path / ODD.replace("\n", "")
    folder.mkdir()
    argv, cwd, _ = shown(attempts, ODD, "", "--x={}", cwd=folder)
    assert argv == [ODD, "", "--x={}"]
    assert cwd == str(folder)


def test_environment_is_ours_and_the_commands_and_nothing_else(attempts, monkeypatch):
    for name in ("LC_ALL", "LC_CTYPE", "LANG", "PYTHONUNBUFFERED"):
        monkeypatch.delenv(name, raising=False)  # a C locale, where Python adds LC_CTYPE itself
    monkeypatch.setenv("OOMGUARD_SOCKET", "/of/an/outer/run")
    attempt = attempts.start("env", "-0", env={"ASKED": ODD})
    assert attempt.exit() == 0
    found = dict(item.split("=", 1) for item in attempt.output.decode().split("\0") if item)
    mark = found.pop("OOMGUARD_MARK")
    assert mark == unique(f"{attempts.folder.name}-1")
    ours = {name: value for name, value in os.environ.items() if name != "OOMGUARD_SOCKET"}
    assert found == {**ours, "ASKED": ODD, "PYTHONUNBUFFERED": "1"}


def test_unbuffered_can_be_overridden(attempts):
    assert shown(attempts, env={"PYTHONUNBUFFERED": ""})[2]["PYTHONUNBUFFERED"] == ""


def test_the_monitor_comes_first_on_the_python_path_and_keeps_what_was_there(attempts, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"/of/the/user:{monitor.PATH}:/more")
    caps = Caps(gpu_memory_bytes=5)
    environ = shown(attempts, monitored=True, caps=caps)[2]
    assert environ["PYTHONPATH"] == f"{monitor.PATH}:/of/the/user:/more"
    assert environ["OOMGUARD_GPU_MEMORY"] == "5"
    assert Path(environ["OOMGUARD_BUFFER"]).is_dir()
    assert len(environ["OOMGUARD_SOCKET"]) < 108


def test_the_monitor_alone_leaves_no_empty_entry_on_the_python_path(attempts, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert ":" not in shown(attempts, monitored=True)[2]["PYTHONPATH"]


def test_freed_tensors_are_given_back_under_a_host_cap(attempts, monkeypatch):
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    caps = Caps(host_memory_bytes=4096 * MIB)
    assert "MALLOC_MMAP_THRESHOLD_" not in shown(attempts)[2]
    assert shown(attempts, caps=caps)[2]["MALLOC_MMAP_THRESHOLD_"] == "262144"
    asked = shown(attempts, caps=caps, env={"MALLOC_MMAP_THRESHOLD_": "1"})[2]
    assert asked["MALLOC_MMAP_THRESHOLD_"] == "1"


def test_rlimit_cap_makes_a_large_allocation_fail(attempts):
    caps = Caps(host_memory_bytes=256 * MIB, host_memory_by=CapBy.RLIMIT)
    small = attempts.python("bytearray(64 << 20); print('fine')", caps=caps)
    assert (small.exit(), small.output) == (0, b"fine\n")
    large = attempts.python("bytearray(512 << 20)", caps=caps)
    assert large.exit() == 1
    assert b"MemoryError" in large.output


def test_signals_that_we_ignore_or_block_are_normal_in_the_job(attempts):
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    try:
        attempt = attempts.start("grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status")
        assert attempt.exit() == 0
    finally:
        signal.signal(signal.SIGUSR1, before)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR2])
    masks = [int(line.split()[1], 16) for line in attempt.output.splitlines()]
    # SIGHUP is as `nohup` has set it, if it has; the C library keeps two signals to itself.
    ours = sum(1 << (one - 1) for one in signal.valid_signals() - {signal.SIGHUP})
    assert ours >> (signal.SIGUSR1 - 1) & 1, "the mask has what was set above"
    assert [mask & ours for mask in masks] == [0, 0]


def test_job_leads_a_session_of_its_own_and_has_no_input(attempts):
    attempt = attempts.python("import os, sys; print(os.getsid(0), repr(sys.stdin.read()))")
    assert attempt.exit() == 0
    assert attempt.output == f"{attempt.running.pid} ''\n".encode()


def test_job_outlives_the_thread_that_started_it(attempts, tmp_path):
    code = "import os, sys, time\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.01)"
    got = []
    thread = threading.Thread(target=lambda: got.append(attempts.python(code, str(tmp_path / "x"))))
    thread.start()
    thread.join()
    (tmp_path / "x").touch()
    assert got[0].exit() == 0


def test_files_are_written_first_whole_and_in_order(attempts, tmp_path):
    old, new = tmp_path / "train.yaml", tmp_path / "deep" / "er" / "ds config ü.json"
    old.write_text("before")
    held = old.open()
    files = (File(path=str(old), text="a: ü\r\n"), File(path=str(new), text="{}"))
    attempt = attempts.start("cat", str(old), str(new), files=files)
    assert (attempt.exit(), attempt.output) == (0, "a: ü\r\n{}".encode())
    assert held.read() == "before"  # replaced and not overwritten
    held.close()
    assert [path.name for path in new.parent.iterdir()] == [new.name]


def test_a_file_that_cannot_be_written_starts_nothing(attempts, tmp_path):
    (tmp_path / "file").touch()
    files = (File(path=str(tmp_path / "file" / "x.yaml"), text=""),)
    with pytest.raises(RunFolderError, match=r"x\.yaml"):
        attempts.start("touch", str(tmp_path / "started"), files=files)
    assert not (tmp_path / "started").exists()


def script(tmp_path: Path, text: str, mode: int) -> str:
    path = tmp_path / "script"
    path.write_text(text)
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize(
    ("text", "mode", "what", "next_step"),
    [
        ("#!/bin/sh\n", 0o644, "Permission denied", "chmod"),
        ("#!/no/such/python\n", 0o755, "No such file", "first line"),
        ("echo hi\n", 0o755, "Exec format error", "#!"),
    ],
)
def test_a_script_that_cannot_run_is_a_clear_error(
    attempts, tmp_path, *, text, mode, what, next_step
):
    with pytest.raises(FrameworkError, match=what) as caught:
        attempts.start(script(tmp_path, text, mode))
    assert next_step in caught.value.next_step


def test_a_command_that_is_not_there_is_a_clear_error(attempts):
    with pytest.raises(FrameworkError, match=r"'no-such-trainer'.*No such file") as caught:
        attempts.start("no-such-trainer", monitored=True)
    assert "Install" in caught.value.next_step


@pytest.mark.parametrize("bad", ["a\0b", "x" * (1 << 18)])
def test_an_argument_that_no_program_can_take_is_a_clear_error(attempts, bad):
    with pytest.raises(FrameworkError, match="cannot start"):
        attempts.start("true", bad)


def test_a_missing_folder_is_named(attempts, tmp_path):
    with pytest.raises(UsageError, match=r"gone.*working directory"):
        attempts.start("true", cwd=tmp_path / "gone")


def test_a_gpu_cap_needs_the_monitor(attempts):
    with pytest.raises(UsageError, match="capped by the monitor"):
        attempts.start("true", caps=Caps(gpu_memory_bytes=1))


def left_behind() -> tuple[object, ...]:
    own = own_cgroup()
    me = psutil.Process()
    groups = sorted(own.folder.glob(f"oomguard-{os.getpid()}-*")) if own else []
    return threading.active_count(), me.num_fds(), me.children(), groups


def test_a_start_that_fails_half_way_leaves_no_process(attempts, monkeypatch):
    def no_thread(**_: object) -> None:
        raise RuntimeError("can't start new thread")

    before = left_behind()
    monkeypatch.setattr("oomguard.process.start.Tee", no_thread)
    with pytest.raises(RuntimeError, match="new thread"):
        attempts.python(WAIT, monitored=True)
    assert left_behind() == before


@pytest.mark.parametrize("argv", [("no-such-trainer",), (sys.executable, "-c", WAIT)])
def test_nothing_is_left_behind(attempts, tmp_path, monkeypatch, argv):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = left_behind()
    try:
        attempts.start(*argv, monitored=True).running.close()
    except OomguardError:
        assert argv == ("no-such-trainer",)
    assert left_behind() == before
    assert not list(tmp_path.glob("oomguard-*"))

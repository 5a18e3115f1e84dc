"""Stopping an attempt: asked first, killed when the time is over, nothing left in any case."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from oomguard.machine.cgroups import own_cgroup
from oomguard.process.members import MARK, Members, read_row
from shell.process_attempts import PATIENCE_S, STUBBORN, WAIT, make_attempts

attempts = pytest.fixture(make_attempts)
LONG_S, SHORT_S = PATIENCE_S, 0.1
#: Of the kernel: the pid that it gave last; the next one is searched from there.
LAST_PID = Path("/proc/sys/kernel/ns_last_pid")

TREE = """
import os, sys, time
for number in range(4):
    if os.fork() == 0:
        if number % 2: os.setsid()
        if os.fork() == 0: os.execlp('sleep', 'sleep', '600')
        break
os.write(1, b'up\\n')
time.sleep(600)
"""
# Forks, makes a session, forks again and drops the environment: a daemon by the book.
DAEMON = """
import os, sys
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        argv = ['sh', '-c', 'echo pid $$ up; exec sleep 600']
        os.execve('/bin/sh', argv, {'PATH': os.environ['PATH']})
    os._exit(0)
os.wait()
"""
PARENT_AND_CHILD = """
import subprocess
trap = "trap 'echo child got it; exit 0' INT; echo child up; while :; do sleep 0.02; done"
child = subprocess.Popen(['sh', '-c', trap])
try:
    print('parent up')
    child.wait()
except KeyboardInterrupt:
    print('parent got it')
    child.wait()
"""
SUPERVISOR = """
import os, sys
from pathlib import Path
from oomguard.job.command import Command
from oomguard.process.limits import Caps
from oomguard.process.start import start
folder = sys.argv[1]
command = Command(argv=('sleep', '600'), cwd=folder)
mark = f'supervisor-{os.getpid()}'
running = start(command, log=Path(folder, 'log'), caps=Caps(), monitored=False, mark=mark, emit=id)
print(running.pid, flush=True)
sys.stdin.read()
"""


def gone(pid: int) -> bool:
    row = read_row(pid)
    return row is None or row.zombie


def test_an_obedient_job_is_asked_and_not_killed(attempts):
    attempt = attempts.python("print('ready');" + WAIT)
    attempt.wait_output(b"ready")
    report = attempt.running.stop(grace_s=LONG_S)
    assert (report.asked, report.killed, report.left) == (1, 0, ())
    assert attempt.exit() == -signal.SIGTERM


def test_a_stubborn_job_is_killed_when_the_grace_is_over(attempts):
    attempt = attempts.python(STUBBORN)
    attempt.wait_output(b"ready")
    report = attempt.running.stop(grace_s=SHORT_S)
    assert (report.asked, report.killed, report.left) == (1, 1, ())
    assert report.seconds >= SHORT_S
    assert attempt.exit() == -signal.SIGKILL


def test_a_job_that_is_suspended_can_still_obey(attempts):
    attempt = attempts.python("print('ready');" + WAIT)
    attempt.wait_output(b"ready")
    attempt.running.signal(signal.SIGSTOP)
    assert attempt.running.stop(grace_s=LONG_S).killed == 0
    assert attempt.exit() == -signal.SIGTERM


def test_stopping_again_and_after_the_end_finds_nothing(attempts):
    attempt = attempts.start("true")
    assert attempt.exit() == 0
    for report in (attempt.running.stop(grace_s=LONG_S), attempt.running.stop(grace_s=0)):
        assert (report.asked, report.killed, report.left) == (0, 0, ())


def test_a_second_stop_brings_the_shared_deadline_forward(attempts):
    attempt = attempts.python(STUBBORN)
    attempt.wait_output(b"ready")
    patient = threading.Thread(target=attempt.running.stop, kwargs={"grace_s": 3600})
    patient.start()
    attempt.running.stop(grace_s=0)
    patient.join(PATIENCE_S)
    assert not patient.is_alive()
    assert attempt.exit() == -signal.SIGKILL


@pytest.mark.parametrize("with_cgroup", [True, False])
def test_every_process_of_a_tree_is_found_and_gone(attempts, monkeypatch, with_cgroup):
    if not with_cgroup:
        monkeypatch.setattr("oomguard.process.start.own_cgroup", lambda: None)
    attempt = attempts.python(TREE)
    attempt.wait_output(b"up\nup\nup\nup\nup\n")
    everyone = attempt.running.alive()
    assert len(everyone) == 9
    report = attempt.running.stop(grace_s=LONG_S)
    assert (report.asked, report.killed) == (9, 0)
    assert attempt.running.alive() == ()
    assert [pid for pid in everyone if read_row(pid)] == []  # not even a zombie


@pytest.mark.parametrize("with_cgroup", [True, False])
def test_a_daemon_is_found_and_gone(attempts, monkeypatch, with_cgroup):
    if not with_cgroup:
        monkeypatch.setattr("oomguard.process.start.own_cgroup", lambda: None)
    attempt = attempts.python(DAEMON)
    assert attempt.exit() == 0
    attempt.wait_output(b"up\n")
    daemon = int(attempt.output.split()[1])
    assert attempt.running.alive() == (daemon,)
    attempt.running.stop(grace_s=LONG_S)
    assert read_row(daemon) is None


def test_processes_of_others_are_let_alone(attempts):
    older = subprocess.Popen(["sleep", "600"], start_new_session=True)
    attempt, other = attempts.python(WAIT), attempts.python(WAIT)
    helper = subprocess.Popen(["sleep", "600"])
    try:
        assert attempt.running.stop(grace_s=LONG_S).asked == 1
        assert other.running.alive() == (other.running.pid,)
        assert (older.poll(), helper.poll()) == (None, None)
    finally:
        for process in (older, helper):
            process.kill()
            process.wait()


def test_a_child_of_ours_from_the_same_tick_is_no_orphan_of_the_attempt(attempts):
    older = subprocess.Popen(["sleep", "600"], start_new_session=True)
    attempt = attempts.python(WAIT)
    try:
        leader, tick = read_row(attempt.running.pid), read_row(older.pid)
        assert leader is not None
        assert tick is not None
        same = Members(leader=replace(leader, start=tick.start), mark="none", cgroup=None)
        earlier = Members(leader=replace(leader, start=tick.start - 1), mark="none", cgroup=None)
        assert older.pid not in {process.pid for process in same.scan()}
        assert older.pid in {process.pid for process in earlier.scan()}
    finally:
        older.kill()
        older.wait()


def test_a_pid_that_was_used_again_is_not_ours(attempts):
    attempt = attempts.python(WAIT)
    now = read_row(attempt.running.pid)
    assert now is not None
    for start in (now.start - 1, now.start + 1):
        earlier = Members(leader=replace(now, start=start), mark="none", cgroup=None)
        assert earlier.scan() == set()
    assert len(Members(leader=now, mark="none", cgroup=None).scan()) == 1


def test_a_signal_reaches_the_whole_group(attempts):
    attempt = attempts.python(PARENT_AND_CHILD)
    attempt.wait_output(b"child up")
    attempt.wait_output(b"parent up")
    attempt.running.signal(signal.SIGINT)
    assert attempt.exit() == 0
    assert b"child got it" in attempt.output
    assert b"parent got it" in attempt.output


def test_a_signal_after_the_end_reaches_who_is_left(attempts):
    attempt = attempts.start("sh", "-c", "sleep 600 & exit 0")
    assert attempt.exit() == 0
    (left,) = attempt.running.alive()
    attempt.running.signal(signal.SIGTERM)
    with suppress(psutil.NoSuchProcess):
        psutil.Process(left).wait(PATIENCE_S)
    assert attempt.running.alive() == ()


def test_closing_kills_what_is_left(attempts):
    attempt = attempts.python(STUBBORN)
    attempt.wait_output(b"ready")
    attempt.running.close()
    attempt.running.close()
    assert read_row(attempt.running.pid) is None
    assert attempt.exit() == -signal.SIGKILL


def test_killing_the_supervisor_leaves_no_direct_child(attempts, tmp_path):
    supervisor = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with supervisor:
        child = int(supervisor.stdout.readline())
        assert not gone(child)
        handle = psutil.Process(child)
        os.kill(supervisor.pid, signal.SIGKILL)
    with suppress(psutil.NoSuchProcess):
        handle.wait(PATIENCE_S)
    assert gone(child)
    attempts.start("true").exit()  # the next start clears away its cgroup
    own = own_cgroup()
    assert own is None or list(own.folder.glob(f"oomguard-{supervisor.pid}-*")) == []


def reusing(pid: int) -> subprocess.Popen[bytes]:
    """Start a stranger that the kernel gives a pid of before, or skip."""
    for _ in range(100):  # other processes may be given it in between
        try:
            LAST_PID.write_text(str(pid - 1))
        except OSError:
            pytest.skip("the next pid cannot be chosen here")
        stranger = subprocess.Popen(["sleep", "600"], env={"PATH": os.environ["PATH"]})
        if stranger.pid == pid:
            return stranger
        stranger.kill()
        stranger.wait()
    pytest.skip("the pid was not given again")


def test_a_stranger_that_is_given_the_pid_of_a_process_of_the_job_is_left_alone():
    env = {"PATH": os.environ["PATH"], MARK: "mark-of-reuse"}
    leader, worker = (
        subprocess.Popen(["sleep", "600"], env=env, start_new_session=True) for _ in range(2)
    )
    members = Members(leader=read_row(leader.pid), mark="mark-of-reuse", cgroup=None)
    before = members.scan()
    assert {one.pid for one in before} == {leader.pid, worker.pid}
    worker.kill()
    worker.wait()
    time.sleep(0.05)  # start times are told in ticks of 10 ms
    stranger = reusing(worker.pid)
    try:
        assert {one.pid for one in members.scan()} == {leader.pid}
        (handle,) = (one for one in before if one.pid == worker.pid)
        with pytest.raises(psutil.NoSuchProcess):
            handle.kill()
        assert stranger.poll() is None
    finally:
        for process in (leader, stranger):
            process.kill()
            process.wait()
        members.forget()

"""Ctrl-C, SIGTERM and kill -9 at each state of a run: it ends as it should, and nobody is left."""

from __future__ import annotations

import os
import signal
import subprocess
from itertools import product

import pytest

from shell.launches import (
    CAP_BYTES,
    OOMGUARD,
    PATIENCE_S,
    REPORT,
    Live,
    is_gone,
    launch,
    make_live,
    wait_until,
    write_job,
)

live = pytest.fixture(make_live)

STUBBORN = """
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
"""
#: The states of a run: what the job does then, the text after which it is in that state.
LOADING = "say('loading'); signal.pause()"
PRINTING = "while True: say('printing ' * 500)"
IN_A_STEP = REPORT + "step(1); say('stepping'); signal.pause()"
# The shortage is told from inside, and the job does not want to end.
STOPPING = (
    STUBBORN
    + REPORT
    + """
say('stopping')
report("oom", exception="RuntimeError", message="no memory", uncaught=True, frames=[],
       memory=None, shapes=None, device="cpu", requested_bytes=5, capacity_bytes=None)
while True: signal.pause()
"""
)
# The direct child has ended; what it has left is given some time.
LEFTOVERS = (
    STUBBORN
    + """
if os.fork() == 0:
    os.close(1); os.close(2)
    while True: signal.pause()
say('leaving'); raise MemoryError
"""
)
STATES = {
    "loading": LOADING,
    "printing": PRINTING,
    "stepping": IN_A_STEP,
    "stopping": STOPPING,
    "leaving": LEFTOVERS,
}


def ctrl_c(run: Live) -> None:
    run.signal_group(signal.SIGINT)


def sigint(run: Live) -> None:
    run.signal(signal.SIGINT)


def sigterm(run: Live) -> None:
    run.signal(signal.SIGTERM)


@pytest.mark.parametrize(
    ("state", "how"),
    [
        *product(["loading", "printing", "stepping", "stopping"], [ctrl_c, sigint, sigterm]),
        ("leaving", ctrl_c),  # what is left gets its time in any case
    ],
)
def test_asked_to_stop_it_ends_interrupted_and_nobody_is_left(live, state, how):
    run = live(STATES[state])
    run.wait_for(state)
    if state == "stopping":
        wait_until(lambda: b'"stopping"' in (run.run / "events.jsonl").read_bytes())
    how(run)
    ended = run.ended()
    assert run.left() == []
    assert ended.code == 130, ended.err
    assert ended.report["status"] == "interrupted"
    assert ended.micro_batches == [16]
    assert ended.events()[-1]["status"] == "interrupted"
    assert "oomguard interrupted: signal" in ended.err


def test_the_signal_itself_reaches_the_job_which_may_write_a_checkpoint_first(live, tmp_path):
    code = """
def save(number, frame):
    say('saving'); time.sleep(0.3); open('checkpoint', 'w').close(); sys.exit(1)
signal.signal(signal.SIGINT, save)
say('ready')
while True: signal.pause()
"""
    run = live(code)
    run.wait_for("ready")
    run.signal(signal.SIGINT)
    assert run.ended().code == 130
    assert (tmp_path / "checkpoint").exists()


def test_a_job_that_ends_well_when_it_is_told_to_stop_was_interrupted_all_the_same(live):
    code = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); say('ready'); signal.pause()"
    run = live(code)
    run.wait_for("ready")
    run.signal(signal.SIGTERM)
    ended = run.ended()
    assert (ended.code, ended.report["status"]) == (130, "interrupted")
    assert ended.report["attempts"][0]["returncode"] == 0


def test_a_second_ctrl_c_ends_a_job_that_does_not_want_to(live):
    run = live(STUBBORN + "say('ready')\nwhile True: signal.pause()")
    run.wait_for("ready")
    run.signal_group(signal.SIGINT)
    wait_until(lambda: b'"signalled"' in (run.run / "events.jsonl").read_bytes())
    assert run.process.poll() is None
    run.signal_group(signal.SIGINT)
    ended = run.ended()
    assert (ended.code, run.left()) == (130, [])
    # Well before the grace of the first one is over.
    assert ended.report["attempts"][0]["seconds"] < 20


@pytest.mark.parametrize("state", ["loading", "printing", "stepping"])
def test_a_kill_of_the_job_is_no_shortage_and_ends_the_run(live, state):
    run = live(f"say('pid', os.getpid())\n{STATES[state]}")
    pid = int(run.word_after("pid "))
    run.wait_for(state)
    os.kill(pid, signal.SIGKILL)
    ended = run.ended()
    assert (ended.code, ended.micro_batches) == (1, [16])
    assert run.left() == []
    assert ended.report["attempts"][0]["returncode"] == -9
    assert "nothing shows that memory was the reason" in ended.err


def test_a_kill_of_a_job_that_is_being_stopped_changes_nothing(live):
    run = live("say('pid', os.getpid())\nif micro < 16: sys.exit()\n" + STOPPING)
    pid = int(run.word_after("pid "))
    wait_until(lambda: b'"stopping"' in (run.run / "events.jsonl").read_bytes())
    os.kill(pid, signal.SIGKILL)
    ended = run.ended()
    assert (ended.code, ended.micro_batches) == (0, [16, 8])


# Forks, makes a session, forks again and drops the environment: a daemon by the book.
DAEMON = """
reader, writer = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        line = 'echo $$ >&%d; while :; do sleep 1; done' % writer
        os.set_inheritable(writer, True)
        os.execve('/bin/sh', ['sh', '-c', line], {'PATH': os.environ['PATH']})
    os._exit(0)
os.wait()
daemon = int(os.read(reader, 20))
"""


def test_a_daemon_of_an_attempt_is_gone_before_the_next_one_starts(tmp_path):
    code = (
        DAEMON
        + """
if os.path.exists('before'):
    before = int(open('before').read())
    say('before:', 'there' if os.path.exists(f'/proc/{before}') else 'gone')
open('before', 'w').write(str(daemon))
hold(micro)
say({'train_runtime': 0.1})
"""
    )
    ended = launch(tmp_path, "--host-memory", str(CAP_BYTES), "--", *write_job(tmp_path, code))
    assert (ended.code, ended.micro_batches) == (0, [16, 8, 4])
    assert [line for line in ended.out.splitlines() if "before:" in line] == ["before: gone"] * 2
    assert is_gone(int((tmp_path / "before").read_text()))


@pytest.mark.parametrize("children", ["", "os.setsid()"])
def test_workers_end_with_the_job(live, children):
    code = f"""
for _ in range(3):
    if os.fork() == 0:
        {children or "pass"}
        while True: signal.pause()
say('up'); signal.pause()
"""
    run = live(code)
    run.wait_for("up")
    assert len(run.left()) == 4
    run.signal(signal.SIGTERM)
    assert run.ended().code == 130
    assert run.left() == []


@pytest.mark.parametrize("state", ["loading", "printing", "stepping"])
def test_when_oomguard_itself_is_killed_its_job_ends(live, state):
    run = live(STATES[state])
    run.wait_for(state)
    run.signal(signal.SIGKILL)
    assert run.ended().code == -9
    wait_until(lambda: run.left() == [])


@pytest.mark.parametrize("session", ["", "os.setsid()"])
def test_and_so_do_its_workers(live, session):
    code = f"""
for _ in range(3):
    if os.fork() == 0:
        {session or "pass"}
        while True: signal.pause()
say('up'); signal.pause()
"""
    run = live(code)
    run.wait_for("up")
    run.signal(signal.SIGKILL)
    assert run.ended().code == -9
    wait_until(lambda: run.left() == [])


def test_ctrl_c_before_the_first_attempt_starts_nothing(tmp_path):
    slow = tmp_path / "python"
    slow.write_text("#!/bin/sh\necho here > asked\nsleep 600\n")
    slow.chmod(0o755)
    (tmp_path / "job.py").touch()
    with subprocess.Popen(
        [*OOMGUARD, "launch", "--python", str(slow), "--", "python", "job.py"],
        cwd=tmp_path,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what it puts in the background with SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  one thread
    ) as process:
        wait_until((tmp_path / "asked").exists)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert not (tmp_path / "oomguard-runs").exists()

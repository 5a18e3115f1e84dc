"""The tee: every byte, at once, to the log and to the supervisor, in bounded memory."""

from __future__ import annotations

import threading
from pathlib import Path

import psutil
import pytest

from oomguard.errors import RunFolderError
from oomguard.job.command import Command
from oomguard.process.limits import Caps
from oomguard.process.messages import Output, ProcessExited
from oomguard.process.start import start
from oomguard.units import MIB
from shell.process_attempts import PATIENCE_S, WAIT, make_attempts, unique

attempts = pytest.fixture(make_attempts)


def test_both_streams_come_merged_in_order_and_lie_in_the_log(attempts):
    attempt = attempts.start("sh", "-c", "echo one; echo two >&2; echo three")
    assert attempt.exit() == 0
    assert attempt.output == b"one\ntwo\nthree\n"
    assert attempt.log.read_bytes() == attempt.output
    assert attempt.running.log_error is None


def test_a_line_without_its_end_arrives_while_the_job_waits(attempts):
    attempt = attempts.python("print('50%', end='\\r');" + WAIT)
    attempt.wait_output(b"50%\r")
    assert attempt.log.read_bytes() == b"50%\r"
    assert attempt.running.alive() == (attempt.running.pid,)


def test_binary_output_is_kept_byte_for_byte(attempts, tmp_path):
    data = bytes(range(256)) * 1200  # random bytes may look like a secret, which is masked
    (tmp_path / "data").write_bytes(data)
    attempt = attempts.start("cat", str(tmp_path / "data"))
    assert attempt.exit() == 0
    assert attempt.output == data
    assert attempt.log.read_bytes() == data


def test_100_mb_without_a_newline_pass_in_bounded_memory(tmp_path):
    me, sizes, ended = psutil.Process(), [0, 0], threading.Event()
    before_bytes = me.memory_info().rss

    def emit(event: object) -> None:
        if isinstance(event, Output):
            sizes[0] += len(event.data)
            sizes[1] = max(sizes[1], me.memory_info().rss - before_bytes)
        elif isinstance(event, ProcessExited):
            ended.set()

    command = Command(argv=("head", "-c", "100000000", "/dev/zero"), cwd=str(tmp_path))
    running = start(
        command,
        log=tmp_path / "log.txt",
        caps=Caps(),
        monitored=False,
        mark=unique("big"),
        emit=emit,
    )
    assert ended.wait(PATIENCE_S)
    running.close()
    assert sizes[0] == (tmp_path / "log.txt").stat().st_size == 100_000_000
    assert sizes[1] < 16 * MIB


def test_a_slow_supervisor_holds_the_job_back_and_loses_nothing(tmp_path):
    go, ended, got = threading.Event(), threading.Event(), []

    def emit(event: object) -> None:
        assert go.wait(PATIENCE_S)
        got.append(len(event.data) if isinstance(event, Output) else 0)
        if isinstance(event, ProcessExited):
            ended.set()

    log = tmp_path / "log.txt"
    command = Command(argv=("head", "-c", "5000000", "/dev/zero"), cwd=str(tmp_path))
    running = start(command, log=log, caps=Caps(), monitored=False, mark=unique("slow"), emit=emit)
    assert running.alive() == (running.pid,)  # the pipe is far smaller than what it prints
    assert log.stat().st_size <= MIB
    go.set()
    assert ended.wait(PATIENCE_S)
    running.close()
    assert sum(got) == log.stat().st_size == 5_000_000


def test_the_end_waits_for_output_that_a_slow_supervisor_has_not_taken(tmp_path):
    go, ended, got = threading.Event(), threading.Event(), []

    def emit(event: object) -> None:
        if isinstance(event, ProcessExited):
            ended.set()
        else:
            assert go.wait(PATIENCE_S)
            got.append(event.data)

    # The grandchild holds the pipe: its end does not tell that all was read.
    command = Command(argv=("sh", "-c", "sleep 600 & echo last words"), cwd=str(tmp_path))
    log = tmp_path / "log.txt"
    running = start(command, log=log, caps=Caps(), monitored=False, mark=unique("words"), emit=emit)
    assert not ended.wait(1.0)
    go.set()
    assert ended.wait(PATIENCE_S)
    assert b"".join(got) == b"last words\n"
    running.close()


def test_a_log_that_cannot_be_written_does_not_stop_the_job(attempts):
    attempt = attempts.start("head", "-c", "200000", "/dev/zero", log=Path("/dev/full"))
    assert attempt.exit() == 0
    assert len(attempt.output) == 200_000
    assert attempt.running.log_error == "No space left on device"


def test_a_log_that_cannot_be_opened_starts_nothing(attempts, tmp_path):
    with pytest.raises(RunFolderError, match="Is a directory"):
        attempts.start("touch", str(tmp_path / "started"), log=tmp_path)
    assert not (tmp_path / "started").exists()


def test_the_end_is_told_though_a_grandchild_holds_the_pipe(attempts):
    attempt = attempts.start("sh", "-c", "sleep 600 & head -c 300000 /dev/zero; exit 7")
    assert attempt.exit() == 7
    assert len(attempt.output) == 300_000  # all of it before the end
    assert len(attempt.running.alive()) == 1


def test_what_a_grandchild_prints_later_still_comes(attempts, tmp_path):
    wait = f"while [ ! -e '{tmp_path}/go' ]; do sleep 0.02; done; echo late"
    attempt = attempts.start("sh", "-c", f"({wait}) & exit 0")
    assert attempt.exit() == 0
    (tmp_path / "go").touch()
    attempt.wait_output(b"late\n")
    assert attempt.log.read_bytes() == b"late\n"

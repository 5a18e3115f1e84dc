"""What a launch prints on a terminal, through a pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pyte
import pytest

from shell.launches import REPORT, SETUP

JOB = """
import sys
def train(depth, size):
    return step(depth, size)
def step(depth, size):
    if depth > 1:
        return train(depth - 1, size)
    raise RuntimeError(f"CUDA out of memory. Tried to allocate {size}.00 GiB")
size = int(sys.argv[sys.argv.index("--per_device_train_batch_size") + 1])
if size > 2:
    train(10, size)
print("{'train_runtime': 1.0}")
"""
COMMAND = ("python3", "train.py", "--per_device_train_batch_size", "8")
SHORT = "lines as before; the log has them"


#: Runs out of memory with 16 samples; with fewer it takes 30 steps and prints a line in each.
STEPS = (
    SETUP
    + REPORT
    + """
if micro > 8:
    sys.exit("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.")
report("training", samples=micro, short=False, counted_by="trainer", dataset_samples=480,
       batches=60, drop_last=False, total_steps=30, warmup_steps=0, accumulation=accumulation)
for number in range(1, 31):
    step(number)
    say("loss of step", number)
    time.sleep(0.02)
report("trained", 30, completed=True)
"""
)
ROWS, COLUMNS = 24, 120


def on_a_terminal(folder: Path, *words: str, rows: int = ROWS, term: str = "xterm") -> str:
    """Run oomguard with a terminal as its output, and return what is written there."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, COLUMNS, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "oomguard", *words],
        stdout=theirs,
        stderr=theirs,
        cwd=folder,
        env={**os.environ, "TERM": term},
    )
    os.close(theirs)
    shown = b""
    try:
        while data := os.read(ours, 1 << 16):
            shown += data
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert process.wait() == 0, shown
    return shown.decode()


@pytest.mark.parametrize(("more", "shortened"), [((), 1), (("--verbose",), 0)])
def test_a_traceback_of_a_later_attempt_is_shortened(
    tmp_path: Path, more: tuple[str, ...], shortened: int
) -> None:
    (tmp_path / "train.py").write_text(JOB)
    ladder = ("--ladder", "halve_micro_batch", "--no-predict", "--name", "run")
    shown = on_a_terminal(tmp_path, "launch", *ladder, *more, "--", *COMMAND)
    assert shown.count(SHORT) == shortened
    assert shown.count("in train\r\n") == 10 * (2 - shortened)
    assert "Tried to allocate 8.00 GiB" in shown
    assert "Tried to allocate 4.00 GiB" in shown
    second = tmp_path / "oomguard-runs" / "run" / "attempts" / "002" / "log.txt"
    assert second.read_text().count("in train\n") == 10


def launched(folder: Path, **terminal: object) -> str:
    (folder / "train.py").write_text(STEPS)
    words = ("--ladder", "halve_micro_batch", "--no-predict", "--name", "run")
    command = (sys.executable, "train.py", "--per_device_train_batch_size", "16")
    return on_a_terminal(folder, "launch", *words, "--", *command, **terminal)


def test_the_last_row_says_how_far_the_run_is_and_is_given_back(tmp_path: Path) -> None:
    shown = launched(tmp_path)
    screen = pyte.Screen(COLUMNS, ROWS)
    stream, last_rows, scrolled = pyte.Stream(screen), set(), set()
    for piece in shown.splitlines(keepends=True):
        stream.feed(piece)
        last_rows.add(screen.display[-1].strip())
        scrolled.update(row.strip() for row in screen.display[:-1])
    assert "oomguard attempt 1  starting" in last_rows
    followed = [row for row in last_rows if row.startswith("oomguard attempt 2  step ")]
    assert any("of 30" in row for row in followed)
    assert all("micro_batch 16 -> 8, accumulation 1 -> 2" in row for row in followed)
    assert {f"loss of step {number}" for number in range(1, 31)} <= scrolled
    assert screen.margins is None
    assert "attempt 2  step" not in "".join(screen.display)


@pytest.mark.parametrize("terminal", [{"term": "dumb"}, {"rows": 8}])
def test_a_terminal_that_cannot_or_is_small_has_no_such_row(
    tmp_path: Path, terminal: dict[str, object]
) -> None:
    shown = launched(tmp_path, **terminal)
    assert "\x1b7" not in shown
    assert "attempt 2: micro batch 8, accumulation 2" in shown

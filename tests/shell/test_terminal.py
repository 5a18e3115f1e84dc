"""What a launch prints on a terminal, through a pseudo-terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

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


def on_a_terminal(folder: Path, *words: str) -> str:
    """Run oomguard with a terminal as its output, and return what is shown there."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "oomguard", *words], stdout=theirs, stderr=theirs, cwd=folder
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

"""What the tests of `oomguard launch` share: runs of the real command, and who is left of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oomguard.process.members import mark_of

PATIENCE_S = 60.0  # how long a test waits for what has to come; no test expects a duration
OOMGUARD = (sys.executable, "-m", "oomguard")
#: At the cap 16 and 8 samples are too many, 4 fit: an interpreter takes less than half a sample.
SAMPLE_BYTES = 32 << 20
CAP_BYTES = 6 * SAMPLE_BYTES
#: What else the default ladder holds is no concern of these jobs; a further --ladder wins.
LADDER = ("--ladder", "halve_micro_batch", "--no-predict")
#: A job without any framework; the flags are those of the Trainer. `hold` takes real memory.
SETUP = f"""
import argparse, os, signal, subprocess, sys, time
parser = argparse.ArgumentParser()
parser.add_argument("--per_device_train_batch_size", type=int, default=8)
parser.add_argument("--gradient_accumulation_steps", type=int, default=1)
parser.add_argument("--output_dir", default="out")
given = parser.parse_args()
micro, accumulation = given.per_device_train_batch_size, given.gradient_accumulation_steps
def hold(samples):
    return [bytearray({SAMPLE_BYTES}) for _ in range(samples)]
def say(*words, to=sys.stdout):
    print(*words, file=to, flush=True)
"""
#: Sends reports as the monitor would, by docs/monitor-protocol.md.
REPORT = """
import json, socket
reporter = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
reporter.connect(os.environ["OOMGUARD_SOCKET"])
def report(kind, step=0, phase="forward", **fields):
    common = dict(v=1, type=kind, pid=os.getpid(), rank=None, local_rank=None, world=None)
    line = {**common, "t": time.monotonic(), "phase": phase, "step": step, **fields}
    reporter.sendall(json.dumps(line).encode() + b"\\n")
def step(number, **fields):
    report("step", number, memory=None, seconds=None, shapes=None, **fields)
"""
#: What PyTorch says when a tensor does not fit into host memory (c10/core/impl/alloc_cpu.cpp).
TORCH_OOM = (
    "RuntimeError: [enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't "
    "allocate memory: you tried to allocate 268435456 bytes. Error code 12 (Cannot allocate memory)"
)
BATCH = ("--per_device_train_batch_size", "16")


def write_job(folder: Path, code: str, *, name: str = "job.py") -> tuple[str, ...]:
    """Write a job and give the command that starts it with 16 samples at once."""
    (folder / name).write_text(SETUP + code)
    return (sys.executable, name, *BATCH)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A run of oomguard that has ended."""

    code: int
    out: str
    err: str
    run: Path

    @property
    def report(self) -> dict[str, Any]:
        return json.loads((self.run / "fit-report.json").read_text())

    @property
    def micro_batches(self) -> list[int]:
        return [attempt["plan"]["micro_batch"] for attempt in self.report["attempts"]]

    def log(self, attempt: int) -> str:
        return (self.run / "attempts" / f"{attempt:03}" / "log.txt").read_text()

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.run / "events.jsonl").read_text().splitlines()]


class Live:
    """A running oomguard, in a process group of its own as a shell would start it."""

    def __init__(self, folder: Path, *words: str, env: Mapping[str, str] | None = None) -> None:
        self.name = f"run-{uuid.uuid4().hex}"
        self.run = folder / "oomguard-runs" / self.name
        self.said = {"out": bytearray(), "err": bytearray()}
        self._news = threading.Condition()
        self.process = subprocess.Popen(
            [*OOMGUARD, "launch", "--name", self.name, *LADDER, *words],
            cwd=folder,
            env={**os.environ, "XDG_DATA_HOME": str(folder), **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._readers = [
            threading.Thread(target=self._read, args=(stream, name), daemon=True)
            for stream, name in ((self.process.stdout, "out"), (self.process.stderr, "err"))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: Any, name: str) -> None:
        while data := stream.read1(1 << 16):
            with self._news:
                self.said[name] += data
                self._news.notify_all()

    def wait_for(self, text: str, *, stream: str = "out") -> str:
        """Wait until it has printed `text`; give all that it has printed there."""
        with self._news:
            found = self._news.wait_for(lambda: text.encode() in self.said[stream], PATIENCE_S)
        assert found, self.said
        return self.said[stream].decode()

    def word_after(self, text: str) -> str:
        """Return the word that follows `text` on its standard output."""
        wait_until(lambda: b"\n" in self.said["out"].partition(text.encode())[2])
        return self.said["out"].decode().partition(text)[2].split()[0]

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def signal_group(self, number: int) -> None:
        """Signal its process group: a Ctrl-C of the terminal does so."""
        os.killpg(self.process.pid, number)

    def ended(self) -> Ended:
        """Wait for its end."""
        code = self.process.wait(PATIENCE_S)
        for reader, stream in zip(
            self._readers, (self.process.stdout, self.process.stderr), strict=True
        ):
            reader.join(PATIENCE_S)
            stream.close()
        out, err = (self.said[name].decode() for name in ("out", "err"))
        return Ended(code=code, out=out, err=err, run=self.run)

    def left(self) -> list[int]:
        """List the processes of its attempts that are still there, by their mark."""
        return [pid for pid in _pids() if (mark_of(pid) or "").startswith(f"{self.name}-")]

    def close(self) -> None:
        """End what a failed test has left."""
        if self.process.poll() is None:
            self.process.kill()
            self.ended()
        for pid in self.left():
            _kill(pid)


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def is_gone(pid: int) -> bool:
    """Return whether a process has ended, though nobody may have asked for its exit code yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait for what happens in another process and cannot tell us."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def launch(folder: Path, *words: str, env: Mapping[str, str] | None = None) -> Ended:
    """Run `oomguard launch` to its end."""
    live = Live(folder, *words, env=env)
    try:
        ended = live.ended()
        assert live.left() == []
        return ended
    finally:
        live.close()


def make_live(tmp_path: Path) -> Iterator[Callable[..., Live]]:
    """Return a function that starts a run in this folder; what it leaves is ended."""
    with ExitStack() as undo:

        def start(code: str, *options: str, env: Mapping[str, str] | None = None) -> Live:
            live = Live(tmp_path, *options, "--", *write_job(tmp_path, code), env=env)
            undo.callback(live.close)
            return live

        yield start

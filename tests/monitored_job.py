"""Run a job with the monitor, and collect its reports over a real Unix socket."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oomguard.monitor import add_monitor
from oomguard.process.members import MARK

Line = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A job that ended: its exit code, its output, the lines on the socket and in the files."""

    code: int
    out: str
    err: str
    lines: list[Line]
    buffered: dict[str, list[Line]]
    connections: int

    def of(self, type_: str) -> list[Line]:
        """Return the lines of one type on the socket."""
        return [line for line in self.lines if line["type"] == type_]

    @property
    def types(self) -> list[str]:
        """The types of the lines on the socket, in order."""
        return [line["type"] for line in self.lines]


class Listener:
    """The supervisor's end of the socket, in a folder whose path is short enough for one."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="oomguard-"))
        self.path = self.folder / "socket"
        self.lines: list[Line] = []
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(self.path))
        self._server.listen(64)
        self._readers: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    @property
    def connections(self) -> int:
        """How many were made."""
        return len(self._readers)

    def close(self) -> None:
        """Read what is still on the way, and end."""
        self._server.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._server.close()
        for reader in self._readers:
            reader.join()
        self.path.unlink()
        self.folder.rmdir()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            self._readers.append(threading.Thread(target=self._read, args=(connection,)))
            self._readers[-1].start()

    def _read(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as lines:
            self.lines.extend(json.loads(line) for line in lines)


def run_job(
    folder: Path,
    script: str,
    *,
    python: str | Path = sys.executable,
    launcher: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    timeout_s: float = 120,
) -> Ended:
    """Run a script in `folder` as a job; `env` goes over what oomguard sets."""
    (folder / "job.py").write_text(script)
    buffer = folder / "buffer"
    buffer.mkdir(exist_ok=True)
    listener = Listener()
    try:
        job_env = {k: v for k, v in os.environ.items() if k not in {"RANK", "WORLD_SIZE"}}
        job_env = add_monitor(job_env, socket=listener.path, buffer=buffer)
        job_env[MARK] = "mark-of-the-test"
        argv = [str(python), *launcher, "job.py"]
        code, out, err = _run(argv, folder, job_env | dict(env or {}), timeout_s)
    finally:
        listener.close()
    listener.lines.sort(key=lambda line: line["t"])  # each process has its own connection
    files = {path.stem: _read_lines(path) for path in buffer.iterdir()}
    return Ended(
        code=code,
        out=out,
        err=err,
        lines=listener.lines,
        buffered=files,
        connections=listener.connections,
    )


def _run(
    argv: list[str], folder: Path, env: Mapping[str, str], timeout_s: float
) -> tuple[int, str, str]:
    process = subprocess.Popen(
        argv,
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return process.returncode, out, err


def _read_lines(path: Path) -> list[Line]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def fake_torch(folder: Path) -> None:
    """Write a package `torch` with the shape of what the monitor hooks, and no tensors."""
    for name, text in _FAKE_TORCH.items():
        path = folder / "torch" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


_FAKE_TORCH = {
    "__init__.py": """
__version__ = "2.1.0"
from . import _utils, autograd, compiler, optim, utils
import torch.utils.data.dataloader

class OutOfMemoryError(RuntimeError):
    pass

def save(what, where):
    if isinstance(what, Exception):
        raise what

def load(where):
    return None
""",
    "compiler.py": "def is_compiling():\n    return False\n",
    "_utils.py": """
class ExceptionWrapper:
    def __init__(self, exc_info=None, where="in background"):
        self.where = where
""",
    "autograd/__init__.py": """
def backward(inside=lambda: None):
    inside()
""",
    "optim.py": """
import functools

class Optimizer:
    def __init__(self):
        if not getattr(type(self).step, "hooked", None):
            type(self).step = self.profile_hook_step(type(self).step)
            type(self).step.hooked = True

    @staticmethod
    def profile_hook_step(func):
        @functools.wraps(func)
        def wrapper(*args, **kwargs):
            return func(*args, **kwargs)
        return wrapper

    def zero_grad(self):
        pass

class SGD(Optimizer):
    def step(self, closure=lambda: None):
        return closure()
""",
    "utils/__init__.py": "",
    "utils/data/__init__.py": "",
    "utils/data/dataloader.py": """
class _BaseDataLoaderIter:
    def __init__(self, batches):
        self._batches = iter(batches)
    def __iter__(self):
        return self
    def __next__(self):
        return next(self._batches)
""",
}

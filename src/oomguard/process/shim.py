"""Set up the job's process, then exec the command.

Run by path as `python -I -S shim.py SETTINGS COMMAND...`; standard library only. SETTINGS is JSON:
`status_fd` (closed by a successful exec, else gets the error), `parent` (pid), `cgroup` (folder or
null), `data_bytes` (RLIMIT_DATA or null), `unset` (environment variables). The parent creates the
session, so that a Ctrl-C in the terminal cannot hit the shim.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
_FAILED = 127  # exit code of a shell for a command that was not found


def main() -> None:
    """Prepare, then exec; on failure write the step and the error to the status pipe."""
    settings, command = json.loads(sys.argv[1]), sys.argv[2:]
    os.set_inheritable(settings["status_fd"], False)
    step = "prepare"
    try:
        _die_with(settings["parent"])
        step = "cgroup"
        _join(settings["cgroup"])
        step = "prepare"
        _reset_signals()
        for name in settings["unset"]:
            os.environ.pop(name, None)
        _limit(settings["data_bytes"])
        step = "exec"
        os.execvpe(command[0], command, os.environ)  # noqa: S606  running it is the purpose
    except BaseException as error:  # noqa: BLE001  whatever it is, the parent must get it
        _report(settings["status_fd"], step, error)
    finally:
        os._exit(_FAILED)


def _die_with(parent: int) -> None:
    """Have the kernel send SIGTERM when the parent dies, by `kill -9` too (Linux)."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes  # noqa: PLC0415  a third of the shim's time, and not available everywhere

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != parent:  # it died before the request
        os._exit(_FAILED)


def _join(cgroup: str | None) -> None:
    if cgroup is not None:
        (Path(cgroup) / "cgroup.procs").write_text("0")  # 0 is the writer itself


def _reset_signals() -> None:
    """Undo what the parent ignores or blocks; SIGHUP stays as `nohup` set it."""
    for number in signal.valid_signals():
        if signal.getsignal(number) is signal.SIG_IGN and number != signal.SIGHUP:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _limit(data_bytes: int | None) -> None:
    if data_bytes is None:
        return
    import resource  # noqa: PLC0415  not available on every platform

    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    if hard != resource.RLIM_INFINITY:
        data_bytes = min(data_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (data_bytes, data_bytes))


def _report(status_fd: int, step: str, error: BaseException) -> None:
    answer: dict[str, Any] = {
        "step": step,
        "errno": getattr(error, "errno", None),
        "text": getattr(error, "strerror", None) or f"{type(error).__name__}: {error}",
    }
    os.write(status_fd, json.dumps(answer).encode())


if __name__ == "__main__":
    main()

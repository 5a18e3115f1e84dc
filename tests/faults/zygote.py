"""Forks oomguard ready imported, once per line: {"words", "cwd", "env", "at", "do", "said"}.

Answers with the pid, then with the exit code (negative for a signal). `at` is the kind of an
event, or `kind:number` for another than the first; `do` is what happens right after that event is
on the disk: `kill` (SIGKILL to oomguard itself), the name of a signal to it, `wait` (until the file
`go` is there) or nothing; `kill-before` kills before the event is there. The environment
CLOCK_BACK=1 sets the time of day back at each look, NOHUP=1 ignores SIGHUP, LEFTOVERS_S is what
those get that outlive the job's main process, IDLE_S after how long they count as idle,
PATIENCE_S what a job gets to go on after an OOM, GPU=1 shows one to what predicts. All this saves
the matrix of faults the import of oomguard for each run.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import time
from pathlib import Path

from oomguard.cli import prepare as reading
from oomguard.cli import starting_point
from oomguard.cli.main import main
from oomguard.machine.gpus import Gpu
from oomguard.run import background, decide, supervisor
from oomguard.run.events import event_to_json
from oomguard.run.folder import RunFolder


class Fault:
    """Happens after an event."""

    def __init__(self, at: str, do: str) -> None:
        self.kind, _, number = at.partition(":")
        self.left, self.do = int(number or 1), do
        self.append = RunFolder.append

    def after(self, folder: RunFolder, event: object) -> None:
        self.left -= event_to_json(event)["event"] == self.kind
        if self.left == 0 and self.do == "kill-before":
            os.kill(os.getpid(), signal.SIGKILL)
        self.append(folder, event)
        if self.left == 0:
            self.left = -1
            self.happen()

    def happen(self) -> None:
        Path("reached").touch()
        if self.do == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.do == "wait":
            while not Path("go").exists():
                time.sleep(0.01)
        elif self.do:
            os.kill(os.getpid(), getattr(signal, self.do))


def run(request: dict) -> None:
    os.setsid()
    os.chdir(request["cwd"])
    os.environ.update(request["env"])
    said = os.open(request["said"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, place in ((nothing, 0), (said, 1), (said, 2)):
        os.dup2(descriptor, place)
    if request["at"]:
        fault = Fault(request["at"], request["do"])
        # A method of another object would not be given the folder.
        RunFolder.append = lambda folder, event: fault.after(folder, event)  # noqa: PLW0108
    if request["env"].get("NOHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if request["env"].get("CLOCK_BACK"):
        days = itertools.count()
        time.time = lambda: 2e9 - 86400.0 * next(days)
    if request["env"].get("LEFTOVERS_S"):
        supervisor.GRACE_LEFTOVERS_S = float(request["env"]["LEFTOVERS_S"])
    if request["env"].get("IDLE_S"):
        background.IDLE_S = float(request["env"]["IDLE_S"])
    if request["env"].get("PATIENCE_S"):
        decide.PATIENCE_S = float(request["env"]["PATIENCE_S"])
    if request["env"].get("GPU"):
        card = Gpu(index=0, uuid="GPU-0", name="RTX 3090", total_bytes=24 << 30, used_bytes=0)
        starting_point.gpus = reading.gpus = lambda: (card,)
    code = 70
    try:
        code = main(request["words"])
        sys.stdout.flush()
    finally:
        os._exit(code)


def serve() -> None:
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            run(json.loads(line))
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve()

"""Stop every process of an attempt: SIGTERM, then SIGKILL at the deadline."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from oomguard import present
from oomguard.machine.cgroups import Cgroup
from oomguard.process.members import Row, identified, mark_of, table

_KILL_S = 10.0  # a process in a device driver call dies only when that returns
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.005, 0.1


class Scanned(Protocol):
    """A set of processes that is scanned anew at each call."""

    def scan(self) -> set[psutil.Process]:
        """Return those that are alive."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StopReport:
    """How many processes got SIGTERM (`asked`) and SIGKILL (`killed`), and how long it took.

    `left` are pids that survived SIGKILL, for example in a hanging driver.
    """

    asked: int = 0
    killed: int = 0
    left: tuple[int, ...] = ()
    seconds: float = 0.0


def stop_all(members: Scanned, deadline: Callable[[], float]) -> StopReport:
    """Stop all members, and those started meanwhile.

    `deadline` (time.monotonic) is read repeatedly, so that it can be brought forward.
    """
    began = time.monotonic()
    asked: set[psutil.Process] = set()
    killed: set[psutil.Process] = set()
    pause_s = _FIRST_PAUSE_S
    while present := members.scan():
        now = time.monotonic()
        if now >= max(deadline(), began) + _KILL_S:
            break
        if now < deadline():
            # A stopped process acts on SIGTERM only once it is continued.
            send(present - asked, signal.SIGTERM, signal.SIGCONT)
            asked |= present
            time.sleep(min(pause_s, max(0.0, deadline() - now)))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        else:
            send(present, signal.SIGKILL)
            killed |= present
            time.sleep(_FIRST_PAUSE_S)
    return StopReport(
        asked=len(asked),
        killed=len(killed),
        left=tuple(sorted(process.pid for process in present)),
        seconds=time.monotonic() - began,
    )


def send(processes: Iterable[psutil.Process], *signals: int) -> None:
    """Send each signal to each process that is alive and may be signalled."""
    for process in processes:
        with suppress(psutil.Error):
            for number in signals:
                process.send_signal(number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftovers:
    """The processes of an attempt that an earlier oomguard started.

    A process belongs if it has the attempt's mark, is in the session of the direct child `pid`
    with one that does, descends from either, or is in the attempt's own `cgroup`. The pid alone
    proves nothing: the machine may have rebooted since.
    """

    mark: str
    pid: int | None = None
    cgroup: Cgroup | None = None

    def scan(self) -> set[psutil.Process]:
        """Return those that are alive."""
        rows = {row.pid: row for row in table() if not row.zombie}
        return set(identified(rows[pid] for pid in self._mine(rows)))

    def _mine(self, rows: dict[int, Row]) -> set[int]:
        marked = {pid for pid in rows if self.mark and mark_of(pid) == self.mark}
        session = {rows[pid].session for pid in marked} & {self.pid}
        mine = marked | {pid for pid, row in rows.items() if row.session in session}
        mine |= self.cgroup.pids() & rows.keys() if self.cgroup else set()
        while more := {pid for pid, row in rows.items() if row.ppid in mine} - mine:
            mine |= more
        return mine - {os.getpid()}


def end_leftovers(left: Leftovers, *, grace_s: float) -> StopReport:
    """Send SIGTERM to all, SIGKILL to those alive after `grace_s`, and remove the cgroup."""
    deadline = time.monotonic() + grace_s
    report = stop_all(left, lambda: deadline)
    if left.cgroup is not None:
        left.cgroup.remove()
    return report


def cgroup_left(folder: str | None) -> Cgroup | None:
    """Return the memory cgroup of an attempt, if it still exists."""
    if folder is None or not Path(folder).name.startswith("oomguard-"):
        return None
    if not present.is_folder(Path(folder)):
        return None
    version = 1 if present.exists(Path(folder) / "memory.oom_control") else 2
    return Cgroup(folder=Path(folder), version=version)

"""Ends every process of an attempt: asked first, killed when the time is over."""

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

from oomguard.machine.cgroups import Cgroup
from oomguard.process.members import Row, identified, mark_of, table

_KILL_S = 10.0  # a process may sit in a device driver for a while before it can die
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.005, 0.1


class Scanned(Protocol):
    """A set of processes that is looked up anew at each call."""

    def scan(self) -> set[psutil.Process]:
        """Return those that are alive."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StopReport:
    """How many processes were asked (SIGTERM) and killed (SIGKILL), who is left, how long it took.

    `left` are pids that not even SIGKILL could end, for example in a hanging driver.
    """

    asked: int = 0
    killed: int = 0
    left: tuple[int, ...] = ()
    seconds: float = 0.0


def stop_all(members: Scanned, deadline: Callable[[], float]) -> StopReport:
    """Stop all that belong, those born meanwhile too.

    `deadline` (on time.monotonic) is asked again and again, so that it can be brought forward.
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
            send(present - asked, signal.SIGTERM, signal.SIGCONT)  # a stopped one cannot obey
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
    """Send each signal to each process that is still there and ours to signal."""
    for process in processes:
        with suppress(psutil.Error):
            for number in signals:
                process.send_signal(number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftovers:
    """The processes of an attempt that was started by another oomguard.

    One belongs if it carries the attempt's mark, shares the session of the direct child `pid` with
    one that does, descends from either, or is in the attempt's own `cgroup`. A pid alone proves
    nothing: the machine may have been started again since.
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
    """Ask each to end, kill who is left when the grace is over, remove the cgroup."""
    deadline = time.monotonic() + grace_s
    report = stop_all(left, lambda: deadline)
    if left.cgroup is not None:
        left.cgroup.remove()
    return report


def cgroup_left(folder: str | None) -> Cgroup | None:
    """Return the memory cgroup that an attempt had, if it is still there."""
    if folder is None or not Path(folder).name.startswith("oomguard-"):
        return None
    if not Path(folder).is_dir():
        return None
    version = 1 if (Path(folder) / "memory.oom_control").exists() else 2
    return Cgroup(folder=Path(folder), version=version)

"""Ends what an attempt has left whose supervisor is gone: found by what was written down of it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from oomguard.machine.cgroups import Cgroup
from oomguard.process.members import Row, identified, mark_of, table
from oomguard.process.stop import StopReport, stop_all


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

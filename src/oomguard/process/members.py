"""Which processes belong to an attempt, whatever launchers, sessions or forks are in between.

A process belongs if it is in the attempt's cgroup or session, has its mark in the environment,
descends from one that does, or was orphaned by one and adopted by oomguard (the subreaper).
Without /proc only session and descent are known.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from oomguard import present
from oomguard.machine.cgroups import Cgroup

MARK = "OOMGUARD_MARK"
_PR_SET_CHILD_SUBREAPER = 36
_PROC = Path("/proc")
# Fields of /proc/PID/stat after the command's name (man proc_pid_stat), counted from 0.
_STATE, _PPID, _SESSION, _THREADS, _START = 0, 1, 3, 17, 19

_leaders: set[int] = set()  # direct children: each is reaped by its own thread only


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One process of this machine. `start` is its start time in ticks (seconds without /proc)."""

    pid: int
    ppid: int
    session: int
    start: float
    zombie: bool


def become_subreaper() -> None:
    """Adopt orphaned descendants of this process instead of init (Linux 3.4)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def table() -> list[Row]:
    """Return all visible processes; one read for each, as a node may have thousands."""
    if present.exists(_PROC.joinpath("self/stat")):
        rows = (read_row(int(name)) for name in os.listdir(_PROC) if name.isdigit())  # noqa: PTH208
        return [row for row in rows if row is not None]
    return list(_portable_table())


def read_row(pid: int) -> Row | None:
    """Return one process, or None if it is gone.

    If its main thread has ended while others run it is not a zombie: it still holds its memory.
    """
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return Row(
        pid=pid,
        ppid=int(fields[_PPID]),
        session=int(fields[_SESSION]),
        start=float(fields[_START]),
        zombie=fields[_STATE] in "ZX" and int(fields[_THREADS]) <= 1,
    )


def _portable_table() -> Iterator[Row]:
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            yield Row(
                pid=process.pid,
                ppid=process.ppid(),
                session=os.getsid(process.pid),
                start=process.create_time(),
                zombie=process.status() == psutil.STATUS_ZOMBIE,
            )


def mark_of(pid: int) -> str | None:
    """Return the mark that a process was started with, None if it has none or cannot be read."""
    try:
        environ = (_PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return None
    head = f"{MARK}=".encode()
    found = next((item for item in environ.split(b"\0") if item.startswith(head)), None)
    return None if found is None else os.fsdecode(found[len(head) :])


def catches(pid: int, signum: int) -> bool:
    """Return whether a process has a handler for a signal (Linux; False elsewhere)."""
    try:
        status = (_PROC / str(pid) / "status").read_text(errors="replace")
    except OSError:
        return False
    caught = re.search(r"^SigCgt:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (signum - 1) & 1)


class Members:
    """The processes of the attempt with direct child `leader`, scanned anew at each call.

    Pids are reused, so processes seen once are remembered with their start time.
    """

    def __init__(self, *, leader: Row, mark: str, cgroup: Cgroup | None) -> None:
        self._leader, self._mark, self._cgroup = leader, mark, cgroup
        self._seen: dict[int, float] = {leader.pid: leader.start}
        self.exit_codes: dict[int, int] = {}  # of orphans of the attempt that oomguard adopted
        _leaders.add(leader.pid)

    def scan(self) -> set[psutil.Process]:
        """Return those that are alive; adopted zombies are reaped on the way."""
        rows = {row.pid: row for row in table()}
        mine = self._mine(rows)
        self._seen = {pid: rows[pid].start for pid in mine} | {self._leader.pid: self._leader.start}
        for pid in mine:
            if rows[pid].zombie and rows[pid].ppid == os.getpid() and pid not in _leaders:
                self._reap(pid)
        return set(identified(rows[pid] for pid in mine if not rows[pid].zombie))

    def _reap(self, pid: int) -> None:
        with suppress(ChildProcessError):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                self.exit_codes[pid] = os.waitstatus_to_exitcode(status)

    def forget(self) -> None:
        """Release the direct child's pid, which the kernel may reuse."""
        _leaders.discard(self._leader.pid)

    def _mine(self, rows: dict[int, Row]) -> set[int]:
        in_cgroup = self._cgroup.pids() if self._cgroup else set()
        children: dict[int, list[int]] = {}
        for row in rows.values():
            children.setdefault(row.ppid, []).append(row.pid)
        mine: set[int] = set()
        leader = rows.get(self._leader.pid, self._leader)
        session = leader.pid if leader.start == self._leader.start else None  # reused
        todo = [row.pid for row in rows.values() if self._belongs(row, in_cgroup, session=session)]
        while todo:
            pid = todo.pop()
            if pid not in mine and pid != os.getpid():
                mine.add(pid)
                todo += children.get(pid, [])
        return mine

    def _belongs(self, row: Row, in_cgroup: set[int], *, session: int | None) -> bool:
        if row.start < self._leader.start:
            return False
        return (
            row.pid in in_cgroup
            or row.session == session
            or self._seen.get(row.pid) == row.start
            or self._marked(row)
        )

    def _marked(self, row: Row) -> bool:
        mark = mark_of(row.pid)
        return mark == self._mark or (mark is None and self._is_adopted(row))

    def _is_adopted(self, row: Row) -> bool:
        """Return whether it can only be an orphan of the attempt without its mark and session.

        oomguard's other children share oomguard's session, and a zombie could come from any of
        them. A process started in the same tick as the direct child was started before it.
        """
        return (
            row.ppid == os.getpid()
            and row.start > self._leader.start
            and row.session != os.getsid(0)
            and row.pid not in _leaders
            and not row.zombie
        )


def identified(rows: Iterable[Row]) -> Iterator[psutil.Process]:
    """Yield handles that refuse to signal a later process with the same pid."""
    for row in rows:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(row.pid)
            again = read_row(row.pid)
            if again is None or again.start == row.start:
                yield process

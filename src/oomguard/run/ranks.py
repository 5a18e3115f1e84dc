"""Which processes of a job are ranks and which are helpers, read from their reports."""

from __future__ import annotations

from oomguard.process.messages import AnyReport, ByeReport, HelloReport


class Ranks:
    """Follows which processes of one attempt train.

    A rank is the job's main process `leader`, any process that has finished an optimizer step, and
    the first process with a rank of its own: a launcher sets it, and what a rank starts inherits
    it. While `leader` is unknown, every process counts as a rank.
    """

    def __init__(self) -> None:
        self.leader: int | None = None
        self._first: dict[int, int] = {}
        self._training: set[int] = set()

    def take(self, report: AnyReport) -> None:
        """Note what a process reports of itself."""
        pid, rank = report.pid, report.rank
        if report.step:
            self._training.add(pid)
        if isinstance(report, HelloReport) and rank is not None:
            self._first.setdefault(rank, pid)
        if isinstance(report, ByeReport) and rank is not None and self._first.get(rank) == pid:
            del self._first[rank]

    @property
    def training(self) -> frozenset[int]:
        """The pids that have finished an optimizer step."""
        return frozenset(self._training)

    def is_helper(self, pid: int, rank: int | None) -> bool:
        """Return whether a process is not one of the ranks."""
        if self.leader in (None, pid) or pid in self._training:
            return False
        return rank is None or self._first.get(rank, pid) != pid

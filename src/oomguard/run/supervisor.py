"""The loop of a run: take an event, fold it into the record, decide, act."""

from __future__ import annotations

import json
import queue
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from types import FrameType

from typing_extensions import assert_never

from oomguard import monitor
from oomguard.adapters.contract import Adapter
from oomguard.errors import RunFolderError
from oomguard.evidence.verdict import Phase
from oomguard.job.checkpoint import Layout
from oomguard.job.command import Command
from oomguard.job.training_job import Job
from oomguard.ladder.climb import Ladder
from oomguard.machine.cgroups import name_for
from oomguard.machine.checkpoint_scan import Found, Stamp, find, is_whole, stamp
from oomguard.machine.gpus import FreeReport
from oomguard.process.limits import CapBy
from oomguard.process.members import MARK
from oomguard.process.messages import Kernel, Output, ProcessExited, Report, ShellEvent
from oomguard.process.running import Running
from oomguard.process.start import LocalEngine
from oomguard.process.watchdog import Guard
from oomguard.run.attempt import AttemptSpec, StopReason
from oomguard.run.background import Background
from oomguard.run.decide import (
    Action,
    Finish,
    Launch,
    StartProcesses,
    Stop,
    WaitForDevice,
    decide,
)
from oomguard.run.events import (
    DeviceFree,
    Event,
    Exited,
    Finished,
    LeftRunning,
    Limits,
    Planned,
    Resumed,
    RunStarted,
    Saved,
    Signalled,
    Started,
    Stopping,
    Ticked,
)
from oomguard.run.folder import RunFolder, append_json
from oomguard.run.observer import Observer
from oomguard.run.recover import stamp_of, take_over
from oomguard.run.state import Attempt, RunRecord, State, replay, started_job

#: Seconds that the processes of an attempt have to exit after an OOM: their state is worthless.
#: After a signal they may be writing a checkpoint: `Limits.grace_s` applies.
GRACE_OOM_S = 1.0  # also for a restart from a checkpoint
GRACE_LEFTOVERS_S = 5.0
TICK_S = 0.1
FOLDER_EVERY_S = 1.0
#: Chunks of output that may queue up; beyond it the job blocks when it prints.
QUEUE_LENGTH = 512


@dataclass(frozen=True, slots=True)
class _Asked:
    """A signal that oomguard itself received."""

    signum: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Audience:
    """Callbacks: `event` gets everything that is recorded, `output` what the job prints.

    `notice` gets what cannot be recorded.
    """

    event: Callable[[Event, RunRecord], None]
    output: Callable[[bytes], None]
    notice: Callable[[str], None]


class Supervisor:
    """Runs a job until it fits, fails, is interrupted, or the strategies are exhausted."""

    def __init__(
        self,
        *,
        adapter: Adapter,
        ladder: Ladder,
        engine: LocalEngine,
        folder: RunFolder,
        audience: Audience,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.record = RunRecord()
        self.command: Command | None = None
        self._adapter, self._ladder, self._engine = adapter, ladder, engine
        self._folder, self._audience, self._clock = folder, audience, clock
        self._begin = clock()
        self._queue: queue.Queue[ShellEvent | _Asked | FreeReport] = queue.Queue(QUEUE_LENGTH)
        self._running: Running | None = None
        self._leaving: Running | None = None  # its main process has ended, others have not
        self._background: Background | None = None  # they may still train
        self._ending = False  # their exit is on its way
        self._observer = Observer(0)
        self._mark = ""  # of each process of the run, with the attempt's number
        self._layout: Layout | None = None
        self._stamp: Stamp | None = {}
        self._saving = False
        self._folder_seen_t = 0.0

    def run(self, started: RunStarted) -> RunRecord:
        """Run the job from its first event to its last; none of its processes is left."""
        return self._loop(started.run, started.limits, iter([started]))

    def resume(self, events: Sequence[Event], resumed: Resumed, *, oom_kills: int) -> RunRecord:
        """Continue a run whose supervisor died and whose processes have ended.

        `events` are those of the run so far; its clock continues from the last one. `oom_kills` is
        how many processes of its last attempt the kernel OOM-killed.
        """
        self.record = replay(events)
        self._begin = self._clock() - events[-1].t
        self._layout = self._adapter.checkpoint_layout(self._job)
        self._stamp = stamp_of(events)
        attempts = self.record.attempts

        def first() -> Iterator[Event]:
            yield replace(resumed, t=self._now)
            if attempts:
                folder = self._folder.attempt(len(attempts))
                self._folder.forget_output(len(attempts))
                yield from take_over(attempts[-1], folder, lambda: self._now, oom_kills=oom_kills)

        return self._loop(self.record.run, started_job(self.record)[1], first())

    def _loop(self, run: str, limits: Limits, first: Iterator[Event]) -> RunRecord:
        self._mark = f"{run}-{secrets.token_hex(8)}"
        own: Event | None = next(first)
        incoming = chain(first, self._incoming())
        with self._signals_taken(), self._guarded(limits.grace_s):
            try:
                while own is not None or self.record.state is not State.DONE:
                    event = own or next(incoming)
                    if not isinstance(event, Ticked):
                        self._folder.append(event)
                    self.record = self.record.apply(event)
                    if not isinstance(event, Ticked):
                        self._audience.event(event, self.record)
                    own = self._act(decide(self.record, event, self._ladder))
            finally:
                self._end_processes(grace_s=0.0)
        return self.record

    @property
    def _now(self) -> float:
        return round(self._clock() - self._begin, 4)

    @property
    def _job(self) -> Job:
        return started_job(self.record)[0]

    def _incoming(self) -> Iterator[Event]:
        """Yield what happens to the running attempt, to its device and to oomguard itself."""
        while True:
            self._watch_folder()
            try:
                seen = self._queue.get(timeout=TICK_S)
            except queue.Empty:
                yield from self._observer.wait(self._now)
                yield Ticked(t=self._now)
                self._follow_background()
                continue
            if self._background is not None:
                self._background.heard()
            match seen:
                case _Asked():
                    yield from self._signalled(seen)
                case FreeReport():
                    yield self._device_free(seen)
                case ProcessExited():
                    yield from self._left_running(seen) or self._exited(seen)
                case Output() | Report() | Kernel():
                    if isinstance(seen, Output):
                        self._audience.output(seen.data)
                    elif isinstance(seen, Report):
                        with suppress(RunFolderError):  # deleted, which is reported
                            append_json(
                                self._attempt_folder / "memory.jsonl", json.loads(seen.line)
                            )
                    yield from self._observer.take(seen, self._now)
                    yield from self._newly_saved(seen)
                case _:
                    assert_never(seen)

    def _watch_folder(self) -> None:
        """Report at once that the run folder was moved or deleted."""
        if self._now - self._folder_seen_t >= FOLDER_EVERY_S:
            self._folder_seen_t = self._now
            news = self._folder.follow()
            if news is not None:
                self._audience.notice(news)

    def _hear(self, asked: _Asked) -> None:
        leaving = self._leaving
        if leaving is not None and asked.signum == signal.SIGINT:  # somebody waits for an answer
            leaving.stop(grace_s=0.0)
        self._queue.put(asked)

    @property
    def _attempt_folder(self) -> Path:
        return self._folder.attempt(len(self.record.attempts))

    def _newly_saved(self, seen: ShellEvent) -> Iterator[Event]:
        """Yield new checkpoints once a process that has saved something continues."""
        if not isinstance(seen, Report) or self._layout is None or self._stamp is None:
            return
        saves = seen.report.phase is Phase.SAVE
        if saves or not self._saving:
            self._saving = self._saving or saves
            return
        self._saving = False
        known = self.record.last.saved
        for checkpoint in reversed(find(self._layout, before=self._stamp).whole):
            if checkpoint.step not in known:
                yield Saved(t=self._now, attempt=self.record.last.number, checkpoint=checkpoint)

    def _signalled(self, asked: _Asked) -> Iterator[Event]:
        before = self.record.signum
        # SIGUSR1 warns of a later SIGTERM: the job knows, and its grace period continues.
        warned = before == signal.SIGUSR1 != asked.signum
        if before is not None and not warned:  # a second signal ends the grace period
            self._end_processes(grace_s=0.0)
        yield Signalled(t=self._now, signum=asked.signum)

    def _device_free(self, seen: FreeReport) -> Event:
        found = self._found()
        return DeviceFree(
            t=self._now,
            attempt=len(self.record.attempts),
            free=seen.free,
            waited_s=seen.waited_s,
            busy=seen.busy,
            checkpoints=found.whole,
            damaged=found.damaged,
        )

    def _found(self) -> Found:
        """Return what the attempt has saved, and which checkpoints of earlier attempts are gone."""
        if self._layout is None or self._stamp is None:
            return Found()
        found = find(self._layout, before=self._stamp)
        known = {found.path for found in found.whole} | set(found.damaged)
        others = (c for c, _ in self.record.checkpoints if c.path not in known)
        gone = (c.path for c in others if not is_whole(Path(c.path), c.step, self._layout.needs))
        return replace(found, damaged=(*found.damaged, *gone))

    def _left_running(self, seen: ProcessExited) -> tuple[LeftRunning, ...]:
        """Return an event if the command has exited with 0 and its processes may still train.

        What outlives a job that has trained is a daemon of it, unless it trains itself.
        """
        attempt, running = self.record.last, self._running
        if seen.returncode != 0 or self._background or attempt.stopped or running is None:
            return ()
        pids = running.alive()
        may_train = not attempt.has_trained or self._observer.ranks.training & set(pids)
        if not pids or not may_train:
            return ()
        running.forget_exit()
        self._background = Background(running, self._clock)
        return (LeftRunning(t=self._now, attempt=attempt.number, pids=pids),)

    def _follow_background(self) -> None:
        """Emit the exit of the attempt once what it left in the background has ended."""
        background, running = self._background, self._running
        if background is None or running is None or self._ending or not background.is_over():
            return
        self._ending = True
        code = background.returncode(self._observer.ranks.training)
        self._in_background(lambda: running.exited(code))

    def _exited(self, seen: ProcessExited) -> Iterator[Event]:
        self._background, self._ending = None, False
        yield from self._observer.close(self._now, well=seen.returncode == 0)
        log_error = self._running.log_error if self._running else None
        self._leaving = self._running
        self._end_processes(grace_s=GRACE_LEFTOVERS_S)
        self._leaving = None
        attempt = self.record.last
        verdict = attempt.concluded(seen.returncode)
        with suppress(RunFolderError):
            self._folder.keep(self._attempt_folder / "verdict.json", verdict)
            self._folder.forget_output(attempt.number)
        yield Exited(
            t=self._now,
            attempt=attempt.number,
            returncode=seen.returncode,
            verdict=verdict,
            log_error=log_error,
            loss=self._observer.loss,
        )

    def _end_processes(self, *, grace_s: float) -> None:
        if self._running is not None:
            self._running.stop(grace_s=grace_s)
            self._running.close()
            self._running = None

    def _act(self, action: Action | None) -> Event | None:
        """Do what was decided and return the event that records it, if any."""
        match action:
            case None:
                return None
            case Launch():
                return self._planned(action.spec)
            case StartProcesses():
                return self._started(self.record.last)
            case Stop():
                return self._stopping(action)
            case WaitForDevice():
                self._in_background(lambda: self._queue.put(self._engine.wait_until_free()))
                return None
            case Finish():
                return Finished(
                    t=self._now,
                    status=action.status,
                    reason=action.reason,
                    skipped=action.skipped,
                    untried=action.untried,
                )
            case _:
                assert_never(action)

    def _planned(self, spec: AttemptSpec) -> Planned:
        number = len(self.record.attempts) + 1
        self._layout = self._adapter.checkpoint_layout(self._job)
        self._stamp = stamp(self._layout) if self._layout else {}
        mark = f"{self._mark}-{number}"
        return Planned(t=self._now, attempt=number, mark=mark, before=self._stamp, spec=spec)

    def _started(self, attempt: Attempt) -> Started:
        self.command = self._command(attempt.spec)
        self._folder.keep(self._attempt_folder / "command.json", _shown(self.command))
        self._observer = self._new_observer(attempt.number)
        self._running = self._engine.start(
            self.command,
            log=self._attempt_folder / "log.txt",
            mark=f"{self._mark}-{attempt.number}",
            emit=self._queue.put,
        )
        self._observer.ranks.leader = self._running.pid
        return Started(
            t=self._now,
            attempt=attempt.number,
            pid=self._running.pid,
            command=self.command.masked().by_hand(),
            kernel_watched=self._running.kernel_watched,
            cgroup=self._running.cgroup,
        )

    def _command(self, spec: AttemptSpec) -> Command:
        """Write the attempt's config and return its command; a probe leaves nothing in the run."""
        folder, job = str(self._attempt_folder), self._job
        if spec.probe is None:
            command = self._adapter.write(job, spec.plan, folder, spec.begins)
            command, bound = command.wrapped(job.wrapper), spec.plan.token_bound
            bounding = monitor.bounding(bound) if bound else {}
            return replace(command, env={**command.env, **bounding})
        output = str(self._folder.output(self.record.last.number))
        command = self._adapter.write(self._adapter.as_trial(job, output), spec.plan, folder)
        command = command.wrapped(job.wrapper)
        limits = monitor.probing(steps=spec.probe.steps, tokens=spec.probe.tokens)
        return replace(command, env={**command.env, **limits})

    def _new_observer(self, number: int) -> Observer:
        limits = self.record.limits
        by_rlimit = limits is not None and limits.host_memory_by == CapBy.RLIMIT
        return Observer(
            number,
            begin=self._begin,
            data_limit_bytes=limits.host_memory_bytes if limits and by_rlimit else None,
            gpu_limit_bytes=limits.gpu_memory_bytes if limits else None,
        )

    def _stopping(self, action: Stop) -> Stopping | None:
        """Stop the running attempt in the background; after a signal it gets its grace period."""
        reason = action.reason
        running, signum, limits = self._running, self.record.signum, self.record.limits
        if running is None:
            return None
        grace_s = GRACE_OOM_S
        if reason is StopReason.SIGNAL and limits is not None:
            grace_s = limits.grace_s
        number = len(self.record.attempts)
        event = Stopping(t=self._now, attempt=number, reason=reason, weighed=action.weighed)
        if reason is StopReason.SIGNAL and signum is not None:
            running.signal(signum)
        self._in_background(lambda: _stop_after(running, signum, grace_s))
        return event

    def _in_background(self, work: Callable[[], object]) -> None:
        threading.Thread(target=work, daemon=True).start()

    @contextmanager
    def _guarded(self, grace_s: float) -> Iterator[None]:
        guard = Guard(
            mark=f"{MARK}={self._mark}-", cgroup=name_for(f"{self._mark}-"), grace_s=grace_s
        )
        try:
            yield
        finally:
            guard.close()

    @contextmanager
    def _signals_taken(self) -> Iterator[None]:
        def take(signum: int, _frame: FrameType | None) -> None:
            # Not in this thread, which empties the queue: a full one would block it.
            self._in_background(lambda: self._hear(_Asked(signum)))

        taken = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as `nohup` leaves it
            taken.append(signal.SIGHUP)
        before = {number: signal.signal(number, take) for number in taken}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _stop_after(running: Running, signum: int | None, grace_s: float) -> None:
    """Wait for the job to exit on the signal it was sent; at the deadline end what is left."""
    deadline = time.monotonic() + grace_s
    if signum is not None:
        while running.alive() and time.monotonic() < deadline:
            time.sleep(0.05)
    if signum == signal.SIGUSR1:  # only a warning: a job that saved and continued is ended now
        grace_s = GRACE_LEFTOVERS_S
    elif signum is not None:
        grace_s = 0.0
    running.stop(grace_s=grace_s)


def _shown(command: Command) -> dict[str, object]:
    masked = command.masked()
    return {
        "argv": masked.argv,
        "cwd": masked.cwd,
        "env": masked.env,
        "config": masked.config,
    }

"""One queue of events drives one loop: take what happened, decide, act."""

from __future__ import annotations

import queue
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from oomguard import monitor
from oomguard.adapters.contract import Adapter
from oomguard.evidence.verdict import Phase
from oomguard.job.checkpoint import Continuation, Layout
from oomguard.job.command import Command
from oomguard.job.plan import Plan
from oomguard.job.training_job import Job
from oomguard.ladder.climb import Ladder
from oomguard.machine.cgroups import name_for
from oomguard.machine.checkpoint_scan import Found, Stamp, find, is_whole, stamp
from oomguard.machine.gpus import FreeReport
from oomguard.process.engine import Engine, RunningAttempt
from oomguard.process.members import MARK
from oomguard.process.process_events import Output, ProcessExited, Report, ShellEvent
from oomguard.process.watchdog import Guard
from oomguard.redact import redact, redact_argv, redact_env
from oomguard.run.decide import Action, Finish, Launch, Stop, WaitForDevice, decide
from oomguard.run.events import (
    DeviceFree,
    Event,
    Exited,
    Finished,
    Limits,
    Planned,
    Probe,
    Resumed,
    RunStarted,
    Saved,
    Signalled,
    Started,
    Stopping,
    StopReason,
    Ticked,
)
from oomguard.run.folder import RunFolder, append_json
from oomguard.run.observer import Observer
from oomguard.run.probe import probe_of
from oomguard.run.recover import stamp_of, take_over, verdict_of
from oomguard.run.redaction import mask_verdict
from oomguard.run.state import RunRecord, State, replay, started_job
from oomguard.units import show_bytes

#: Seconds that the processes of an attempt get to end by themselves: after an out-of-memory error
#: their state is worth nothing. After a signal they may be writing a checkpoint: `Limits.grace_s`.
GRACE_OOM_S = 1.0  # also for a stop that begins again from a checkpoint
GRACE_LEFTOVERS_S = 5.0
TICK_S = 0.1
#: Chunks of output that may wait; beyond it the job's own writing waits.
QUEUE_LENGTH = 512


@dataclass(frozen=True, slots=True)
class _Asked:
    """A signal that oomguard itself got."""

    signum: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Audience:
    """Who is told: `event` of everything that is recorded, `output` of what the job prints."""

    event: Callable[[Event, RunRecord], None]
    output: Callable[[bytes], None]


class Supervisor:
    """Runs a job to one of the four ends."""

    def __init__(
        self,
        *,
        adapter: Adapter,
        ladder: Ladder,
        engine: Engine,
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
        self._running: RunningAttempt | None = None
        self._leaving: RunningAttempt | None = None  # its main process has ended, others have not
        self._observer = Observer(0)
        self._mark = ""  # of each process of the run, with the attempt's number
        self._layout: Layout | None = None
        self._stamp: Stamp | None = {}
        self._saving = False

    def run(self, started: RunStarted) -> RunRecord:
        """Walk from the first event to the last; no process of the job is left when it returns."""
        return self._walk(started.run, started.limits, lambda: iter([started]))

    def resume(self, events: Sequence[Event], resumed: Resumed, *, oom_kills: int) -> RunRecord:
        """Go on with a run whose supervisor is gone, and whose processes have ended.

        `events` are those of the run until now; its clock goes on from there, without the time
        between. `oom_kills` is how many of its last attempt the kernel had killed.
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

        return self._walk(self.record.run, started_job(self.record)[1], first)

    def _walk(self, run: str, limits: Limits, first: Callable[[], Iterator[Event]]) -> RunRecord:
        self._mark = f"{run}-{secrets.token_hex(8)}"
        with self._signals_taken(), self._guarded(limits.grace_s):
            try:
                for event in first():
                    self._happen(event)
                while self.record.state is not State.DONE:
                    for event in self._next():
                        self._happen(event)
            finally:
                self._end_processes(grace_s=0.0)
        return self.record

    @property
    def _now(self) -> float:
        return round(self._clock() - self._begin, 4)

    @property
    def _job(self) -> Job:
        return started_job(self.record)[0]

    def _happen(self, event: Event) -> None:
        if not isinstance(event, Ticked):
            self._folder.append(event)
        self.record = self.record.apply(event)
        if not isinstance(event, Ticked):
            self._audience.event(event, self.record)
        action = decide(self.record, event, self._ladder)
        if action is not None:
            self._act(action)

    def _next(self) -> Iterator[Event]:
        try:
            seen = self._queue.get(timeout=TICK_S)
        except queue.Empty:
            yield from self._observer.wait(self._now)
            yield Ticked(t=self._now)
            return
        match seen:
            case _Asked():
                yield from self._signalled(seen)
            case FreeReport():
                yield self._device_free(seen)
            case ProcessExited():
                yield from self._exited(seen)
            case _:
                self._pass_on(seen)
                yield from self._observer.take(seen, self._now)
                yield from self._newly_saved(seen)

    def _pass_on(self, seen: ShellEvent) -> None:
        if isinstance(seen, Output):
            self._audience.output(seen.data)
        elif isinstance(seen, Report):
            append_json(self._attempt_folder / "memory.jsonl", seen.message)

    def _hear(self, asked: _Asked) -> None:
        leaving = self._leaving
        if leaving is not None and asked.signum == signal.SIGINT:  # somebody waits for an answer
            leaving.stop(grace_s=0.0)
        self._queue.put(asked)

    @property
    def _attempt_folder(self) -> Path:
        return self._folder.attempt(len(self.record.attempts))

    def _newly_saved(self, seen: ShellEvent) -> Iterator[Event]:
        """Look for a new checkpoint when a process has saved something and goes on."""
        if not isinstance(seen, Report) or self._layout is None or self._stamp is None:
            return
        saves = seen.message.get("phase") == Phase.SAVE.value
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
        # A warning, then the end: the job was told, and its grace goes on.
        warned = before == signal.SIGUSR1 != asked.signum
        if before is not None and not warned:  # asked a second time: no more grace
            self._end_processes(grace_s=0.0)
        yield Signalled(t=self._now, signum=asked.signum)

    def _device_free(self, seen: FreeReport) -> Event:
        found = self._found()
        return DeviceFree(
            t=self._now,
            attempt=len(self.record.attempts),
            free=seen.free,
            waited_s=seen.waited_s,
            busy=", ".join(
                f"{show_bytes(held)} above what was in use before on GPU {uuid}"
                for uuid, held in seen.held_bytes.items()
            ),
            checkpoints=found.whole,
            damaged=found.damaged,
        )

    def _found(self) -> Found:
        """Look for what the attempt has saved, and whether what others saved is still there."""
        if self._layout is None or self._stamp is None:
            return Found()
        found = find(self._layout, before=self._stamp)
        known = {found.path for found in found.whole} | set(found.damaged)
        others = (c for c, _ in self.record.checkpoints if c.path not in known)
        gone = (c.path for c in others if not is_whole(Path(c.path), c.step, self._layout.needs))
        return replace(found, damaged=(*found.damaged, *gone))

    def _exited(self, seen: ProcessExited) -> Iterator[Event]:
        yield from self._observer.close(self._now, well=seen.returncode == 0)
        log_error = self._running.log_error if self._running else None
        self._leaving = self._running
        self._end_processes(grace_s=GRACE_LEFTOVERS_S)
        self._leaving = None
        attempt = self.record.last
        verdict = verdict_of(attempt, seen.returncode)
        self._folder.keep(self._attempt_folder / "verdict.json", mask_verdict(verdict))
        self._folder.forget_output(attempt.number)
        yield Exited(
            t=self._now,
            attempt=attempt.number,
            returncode=seen.returncode,
            verdict=verdict,
            log_error=log_error,
        )

    def _end_processes(self, *, grace_s: float) -> None:
        if self._running is not None:
            self._running.stop(grace_s=grace_s)
            self._running.close()
            self._running = None

    def _act(self, action: Action) -> None:
        match action:
            case Launch():
                self._launch(action)
            case Stop():
                self._stop(action)
            case WaitForDevice():
                self._in_background(lambda: self._queue.put(self._engine.wait_until_free()))
            case Finish():
                self._happen(
                    Finished(
                        t=self._now,
                        status=action.status,
                        reason=action.reason,
                        skipped=action.skipped,
                    )
                )

    def _launch(self, action: Launch) -> None:
        number = len(self.record.attempts) + 1
        probe = probe_of(self._job, action.plan) if action.probe else None
        mark = f"{self._mark}-{number}"
        self._layout = self._adapter.checkpoint_layout(self._job)
        self._stamp = stamp(self._layout) if self._layout else {}
        self._happen(self._planned(action, number, mark, probe))
        self.command = self._command(action.plan, probe, action.begins)
        self._folder.keep(self._attempt_folder / "command.json", _shown(self.command))
        self._start(self.command, number, mark)

    def _planned(self, action: Launch, number: int, mark: str, probe: Probe | None) -> Planned:
        return Planned(
            t=self._now,
            attempt=number,
            mark=mark,
            before=self._stamp,
            plan=action.plan,
            steps=action.steps,
            skipped=action.skipped,
            begins=action.begins,
            purpose=action.purpose,
            path=action.path,
            undone=action.undone,
            probe=probe,
        )

    def _start(self, command: Command, number: int, mark: str) -> None:
        self._observer = self._new_observer(number)
        log = self._attempt_folder / "log.txt"
        self._running = self._engine.start(command, log=log, mark=mark, emit=self._queue.put)
        self._happen(
            Started(
                t=self._now,
                attempt=number,
                pid=self._running.pid,
                command=redact(command.by_hand()),
                kernel_watched=self._running.kernel_watched,
                cgroup=self._running.cgroup,
            )
        )

    def _command(self, plan: Plan, probe: Probe | None, begins: Continuation | None) -> Command:
        """Write what an attempt runs; a probe has nothing of the run, and leaves nothing in it."""
        folder, job = str(self._attempt_folder), self._job
        if probe is None:
            return self._adapter.write(job, plan, folder, begins)
        output = str(self._folder.output(self.record.last.number))
        command = self._adapter.write(self._adapter.as_trial(job, output), plan, folder)
        limits = monitor.probing(steps=probe.steps, tokens=probe.tokens)
        return replace(command, env={**command.env, **limits})

    def _new_observer(self, number: int) -> Observer:
        limits = self.record.limits
        by_rlimit = limits is not None and limits.host_memory_by == "rlimit"
        return Observer(
            number,
            begin=self._begin,
            data_limit_bytes=limits.host_memory_bytes if limits and by_rlimit else None,
            gpu_limit_bytes=limits.gpu_memory_bytes if limits else None,
        )

    def _stop(self, action: Stop) -> None:
        running = self._running
        if running is None:
            return
        self._happen(Stopping(t=self._now, attempt=self.record.last.number, reason=action.reason))
        signum = self.record.signum
        if action.reason == StopReason.SIGNAL and signum is not None:
            running.signal(signum)
        limits = self.record.limits
        grace_s = limits.grace_s if action.reason == StopReason.SIGNAL and limits else GRACE_OOM_S
        self._in_background(lambda: _stop_after(running, signum, grace_s))

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
            # Not here: a full queue would block the very thread that empties it.
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


def _stop_after(running: RunningAttempt, signum: int | None, grace_s: float) -> None:
    """Let the job end by the signal it was sent; what is left at the deadline is ended."""
    deadline = time.monotonic() + grace_s
    if signum is not None:
        while running.alive() and time.monotonic() < deadline:
            time.sleep(0.05)
    if signum == signal.SIGUSR1:  # a warning; who has saved and gone on is told to end
        grace_s = GRACE_LEFTOVERS_S
    elif signum is not None:
        grace_s = 0.0
    running.stop(grace_s=grace_s)


def _shown(command: Command) -> dict[str, object]:
    return {
        "argv": redact_argv(command.argv),
        "cwd": command.cwd,
        "env": redact_env(command.env),
        "config": command.config,
    }

"""Console output of a run: one line per event on stderr, beside the job's own output."""

from __future__ import annotations

import os
import sys
from typing import TextIO

import click

from oomguard.cli.fold import TracebackFold
from oomguard.cli.live_line import LiveLine
from oomguard.cli.live_text import Pace, live_text
from oomguard.cli.output import echo
from oomguard.cli.plan_text import (
    COSTS,
    counted,
    show_change,
    show_changes,
    show_plan,
    skipped_lines,
)
from oomguard.cli.run_lines import (
    begin_line,
    exit_line,
    final_batch_line,
    growth_line,
    is_job_failure,
    job_line,
    measured_line,
    not_launched_line,
    probe_note,
    resumed_line,
    shortfall_lines,
    split_key,
    split_line,
    survived,
    unchanged_line,
    verified_line,
    weighed_line,
    with_splits_line,
)
from oomguard.cli.streams import discard
from oomguard.evidence.settle import what_settles
from oomguard.evidence.verdict import Kind
from oomguard.run.attempt import Purpose, StopReason
from oomguard.run.events import (
    Counted,
    CutShort,
    DeviceFree,
    Event,
    Exited,
    Finished,
    Growing,
    LeftRunning,
    NotSplit,
    Planned,
    Progress,
    Resumed,
    RunStarted,
    Split,
    Status,
    Stopping,
)
from oomguard.run.long_sample import long_sample
from oomguard.run.no_use import had_no_effect
from oomguard.run.report import FitReport
from oomguard.run.state import RunRecord
from oomguard.run.verification import Outcome, difference, not_same_math, samples_check

#: Where nothing shows the phase of an OOM.
PHASE_UNKNOWN = (
    "note: nothing showed what the job was doing at this OOM, so strategies for any phase were "
    "tried; what makes a phase known: see docs/adding-a-framework.md"
)


class Console:
    """Prints events as they happen, on stderr; `quiet_stdout` sends the job's output there too.

    On a terminal a traceback that was printed before is shortened, unless `verbose`, and the last
    row says how far the run is; `close` gives it back.
    """

    def __init__(self, *, quiet_stdout: bool, verbose: bool = False) -> None:
        self._verbose = verbose
        self._stream = sys.stderr if quiet_stdout else sys.stdout
        is_terminal = self._stream.isatty() and sys.stderr.isatty()
        self._fold = TracebackFold() if is_terminal and not verbose else None
        is_live = is_terminal and os.environ.get("TERM", "dumb") != "dumb"
        self._live = LiveLine(self._draw, self._size) if is_live else None
        self._pace = Pace()
        self._fresh_line = True
        self._printed: set[str] = set()
        self.lost: dict[str, str] = {}  # streams that could not be written, and why

    def output(self, data: bytes) -> None:
        """Write the job's output, unchanged but for tracebacks on a terminal."""
        self._show(self._fold.feed(data) if self._fold else data)

    def event(self, event: Event, record: RunRecord) -> None:  # noqa: C901, PLR0912  a case for each kind
        """Print an event, if it matters to the user."""
        if isinstance(event, Progress):
            self._pace.add(event)
        if self._live is not None and isinstance(event, Progress | Planned | Split):
            self._live.show(lambda columns: live_text(record, self._pace, columns))
        match event:
            case RunStarted():
                self._line(job_line(event.job))
                if event.job.trained_embeddings:
                    names = " and ".join(event.job.trained_embeddings)
                    self._line(f"{names} will be trained in full, in addition to the adapter")
            case Resumed() | CutShort():
                self._line(resumed_line(event, record))
            case Planned():
                self._planned(event, record)
            case LeftRunning():
                count = counted(len(event.pids), "process", "processes")
                self._line(
                    f"the command has exited, {count} of it still running: waiting", "yellow"
                )
            case Exited():
                self._show(self._fold.close() if self._fold else b"")
                self._exited(event, record)
            case Counted():
                self._compared(record)
            case Split() if event.failed and not self._is_known(split_key(event)):
                self._line(split_line(event), "yellow")
            case NotSplit() if not self._is_known(event.reason):
                self._line(f"an OOM is not answered by smaller parts: {event.reason}", "yellow")
            case Growing():
                self._line(growth_line(event.growth), "yellow")
            case Stopping() if event.reason == StopReason.RECYCLE:
                self._line("stopped at this checkpoint, before an OOM", "yellow")
            case Stopping() if event.weighed is not None:
                self._line(weighed_line(event.weighed), "yellow")
            case DeviceFree() if not event.free:
                self._line(f"the device did not become free: {event.busy}", "red")
            case Finished():
                self.close()
                self._finished(record)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._live is not None:
            self._live.close()

    def say(self, text: str, style: str = "") -> None:
        """Print one line."""
        self._line(text, style)

    def notice(self, text: str) -> None:
        """Print what the user should know at once."""
        self._line(text, "red")

    def outcome(self, report: FitReport) -> None:
        """Print each change from the requested config, and the strongest fidelity cost.

        Where no strategy is left, print what was missing.
        """
        for line in shortfall_lines(report.shortfall) if report.shortfall else ():
            self._line(line)
        if report.status is not Status.FIT:
            return
        if report.with_splits is not None:
            self._line(with_splits_line(report.with_splits), "yellow")
        if report.verified is not None:
            self._line(*verified_line(report.verified))
        if report.final_batch is not None:
            self._line(*final_batch_line(report.final_batch))
        if not report.changes or report.fidelity is None:
            self._line(unchanged_line(report))
            return
        self._line(f"changes made ({COSTS[report.fidelity]}):")
        for change in report.changes:
            self._line(f"  {show_change(change)}")

    def _draw(self, text: str) -> None:
        self._write(text.encode("utf-8", "replace"))

    def _size(self) -> os.terminal_size:
        try:
            return os.get_terminal_size(self._stream.fileno())
        except OSError:
            return os.terminal_size((0, 0))

    def _show(self, data: bytes) -> None:
        if data:
            self._write(data)
            self._fresh_line = data.endswith(b"\n")

    def _write(self, data: bytes) -> None:
        """Write to the job's output; one that is full or closed does not stop training."""
        try:
            self._stream.buffer.write(data)
            self._stream.buffer.flush()
        except OSError as error:
            self._lose(self._stream, error)

    def _lose(self, stream: TextIO, error: OSError) -> None:
        name = "stderr" if stream is sys.stderr else "stdout"
        self.lost.setdefault(name, error.strerror or str(error))
        discard(stream)

    def _is_known(self, what: str) -> bool:
        """Return whether something was printed before, and note that it is."""
        known = what in self._printed
        self._printed.add(what)
        return known

    def _planned(self, event: Planned, record: RunRecord) -> None:
        if event.spec.purpose is Purpose.TRIAL and not event.spec.undone:
            self._line("continuing the trial with fewer changes, which was cut short", "yellow")
        elif event.spec.purpose is Purpose.TRIAL:
            undone = ", ".join(dict.fromkeys(event.spec.undone))
            before = record.attempts[-2] if len(record.attempts) > 1 else None
            shown = "trained in few steps" if before and before.completed else "fits"
            self._line(f"{shown}; retrying without {undone} to see if it was needed", "yellow")
        elif event.spec.purpose is Purpose.BEST:
            self._line("smaller changes do not fit; continuing with the best plan found", "yellow")
        for skip in event.spec.not_launched:
            self._line(not_launched_line(skip), "yellow")
        for step in event.spec.steps:
            self._line(
                f"{step.summary}: {show_changes(step.changes)} [{COSTS[step.fidelity]}]", "yellow"
            )
        ran = [attempt for attempt in record.attempts if attempt.spec.probe is None]
        lost = max((attempt.steps_done for attempt in ran), default=0)
        if event.spec.begins is not None and (event.spec.begins.checkpoint or lost):
            self._line(begin_line(event.spec.begins))
        title = f"attempt {event.attempt}{probe_note(event.spec.probe)}"
        requested = record.job.asked if record.job else None
        self._line(f"{title}: {show_plan(event.spec.plan, requested)}", "bold")

    def _exited(self, event: Exited, record: RunRecord) -> None:
        attempt = record.last
        passed = attempt.probe_passed
        good = passed or event.verdict.kind is Kind.OK
        line = exit_line(attempt, event.verdict, record.limits)
        self._line(line, "green" if good else "red")
        if event.verdict.kind is Kind.OK and (met := survived(attempt)) is not None:
            self._line(f"note: it survived an OOM: {met.text}", "yellow")
        if (cause := long_sample(record, attempt)) is not None:
            self._line(cause, "yellow")
        idle = had_no_effect(record.attempts[-2], attempt) if len(record.attempts) > 1 else None
        if idle is not None:
            names = ", ".join(step.strategy for step in attempt.spec.steps)
            self._line(f"{names} {idle}", "yellow")
        if event.log_error is not None:
            self._line(f"its log ends early: {event.log_error}", "yellow")
        if passed:
            self._line(measured_line(attempt, record.predicted_for(attempt.spec.plan)))

    def _compared(self, record: RunRecord) -> None:
        """Print once for each attempt what is not as the plan has it."""
        attempt, job = record.last, record.job
        told = f"compared {attempt.number}"
        if job is None or told in self._printed:
            return
        check = samples_check(attempt, job)
        broken = not_same_math(record, attempt.spec.plan)
        known = any("not the same math" in step.summary for step in attempt.spec.steps)
        if check.outcome is Outcome.DIFFERS and difference(record) is None:
            self._line(check.reason, "yellow")  # otherwise the run ends with this reason
        elif broken is not None and not known:
            self._line(f"not the same math, but a new recipe: {broken}", "yellow")
        else:
            return
        self._printed.add(told)

    def _finished(self, record: RunRecord) -> None:
        if record.status is Status.FIT:
            probes = sum(1 for attempt in record.attempts if attempt.spec.probe is not None)
            count = counted(len(record.attempts) - probes, "attempt")
            after = f" after {counted(probes, 'probe')}" if probes else ""
            self._line(f"trained, in {count}{after}", "bold green")
            return
        reason = record.reason
        if record.status is Status.FAILED and is_job_failure(record):
            why = record.last.verdict
            if why is not None and why.kind is Kind.UNKNOWN:
                shown = "nothing shows that memory was the reason"
                self._line(f"failed: {shown}, so it is not relaunched", "bold red")
                self._line(f"to find out: {what_settles(why)}", "yellow")
            else:
                self._line("failed: not a memory failure, so it is not relaunched", "bold red")
        elif record.status is Status.EXHAUSTED:
            self._line(f"giving up: {reason}", "bold red")
            if record.last.verdict is not None and not record.last.verdict.phase_known:
                self._line(PHASE_UNKNOWN, "yellow")
        else:
            status = record.status.value if record.status else ""
            self._line(f"{status}: {reason}", "bold red")
        if record.skipped_last and not self._verbose:
            count = counted(len(record.skipped_last), "strategy", "strategies")
            self._line(f"  {count} skipped (--verbose lists the reasons)")
            return
        for line in skipped_lines(record.skipped_last):
            self._line(f"  skipped {line}")

    def _line(self, text: str, style: str = "") -> None:
        if not self._fresh_line:
            self._write(b"\n")
            self._fresh_line = True
        colour = style.replace("bold", "").strip() or None
        styled = click.style(text, fg=colour, bold=True if "bold" in style else None)
        plain = bool(os.environ.get("NO_COLOR"))
        line = f"{click.style('oomguard', fg='cyan')} {styled}"
        try:
            echo(line, err=True, color=False if plain else None)
        except OSError as error:
            self._lose(sys.stderr, error)

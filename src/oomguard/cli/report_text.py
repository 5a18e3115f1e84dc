"""A fit-report as Markdown."""

from __future__ import annotations

from collections.abc import Iterator

from oomguard.cli.peak_text import main_peak
from oomguard.cli.plan_text import COSTS, counted, show_changes, show_plan
from oomguard.cli.provenance_lines import data_line, environment_line
from oomguard.cli.run_lines import (
    KINDS,
    STATUSES,
    final_batch_line,
    shortfall_lines,
    step_cost,
    unchanged_line,
    verified_line,
    with_splits_line,
)
from oomguard.evidence.verdict import Kind
from oomguard.run.events import Status
from oomguard.run.report import AttemptReport, FitReport
from oomguard.units import show_bytes, show_seconds

#: What runs a config that fits again.
REPRODUCE = "oomguard reproduce fit-report.json --root DIR"
#: A longer diff is cut off: the report is to be read in an issue.
DIFF_LINES = 40


def markdown(report: FitReport) -> Iterator[str]:
    """Yield the lines of a report: how it ended, what changed, each attempt, the diff."""
    yield f"### oomguard: {STATUSES[report.status]}, in {counted(len(report.attempts), 'attempt')}"
    yield ""
    yield f"- {report.framework} on {report.device.value}, global batch {report.global_batch}"
    yield f"- requested: {show_plan(report.asked)}"
    if report.final is not None:
        yield f"- {_final(report)}"
    if report.with_splits is not None:
        yield f"- {with_splits_line(report.with_splits)}"
    if report.data is not None:
        yield f"- data: {data_line(report.data)}"
    if (loss := loss_line(report)) is not None:
        yield f"- {loss}"
    if report.verified is not None:
        yield f"- {verified_line(report.verified)[0]}"
    if report.final_batch is not None:
        yield f"- {final_batch_line(report.final_batch)[0]}"
    if report.status is not Status.FIT:
        yield f"- reason: {report.reason}"
    for line in shortfall_lines(report.shortfall) if report.shortfall else ():
        yield f"- {line}"
    yield ""
    yield from _attempts(report)
    if report.config_diff:
        yield ""
        yield from _diff(report.config_diff)
    yield from _end(report)


def _end(report: FitReport) -> Iterator[str]:
    """Yield how to run it again, and where it ran."""
    if report.reproduction is not None:
        yield ""
        yield f"To run it elsewhere: `{REPRODUCE}`"
    yield ""
    where = f"; {environment_line(report.environment)}" if report.environment else ""
    yield f"<sub>oomguard {report.oomguard}, run {report.run}, {report.at}{where}</sub>"


def _final(report: FitReport) -> str:
    if not report.changes or report.fidelity is None:
        return unchanged_line(report)
    return f"changed ({COSTS[report.fidelity]}): {show_changes(report.changes)}"


def _attempts(report: FitReport) -> Iterator[str]:
    yield "| attempt | plan | result | peak | time |"
    yield "|---|---|---|---|---|"
    for attempt in report.attempts:
        plan = show_plan(attempt.spec.plan, report.asked)
        kind = "probe " if attempt.spec.probe else ""
        cells = (
            f"{kind}{attempt.number}",
            plan,
            result_text(attempt),
            str(main_peak(attempt, report.limits) or ""),
            show_seconds(attempt.seconds),
        )
        yield "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def loss_line(report: FitReport) -> str | None:
    """Return the first and the last loss of the last attempt that printed one."""
    known = [attempt for attempt in report.attempts if attempt.loss is not None]
    loss = known[-1].loss if known else None
    if loss is None:
        return None
    of = "" if known[-1] is report.attempts[-1] else f" (attempt {known[-1].number})"
    last = f", {loss.last:g} at {loss.unit} {loss.last_at:g}" if loss.last is not None else ""
    return f"loss{of}: {loss.first:g} at {loss.unit} {loss.first_at:g}{last}"


def result_text(attempt: AttemptReport) -> str:
    """Return how an attempt ended."""
    verdict = attempt.verdict
    steps = f" after {counted(attempt.optimizer_steps, 'step')}" if attempt.optimizer_steps else ""
    if verdict is None:
        return "not known"
    if verdict.kind.is_memory:
        size = verdict.requested_bytes
        asked = f", {show_bytes(size)} requested" if size else ""
        return f"{KINDS[verdict.kind]} in {verdict.phase.value}{steps}{asked}"
    if attempt.stopped is not None:
        return f"stopped{steps}: {attempt.stopped.value}"
    if verdict.kind is not Kind.OK:
        return f"failed{steps}: {verdict.root or verdict.kind.value}"
    split = attempt.splits.steps if attempt.splits else 0
    parts = f", {counted(split, 'step')} in smaller parts" if split else ""
    cost = step_cost(attempt)
    parts += f" ({cost})" if parts and cost else ""
    return f"finished{steps}{parts}"


def _diff(diff: str) -> Iterator[str]:
    lines = diff.splitlines()
    yield from _block("diff", lines[:DIFF_LINES])
    if len(lines) > DIFF_LINES:
        yield f"... and {counted(len(lines) - DIFF_LINES, 'more line')}, see fit-report.json"


def _block(language: str, lines: list[str]) -> Iterator[str]:
    """Yield a code block whose fence is longer than any in it."""
    fence = "`" * max(3, 1 + max((_ticks(line) for line in lines), default=0))
    yield fence + language
    yield from lines
    yield fence


def _ticks(line: str) -> int:
    """Return how many backticks a line begins with, after blanks and a diff's sign."""
    text = line.lstrip(" +-")
    return len(text) - len(text.lstrip("`"))

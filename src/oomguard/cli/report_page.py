"""A fit-report as one HTML page that loads nothing. Pure: reports and plots in, text out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from oomguard.cli.markup import NOTHING, Markup, copied, element, joined, section, table
from oomguard.cli.peak_text import peaks
from oomguard.cli.plan_text import COSTS, counted, show_changes, show_plan, skipped_lines
from oomguard.cli.provenance_lines import data_line, environment_facts
from oomguard.cli.report_style import SCRIPT, STYLE, policy
from oomguard.cli.report_text import REPRODUCE, loss_line, result_text
from oomguard.cli.run_lines import (
    STATUSES,
    begin_line,
    final_batch_line,
    shortfall_lines,
    step_cost,
    unchanged_line,
    verified_line,
    with_splits_line,
)
from oomguard.evidence.verdict import Finding
from oomguard.job.training_job import Device
from oomguard.run.attempt import Purpose
from oomguard.run.events import Predicted, Status
from oomguard.run.report import AttemptReport, FitReport
from oomguard.units import show_bytes, show_seconds

#: A page holds at most this much of what may be endless; the files of the run have all.
DIFF_LINES, SKIPPED, EVIDENT, FINDINGS, FINDING_CHARS = 2000, 200, 50, 10, 1000
_PURPOSES = {
    Purpose.TRAIN: "",
    Purpose.TRIAL: "a trial with fewer changes",
    Purpose.BEST: "the fewest changes that fit",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plots:
    """What is in the sections that show values over time."""

    memory: Markup = NOTHING
    loss: Markup = NOTHING


def without_plots(why: str) -> Plots:
    """Return the reason in the place of the plots."""
    return Plots(memory=element("p", why[:1].upper() + why[1:], class_="soft"))


def page(report: FitReport, plots: Plots) -> str:
    """Return the page of a report, whose secrets are masked."""
    first = headline(report)
    head = joined(
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy()),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", f"oomguard: {STATUSES[report.status]}, {report.run}"),
        element("style", Markup(STYLE)),
    )
    body = joined(
        element("h1", first, class_="good" if report.status is Status.FIT else "bad"),
        *_overview(report),
        section("What was tried", _ladder(report), name="ladder"),
        section("Memory over time", plots.memory, name="memory"),
        section("Predicted and measured", *_predictions(report), name="predicted"),
        section("Loss", plots.loss, name="loss"),
        section("Config", *_config(report), name="config"),
        section("Evidence", *map(_evidence, report.attempts[-EVIDENT:]), name="evidence"),
        section("Strategies that were not taken", _not_taken(report), name="not-taken"),
        section("Where it ran", _surroundings(report), name="surroundings"),
    )
    script = element("script", Markup(SCRIPT))
    content = element("body", element("main", body), script)
    return f"<!doctype html>\n{element('html', element('head', head), content, lang='en')}\n"


def headline(report: FitReport) -> str:
    """Return how the run ended, in one sentence."""
    attempts = counted(len(report.attempts), "attempt")
    if report.status is Status.FAILED:
        return f"The job failed in {attempts}, and not for lack of memory: {report.reason}"
    if report.status is Status.INTERRUPTED:
        return f"The run was interrupted in {attempts}: {report.reason}"
    if report.status is Status.EXHAUSTED:
        return f"It does not fit, after {attempts}: {report.reason}"
    if not report.changes or report.fidelity is None:
        return f"It trained in {attempts}: {unchanged_line(report)}."
    cost, changes = COSTS[report.fidelity], show_changes(report.changes)
    return f"It trained in {attempts}; the config that fits is changed ({cost}): {changes}."


def _facts(*facts: tuple[str, str]) -> Markup:
    """Return names with their values, without those that have none."""
    pairs = [(element("dt", name), element("dd", value)) for name, value in facts if value]
    return element("dl", *(part for pair in pairs for part in pair))


def _overview(report: FitReport) -> Iterator[Markup]:
    processes = counted(report.world.size, "process", "processes")
    yield _facts(
        ("job", f"{report.framework} on {report.device.value}, {processes}"),
        ("global batch", str(report.global_batch)),
        ("requested", show_plan(report.asked)),
        ("fits", show_plan(report.final, report.asked) if report.final else ""),
        ("limits", _limits(report)),
        ("time", show_seconds(report.seconds)),
        ("loss", (loss_line(report) or "").removeprefix("loss: ")),
        ("counted", verified_line(report.verified)[0] if report.verified else ""),
        ("final config", final_batch_line(report.final_batch)[0] if report.final_batch else ""),
    )
    if report.with_splits is not None:
        yield element("p", with_splits_line(report.with_splits), class_="warn")
    if report.shortfall is not None:
        lines = shortfall_lines(report.shortfall)
        yield element("ul", *(element("li", line) for line in lines), class_="warn")
    if report.command:
        fits = report.status is Status.FIT
        use = "To train it without oomguard:" if fits else "The last attempt, without oomguard:"
        yield element("p", use, class_="soft")
        yield copied(joined(report.command), "command", language="command")
    if report.reproduction is not None:
        yield element("p", "To run it elsewhere, where DIR is a copy of the job:", class_="soft")
        yield copied(joined(REPRODUCE), "reproduce", language="command")


def _limits(report: FitReport) -> str:
    limits = report.limits
    found = []
    if limits.gpu_memory_bytes:
        found.append(f"{show_bytes(limits.gpu_memory_bytes)} on each GPU")
    if limits.host_memory_bytes:
        by = {"rlimit": "in each process", "cgroup": "in all processes together"}
        how = by.get(limits.host_memory_by or "", "")
        found.append(f"{show_bytes(limits.host_memory_bytes)} of host memory {how}".strip())
    return ", ".join(found)


# --- The ladder ---


def _ladder(report: FitReport) -> Markup:
    before: tuple[AttemptReport | None, ...] = (None, *report.attempts)
    steps = [_attempt(report, last, one) for last, one in pairwise(before) if one is not None]
    return element("ol", *steps, class_="steps") if steps else NOTHING


def _attempt(report: FitReport, last: AttemptReport | None, one: AttemptReport) -> Markup:
    probe = "a probe" if one.spec.probe else ""
    note = ", ".join(filter(None, (probe, _PURPOSES[one.spec.purpose])))
    changes = [
        f"{step.strategy}: {show_changes(step.changes)} ({COSTS[step.fidelity]})"
        for step in one.spec.steps
    ]
    undone = f"reverted: {', '.join(one.spec.undone)}" if one.spec.undone else ""
    facts = _facts(
        ("changed", joined(*(element("div", change) for change in (*changes, undone) if change))),
        ("not tried alone", joined(*(element("div", why) for why in _not_launched(one)))),
        ("plan", show_plan(one.spec.plan, report.asked)),
        ("begins", begin_line(one.spec.begins) if one.spec.begins else ""),
        ("peak", ", ".join(map(str, peaks(one, report.limits)))),
        ("saved", _saved(last, one)),
        ("cost", ", ".join(filter(None, (show_seconds(one.seconds), _splits(one))))),
    )
    ran_out = one.verdict is not None and one.verdict.kind.is_memory
    heading = f"{one.number}. {result_text(one)}" + (f" ({note})" if note else "")
    kind = "bad" if ran_out else "good" if one.returncode == 0 else "other"
    return element("li", element("h3", heading), facts, class_=kind)


def _not_launched(one: AttemptReport) -> Iterator[str]:
    """Yield the strategies whose plans were known to be too little, each with the reason."""
    return (f"{skip.strategy}: {skip.reason}" for skip in one.spec.not_launched)


def _saved(last: AttemptReport | None, one: AttemptReport) -> str:
    """Return what an attempt needs less than the one before, by prediction or by measurement."""
    if last is None or not (one.spec.steps or one.spec.undone):
        return ""
    if last.predicted and one.predicted:
        less = last.predicted.expected_bytes - one.predicted.expected_bytes
        return f"{show_bytes(less)} on each GPU, predicted"
    ended = (last.verdict is not None and not last.verdict.kind.is_memory) and last.returncode == 0
    pairs = (
        (last.device_peak_bytes, one.device_peak_bytes),
        (last.data_peak_bytes, one.data_peak_bytes),
        (last.host_peak_bytes, one.host_peak_bytes),
    )
    known = next(((a, b) for a, b in pairs if a and b), None)
    if ended and known:
        return f"{show_bytes(known[0] - known[1])}, measured"
    return "not known: the attempt before ended before its peak"


def _splits(one: AttemptReport) -> str:
    splits = one.splits
    if splits is None or not (splits.steps or splits.evaluations):
        return ""
    lost = f"{splits.seconds:.1f} s lost to out-of-memory errors"
    cost = step_cost(one)
    return f"{counted(splits.steps, 'step')} in smaller parts ({lost}{'; ' if cost else ''}{cost})"


# --- Predictions ---


def _predictions(report: FitReport) -> Iterator[Markup]:
    predicted = [(one, one.predicted) for one in report.attempts if one.predicted is not None]
    if not predicted:
        cpu = report.device is Device.CPU
        why = (
            "this job trains on the CPU, and plans are predicted for GPUs"
            if cpu
            else ("no plan of this run was predicted")
        )
        yield element("p", f"There is nothing to compare: {why}.", class_="soft")
        return
    rows = [row for one, plan in predicted for row in _compared(one, plan)]
    yield table(("attempt", "measure on each GPU", "predicted", "measured", "difference"), rows)
    one, plan = predicted[-1]
    largest = sorted(plan.terms.items(), key=lambda term: -term[1])
    parts = [(name.replace("_", " "), show_bytes(size)) for name, size in largest if size]
    title = f"What the prediction for attempt {one.number} is made of ({plan.method})"
    shown = element("summary", title)
    yield element("details", shown, table(("term", "predicted"), parts))


def _compared(one: AttemptReport, plan: Predicted) -> Iterator[tuple[str, ...]]:
    """Yield each peak beside its prediction; after an OOM it is only how far it came."""
    cut = one.verdict is not None and one.verdict.kind.is_memory
    for what, expected, measured in (
        ("peak allocated", plan.allocated_bytes, one.device_peak_bytes),
        ("peak reserved", plan.reserved_bytes, one.reserved_peak_bytes),
    ):
        if measured is None:
            seen = difference = "not measured"
        else:
            seen = show_bytes(measured) + (", then out of memory" if cut else "")
            difference = "" if cut else f"{measured / max(1, expected) - 1:+.1%}"
        yield str(one.number), what, show_bytes(expected), seen, difference


# --- Config and evidence ---


def _config(report: FitReport) -> Iterator[Markup]:
    if report.config_diff:
        lines = report.config_diff.splitlines()
        shown = [element("span", _marked(line)) for line in lines[:DIFF_LINES]]
        yield copied(joined(*shown), "diff", language="diff")
        if len(lines) > DIFF_LINES:
            left = counted(len(lines) - DIFF_LINES, "more line")
            yield element("p", f"... and {left}, see fit-report.json", class_="soft")
    elif report.config:
        yield element("p", f"{report.config} is unchanged, or nothing fits.", class_="soft")


def _marked(line: str) -> Markup:
    """Return a line of a diff; a line that is added or removed is marked as such."""
    added = line.startswith("+") and not line.startswith("+++")
    removed = line.startswith("-") and not line.startswith("---")
    name = "ins" if added else "del" if removed else "span"
    return joined(element(name, line) if name != "span" else line, "\n")


def _evidence(one: AttemptReport) -> Markup:
    verdict = one.verdict
    if verdict is None or not verdict.evidence:
        return NOTHING
    title = f"Attempt {one.number}: {result_text(one)}, {verdict.confidence.value} confidence"
    found = verdict.evidence[:FINDINGS]
    left = len(verdict.evidence) - len(found)
    more = element("p", f"... and {left} more, see verdict.json", class_="soft") if left else ""
    listed = element("ol", *(element("li", *_finding(piece)) for piece in found))
    summary = element("summary", title)
    if verdict.kind.is_other_failure or any(one.kind.is_memory for one in verdict.evidence):
        return element("details", summary, listed, more, open="")
    return element("details", summary, listed, more)


def _finding(found: Finding) -> Iterator[Markup]:
    known = (
        found.witness.value,
        found.kind.value,
        "" if found.phase.value == "unknown" else found.phase.value,
        "" if found.rank is None else f"rank {found.rank}",
        "" if found.step is None else f"step {found.step}",
        "" if found.line is None else f"line {found.line} of log.txt",
        f"{show_bytes(found.requested_bytes)} requested" if found.requested_bytes else "",
        "handled by the job or in smaller parts" if found.handled else "",
    )
    yield element("span", ", ".join(filter(None, known)), class_="soft")
    text = found.text
    cut = f"{text[:FINDING_CHARS]} ..." if len(text) > FINDING_CHARS else text
    yield element("pre", cut, class_="text", tabindex="0")


def _not_taken(report: FitReport) -> Markup:
    lines = list(skipped_lines(report.not_taken))[:SKIPPED]
    return element("ul", *(element("li", line) for line in lines)) if lines else NOTHING


def _surroundings(report: FitReport) -> Markup:
    return _facts(
        *(environment_facts(report.environment) if report.environment else ()),
        ("data", data_line(report.data) if report.data else ""),
        ("config", report.config or ""),
        ("oomguard", report.oomguard),
        ("run", report.run),
        ("started", report.at),
    )

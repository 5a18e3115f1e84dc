"""What a strategy changes shows in the headline of its attempt, on the terminal and in reports."""

from __future__ import annotations

import re
from dataclasses import fields, replace

import pytest
from hypothesis import given

from generators import plans
from oomguard.cli.console import Console
from oomguard.cli.markup import element
from oomguard.cli.plan_text import show_plan
from oomguard.cli.report_page import Plots, page
from oomguard.cli.report_text import markdown
from oomguard.evidence.verdict import Kind, Verdict
from oomguard.job.plan import Plan, as_json
from oomguard.run.attempt import AttemptSpec
from oomguard.run.events import (
    Event,
    Exited,
    Finished,
    Limits,
    Planned,
    RunStarted,
    Started,
    Status,
)
from oomguard.run.report import FitReport, build
from oomguard.run.state import RunRecord, replay
from oomguard.strategy import NEW_RECIPE
from strategy_changes import ALL, CHANGES, job_of


def history(plan, job, changed) -> list[Event]:
    """Return the events of a run that trains the changed plan in its second attempt."""
    asked = job_of(plan, job)
    limits = Limits(ladder=(), allow=NEW_RECIPE, max_attempts=9)
    events: list[Event] = [
        RunStarted(t=0, run="r", version="0", at="now", job=asked, limits=limits)
    ]
    ends = (Verdict(kind=Kind.DEVICE_OOM), Verdict(kind=Kind.OK))
    tried = (asked.asked, replace(asked.asked, **changed))
    for number, (one, verdict) in enumerate(zip(tried, ends, strict=True), start=1):
        events += [
            Planned(t=1, attempt=number, spec=AttemptSpec(plan=one)),
            Started(t=1, attempt=number, pid=7, command="x", kernel_watched=False),
            Exited(t=2, attempt=number, returncode=0, verdict=verdict),
        ]
    return [*events, Finished(t=3, status=Status.FIT, reason="trained to completion")]


def report_of(record: RunRecord) -> FitReport:
    return build(record)


@pytest.fixture
def told(capfd):
    """Return a function that gives the headline of the second attempt in each place."""

    def run(plan, job, changed) -> dict[str, str]:
        events = history(plan, job, changed)
        record = replay(events)
        Console(quiet_stdout=True).event(events[4], replay(events[:5]))
        terminal = capfd.readouterr().err.strip().splitlines()[-1]
        (row,) = (line for line in markdown(report_of(record)) if line.startswith("| 2 |"))
        text = page(report_of(record), Plots())
        shown = re.findall(r"<dt>plan</dt><dd>(.*?)</dd>", text)
        return {"terminal": terminal, "markdown": row, "page": shown[1]}

    return run


#: Fields that stand in a headline by their value alone, or in words of their own.
IN_WORDS = {
    "micro_batch": "micro batch {}",
    "accumulation": "accumulation {}",
    "sequence_length": "{} tokens",
    "completion_length": "{} generated tokens",
    **dict.fromkeys(("precision", "tuning", "quantization", "sharding"), "{}"),
}


def words_of(field: str, value: object) -> str:
    shown = as_json(value)
    text = "+".join(shown) or "none" if isinstance(shown, list) else str(shown)
    nothing = text in ("none", "None")
    pattern = IN_WORDS.get(field)
    return pattern.format(text) if pattern and not nothing else f"{field} {text}"


@pytest.mark.parametrize(("name", "plan", "job", "changed"), CHANGES)
def test_each_changed_field_of_each_strategy_shows(told, name, plan, job, changed):
    assert name in ALL
    for where, headline in told(plan, job, changed).items():
        for field, value in changed.items():
            expected = words_of(field, value)
            if where == "page":
                expected = element("p", expected).removeprefix("<p>").removesuffix("</p>")
            alone = rf"(?:^|[,:|] ){re.escape(expected)}(?:,| \||$)"
            assert re.search(alone, headline), (where, headline)


@given(plans, plans)
def test_any_field_that_differs_from_the_requested_plan_shows(asked, changed):
    parts = show_plan(changed, asked).split(", ")
    for field in fields(Plan):
        before, after = getattr(asked, field.name), getattr(changed, field.name)
        if before != after:
            assert words_of(field.name, after) in parts, field.name


@given(plans)
def test_a_plan_as_requested_shows_no_change(asked):
    assert show_plan(asked, asked) == show_plan(asked)

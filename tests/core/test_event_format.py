"""Event logs and fit-reports that were written before stay readable, key by key."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from generators import make_job
from oomguard.job.plan import Plan
from oomguard.ladder.strategy_contract import Fidelity
from oomguard.run.attempt import AttemptSpec, StopReason
from oomguard.run.events import (
    NAMES,
    Finished,
    Limits,
    Planned,
    RunStarted,
    Start,
    Status,
    Ticked,
    event_from_json,
    event_to_json,
)
from oomguard.run.report import FitReport, build, from_json, to_json
from oomguard.run.state import replay

#: One event of each kind (and each stop reason), as oomguard 0.1 wrote them.
LINES = (Path(__file__).parents[1] / "data/events/format-1.jsonl").read_text().splitlines()
OLD = [msgspec.json.decode(line, type=dict[str, object]) for line in LINES]
EXITED = next(line for line in OLD if line["event"] == "exited")
#: Fields that events have gained since; without them an older line is read.
NEWER = {
    "split": {"spans", "refused", "timing"},
    "stopping": {"weighed"},
    "finished": {"untried"},
    "planned": {"not_launched"},
    "exited": {"loss"},
    "resumed": {"environment", "data"},
    "run_started": {"folder", "environment", "data"},
}


def test_every_kind_of_event_and_every_stop_reason_is_pinned():
    assert {line["event"] for line in OLD} == set(NAMES.values())
    assert {line["reason"] for line in OLD if line["event"] == "stopping"} == set(StopReason)
    assert Ticked not in NAMES  # it is never written


@pytest.mark.parametrize("old", OLD, ids=lambda line: str(line["event"]))
def test_an_event_is_written_with_the_keys_and_values_it_always_had(old):
    written = msgspec.json.decode(msgspec.json.encode(event_to_json(event_from_json(old))))
    assert _with_the_keys_of(written, old) == old  # jobs, starts and plans have gained fields
    assert set(written) - NEWER.get(str(old["event"]), set()) == set(old)
    assert list(written)[:2] == ["event", "t"]


def _with_the_keys_of(new, old):
    """Return a value without the keys of objects in it that the older one has not."""
    if isinstance(new, list) and isinstance(old, list) and len(new) == len(old):
        return [_with_the_keys_of(*pair) for pair in zip(new, old, strict=True)]
    if not isinstance(new, dict) or not isinstance(old, dict):
        return new
    return {key: _with_the_keys_of(new[key], value) for key, value in old.items()}


def test_a_start_without_the_newer_fields_is_read():
    started = event_from_json(OLD[0])
    assert isinstance(started, RunStarted)
    assert isinstance(started.start, Start)
    assert started.start.spec.path == ("halve_micro_batch",)


def ended(spec: AttemptSpec) -> FitReport:
    """Return the report of a run with one attempt."""
    limits = Limits(ladder=(), allow=Fidelity.SAME_MATH, max_attempts=1)
    job = make_job(Plan(micro_batch=8, accumulation=1))
    record = replay(
        [
            RunStarted(t=0, run="r", version="0", at="now", job=job, limits=limits),
            Planned(t=1, attempt=1, spec=spec),
            event_from_json({**EXITED, "attempt": 1}),
            Finished(t=3, status=Status.FIT, reason="trained to completion"),
        ]
    )
    assert record.last.spec is spec
    return build(record)


def test_an_attempt_is_one_value_from_the_event_to_the_report():
    spec = AttemptSpec(plan=Plan(micro_batch=4, accumulation=2), path=("halve_micro_batch",))
    report = ended(spec)
    assert report.attempts[0].spec == spec
    document = msgspec.json.decode(msgspec.json.encode(to_json(report)))
    assert "spec" not in document["attempts"][0]
    assert document["attempts"][0]["path"] == ["halve_micro_batch"]
    assert from_json(msgspec.json.encode(to_json(report))) == report


def test_a_report_without_the_newer_fields_of_an_attempt_is_read():
    report = ended(AttemptSpec(plan=Plan(micro_batch=8, accumulation=1)))
    document = to_json(report)
    (attempt,) = msgspec.convert(document["attempts"], list[dict[str, object]])
    old = {k: v for k, v in attempt.items() if k not in ("purpose", "path", "undone")}
    assert from_json(msgspec.json.encode({**document, "attempts": [old]})) == report

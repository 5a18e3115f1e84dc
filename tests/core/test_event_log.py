"""Reading the events of a run: long ones stay small, and those of other versions are refused."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from io import BytesIO

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from generators import make_job, make_ladder
from oomguard.errors import RunFolderError
from oomguard.evidence.verdict import Finding, Kind, Phase, Witness
from oomguard.job.plan import Plan
from oomguard.run.attempt import AttemptSpec
from oomguard.run.event_log import SINGLE_AFTER_FINDING, parse_history
from oomguard.run.events import (
    Limits,
    Noticed,
    Planned,
    Progress,
    RunStarted,
    Started,
    event_to_json,
)
from oomguard.run.state import replay

STARTED = RunStarted(
    t=0.0, run="r", version="9.9", at="2026-01-01T00:00:00Z", job=make_job(),
    limits=Limits(ladder=("halve_micro_batch",), allow=make_ladder().allow, max_attempts=20),
)  # fmt: skip
BEGIN = (
    STARTED,
    Planned(t=0.5, attempt=1, spec=AttemptSpec(plan=Plan(micro_batch=1, accumulation=1))),
    Started(t=1.0, attempt=1, pid=7, command="x", kernel_watched=True),
)
STEP = Progress(t=2.0, attempt=1, pid=7, rank=None, step=1, phase=Phase.FORWARD, said_t=2.0)


def written(*events) -> bytes:
    return b"".join(msgspec.json.encode(event_to_json(event)) + b"\n" for event in events)


def test_a_long_run_is_read_in_one_pass_and_in_bounded_memory():
    line = written(STEP)
    count = 20_000

    def lines():
        yield from written(*BEGIN).splitlines(keepends=True)
        for number in range(1, count + 1):
            yield line.replace(b'"step":1,', b'"step":%d,' % number)

    tracemalloc.start()
    history = parse_history(lines(), "events.jsonl")
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 1 << 20  # a copy of all would take twenty times as much
    assert history.record.last.steps_done == count
    # the first step's own report, for the time to the first step, and the merged rest
    assert len(history.events) == len(BEGIN) + 2


reports = st.builds(
    Progress,
    t=st.just(2.0), attempt=st.just(1), pid=st.sampled_from([7, 8]), rank=st.none(),
    step=st.integers(0, 40), phase=st.sampled_from([Phase.FORWARD, Phase.SAVE]),
    host_bytes=st.none() | st.integers(0, 9), device_bytes=st.none() | st.integers(0, 9),
    caught=st.booleans(),
)  # fmt: skip
notices = st.builds(
    Noticed,
    t=st.just(2.0), attempt=st.just(1),
    finding=st.builds(
        Finding, witness=st.sampled_from([Witness.LOG, Witness.INSIDE]),
        kind=st.just(Kind.HOST_OOM), text=st.just("MemoryError"), handled=st.booleans(),
    ),
)  # fmt: skip


@given(st.lists(reports | notices, max_size=60))
def test_the_merged_events_add_up_to_the_same_record(middle):
    timed = [replace(event, t=2.0 + n) for n, event in enumerate(middle)]
    told = [replace(e, said_t=e.t) if isinstance(e, Progress) else e for e in timed]
    # Steps only rise within one process; a finding is followed by its evidence one by one.
    history = parse_history(BytesIO(written(*BEGIN, *told)), "events.jsonl")
    whole, merged = replay((*BEGIN, *told)), history.record
    last = next((n for n in reversed(range(len(told))) if isinstance(told[n], Noticed)), -1)
    if last < 0 or len(told) - last <= SINGLE_AFTER_FINDING:
        assert merged == whole
    assert merged.last.steps_done == whole.last.steps_done
    assert merged.last.host_peak_bytes == whole.last.host_peak_bytes
    assert merged.last.findings == whole.last.findings or last >= 0


@pytest.mark.parametrize("place", ["last", "middle"])
def test_an_event_of_a_newer_version_is_refused_and_named(place):
    newer = b'{"event":"quantum_leap","t":3.0,"attempt":1}\n'
    after = written(STEP) if place == "middle" else b""
    with pytest.raises(RunFolderError) as refused:
        parse_history(BytesIO(written(*BEGIN) + newer + after), "events.jsonl")
    assert "another version of oomguard has written this run" in str(refused.value)
    assert "'quantum_leap'" in str(refused.value)
    assert refused.value.where.line == len(BEGIN) + 1


def test_a_line_that_is_cut_is_no_event_of_another_version():
    history = parse_history(BytesIO(written(*BEGIN) + b'{"event":"quantum_le'), "events.jsonl")
    assert len(history.events) == len(BEGIN)
    assert history.cut_bytes > 0

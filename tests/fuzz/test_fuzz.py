"""Whatever is read from outside: no crash, bounded memory, and errors of our own only."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from generators import make_job, make_ladder
from oomguard.cli.prepare import load
from oomguard.errors import ConfigError, RunFolderError
from oomguard.evidence.judge import judge
from oomguard.evidence.log import LogScanner
from oomguard.evidence.verdict import Kind, Verdict
from oomguard.job.plan import Plan
from oomguard.process.messages import LINE_BYTES, Lines, Report, parse
from oomguard.run.attempt import AttemptSpec
from oomguard.run.event_log import parse_history
from oomguard.run.events import (
    DeviceFree,
    Exited,
    Limits,
    Planned,
    Progress,
    Resumed,
    RunStarted,
    Signalled,
    Started,
    event_to_json,
)
from oomguard.run.observer import Observer

CORPUS = sorted((Path(__file__).parent / "corpus").iterdir())
quick = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
LIMITS = Limits(ladder=("halve_micro_batch",), allow=make_ladder().allow, max_attempts=20)
OOM = Verdict(kind=Kind.HOST_OOM, root="out of memory")
SPEC = AttemptSpec(plan=Plan(micro_batch=8, accumulation=1))
EVENTS = (
    RunStarted(t=0, run="r", version="0", at="2026-01-01", job=make_job(), limits=LIMITS),
    Planned(t=0.1, attempt=1, spec=SPEC, mark="m", before={}),
    Started(t=0.2, attempt=1, pid=7, command="x", kernel_watched=True),
    Progress(t=0.3, attempt=1, pid=7, rank=0, step=3, phase="forward"),
    Exited(t=0.4, attempt=1, returncode=1, verdict=OOM),
    DeviceFree(t=0.5, attempt=1, free=True, waited_s=0.1),
    Signalled(t=0.6, signum=15),
    Resumed(t=0.7, version="0", at="2026-01-02", cut_bytes=3),
)
LINES = [msgspec.json.encode(event_to_json(event)) + b"\n" for event in EVENTS]
#: Words that mean something to the log scanner, to be mixed with noise.
WORDS = (
    b"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
    b"DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes",
    b"Traceback (most recent call last):", b"  File \"a.py\", line 1, in f", b"Killed",
    b"{'loss': 1.0, 'step': 3}", b"{'train_runtime': 1.0}", b"exitcode: -9", b"[rank1]:",
    b"\n", b"\r", b"\0", b"\x1b[31m", b"9" * 400, b"GiB", "数".encode(), b"MemoryError",
)  # fmt: skip
yaml_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)


@quick
@given(st.lists(st.sampled_from(WORDS) | st.binary(max_size=200), max_size=40), st.data())
def test_a_log_is_read_to_its_end_however_it_is_cut(parts, data):
    log = b"".join(parts)
    whole = LogScanner()
    findings = [*whole.feed(log), *whole.close()]
    pieces = LogScanner()
    cut = data.draw(st.integers(0, len(log)))
    again = [*pieces.feed(log[:cut]), *pieces.feed(log[cut:]), *pieces.close()]
    assert again == findings
    for code in (None, 0, 1, -9):
        assert judge(findings, code).kind in Kind


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_the_corpus_is_read(path):
    log, scanner = path.read_bytes(), LogScanner()
    findings = [*scanner.feed(log), *scanner.close()]
    assert judge(findings, 1).kind in Kind


@quick
@given(st.binary(max_size=400))
@example(b"oomguard: {python: !!python/object/apply:os.system [id]}\nstage: sft\n")
@example(b"a: &a [*a]\n")
@example(b"a: &a [x]\nb: &b [*a,*a]\nc: [*b,*b]\n")
@example(b"? [1]\n: 2\n")
@example(b"{" * 3000)
@example(b"\xef\xbb\xbfa: 1\n")
def test_a_config_is_read_or_refused(tmp_path, data):
    path = tmp_path / "train.yaml"
    path.write_bytes(data)
    assert read_or_refused(path)


@quick
@given(yaml_like)
def test_an_oomguard_block_is_read_or_refused(tmp_path, block):
    path = tmp_path / "train.json"
    path.write_text(
        json.dumps({"stage": "sft", "oomguard": block}, allow_nan=False, default=str)
        if _finite(block)
        else "{}"
    )
    assert read_or_refused(path)


def read_or_refused(path: Path) -> bool:
    """Return whether a config has settings, or an error that names it."""
    try:
        return bool(load(path).document)
    except ConfigError as error:
        return str(path) in str(error)


def _finite(value):
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


@quick
@given(st.integers(0, len(b"".join(LINES))), st.binary(max_size=60))
def test_a_record_cut_anywhere_with_anything_behind_is_read_up_to_there(cut, tail):
    data = b"".join(LINES)[:cut]
    whole = data.count(b"\n")
    try:
        history = parse_history(BytesIO(data + tail.replace(b"\n", b"")), "events.jsonl")
    except RunFolderError:
        assert whole == 0
        return
    assert len(history.events) >= 1
    assert history.kept_bytes + history.cut_bytes == len(data + tail.replace(b"\n", b""))
    assert history.record.run == "r"


@quick
@given(st.lists(st.sampled_from(LINES) | st.binary(max_size=40), max_size=12))
def test_events_in_any_order_are_a_record_or_refused(lines):
    try:
        history = parse_history(BytesIO(b"".join(lines)), "events.jsonl")
    except RunFolderError:
        return
    record = history.record
    assert [attempt.number for attempt in record.attempts] == [*range(1, len(record.attempts) + 1)]


@quick
@given(st.lists(st.binary(max_size=300), max_size=20), st.integers(1, 64))
def test_lines_from_inside_are_cut_alike_however_they_come(parts, size):
    data = b"\n".join(parts) + b"\n"
    whole = list(Lines().feed(data))
    lines = Lines()
    pieces = [line for at in range(0, len(data), size) for line in lines.feed(data[at : at + size])]
    assert pieces == whole
    assert all(len(line) <= LINE_BYTES for line in whole)


MESSAGE = {
    "v": 1, "type": "oom", "pid": 7, "rank": 0, "local_rank": 0, "world": 2, "t": 1.0,
    "phase": "forward", "step": 3, "exception": "E", "message": "m", "uncaught": True,
    "frames": [], "memory": None, "shapes": None, "device": "cuda", "requested_bytes": 5,
    "capacity_bytes": None,
}  # fmt: skip


@quick
@given(st.sampled_from(sorted(MESSAGE)), yaml_like, st.booleans())
def test_a_message_with_anything_in_a_field_is_refused_or_understood(field, value, drop):
    message = {**MESSAGE, field: value}
    if drop:
        del message[field]
    line = json.dumps(message).encode()
    parsed = parse(line)
    if parsed is None:
        return
    events = [*Observer(1).take(Report(report=parsed, line=line), 1.0)]
    for event in events:
        assert event_to_json(event)["attempt"] == 1


@quick
@given(st.binary(max_size=500))
@example(b"[" * 100_000)
@example(b'{"v":1,"type":"bye","pid":1e999}')
@example(json.dumps({**MESSAGE, "t": 10**400}).encode())
def test_bytes_that_are_no_message_are_refused(line):
    assert parse(line) is None or isinstance(json.loads(line), dict)

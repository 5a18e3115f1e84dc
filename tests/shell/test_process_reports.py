"""Reports of the job's own processes: what keeps the protocol comes through, nothing else does."""

from __future__ import annotations

import json
import os
import queue
import socket
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oomguard.process.messages import (
    LINE_BYTES,
    AnyReport,
    Lines,
    ProcessExited,
    Report,
    parse,
    receive,
)
from oomguard.process.report_server import SOCKET_FILE, ReportServer, sweep
from shell.process_attempts import PATIENCE_S, WAIT, Attempt, make_attempts

attempts = pytest.fixture(make_attempts)
HEAD = {"v": 1, "pid": 7, "rank": 0, "local_rank": None, "world": 2, "t": 1.5, "step": 3}
CARD = dict.fromkeys(
    (
        "device",
        "allocated_bytes",
        "reserved_bytes",
        "peak_allocated_bytes",
        "peak_reserved_bytes",
        "free_bytes",
        "total_bytes",
    ),
    1,
)
PASSES = [{"shapes": 2, "elements": 512, "before_bytes": 9, "after_bytes": 7}]
MEMORY = {"rss_bytes": 5, "peak_rss_bytes": 6, "data_bytes": 4, "cuda": [CARD]}
OOM = {
    "exception": "torch.OutOfMemoryError",
    "message": "CUDA out of memory.",
    "uncaught": True,
    "frames": ["a.py:1 f"],
    "memory": MEMORY,
    "shapes": {"input_ids": [2, 512]},
    "device": "cuda",
    "requested_bytes": 10,
    "capacity_bytes": None,
    "phase_known": True,
    "passes": PASSES,
}
MESSAGES = [
    {**HEAD, "type": "hello", "phase": "launch", "argv0": "x", "python": "3.11", "torch": "2.1",
     "ppid": 1},
    {**HEAD, "type": "step", "phase": "optimizer", "memory": MEMORY, "seconds": 0.5, "shapes": {},
     "window": None, "passes": PASSES},
    {**HEAD, "type": "phase", "phase": "eval", "memory": {}},
    {**HEAD, "type": "oom", "phase": "forward", **OOM},
    {**HEAD, "type": "error", "phase": "load", "exception": "ValueError", "message": "ü",
     "frames": []},
    {**HEAD, "type": "fault", "phase": "unknown", "message": "m"},
    {**HEAD, "type": "probe", "phase": "forward", "memory": {}, "tokens": None, "longest": 9},
    {**HEAD, "type": "bye", "phase": "save", "memory": None, "more": "is kept"},
]  # fmt: skip
MAY_BE_MISSING = {"window", "phase_known", "passes"}
GARBAGE = [b"", b"\xff\xfe", b"[]", b"1", b"{}", b"{" * 9, b"[" * 60_000, b'{"v": NaN}', b"null"]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def line(message: object) -> bytes:
    return json.dumps(message).encode()


#: What is read of an empty memory.
UNMEASURED = {
    "rss_bytes": None, "peak_rss_bytes": None, "data_bytes": None, "peak_data_bytes": None,
    "cuda": [],
}  # fmt: skip


def holds(report: AnyReport, message: dict) -> bool:
    """Return whether a report is what a message says, in every field of its type."""
    read = json.loads(msgspec.json.encode(report))
    sent = {**message, "t": float(message["t"])}
    if read.get("memory") is not None:
        sent["memory"] = {**UNMEASURED, **sent["memory"]}
    if read.get("seconds") is not None:
        sent["seconds"] = float(sent["seconds"])
    return all(read[name] == sent[name] for name in read)


def received(attempt: Attempt) -> list[dict]:
    """Return the messages that came through, each as it was sent."""
    events = attempt.of(Report)
    sent = [json.loads(event.line) for event in events]
    assert all(holds(event.report, message) for event, message in zip(events, sent, strict=True))
    return sent


def sender(*lines: bytes) -> str:
    """Write Python code that sends these lines and ends."""
    stream = b"".join(one + b"\n" for one in lines)
    return (
        "import os, socket\n"
        "s = socket.socket(socket.AF_UNIX); s.connect(os.environ['OOMGUARD_SOCKET'])\n"
        f"s.sendall({stream!r})\n"
    )


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message["type"])
def test_a_message_of_each_type_is_read_as_it_is(message):
    report = parse(line(message))
    assert report is not None
    assert holds(report, message)


@pytest.mark.parametrize("message", MESSAGES[1:], ids=lambda message: message["type"])
def test_memory_may_be_null_but_not_in_a_probe(message):
    nothing = parse(line({**message, "memory": None}))
    assert (nothing is None) == (message["type"] == "probe")


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_is_no_message(garbage):
    assert parse(garbage) is None


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message["type"])
def test_a_message_that_lacks_a_field_is_refused(message):
    for name in message.keys() - {"more"} - MAY_BE_MISSING:
        assert parse(line({k: v for k, v in message.items() if k != name})) is None, name


@pytest.mark.parametrize(
    "wrong",
    [
        {"v": 2},
        {"v": True},
        {"type": "other"},
        {"type": []},
        {"pid": -1},
        {"rank": "0"},
        {"step": 1.5},
        {"t": True},
        {"phase": "lunch"},
        {"uncaught": 1},
        {"frames": [1]},
        {"shapes": {"x": [-1]}},
        {"device": "tpu"},
        {"requested_bytes": 1.0},
        {"t": 10**400},
        {"shapes": {"x": None}},
        {"memory": []},
        {"memory": {**MEMORY, "rss_bytes": -1}},
        {"memory": {**MEMORY, "peak_data_bytes": "5"}},
        {"memory": {**MEMORY, "cuda": [{**CARD, "free_bytes": True}]}},
        {"memory": {"rss_bytes": 1}},
        {"memory": {**MEMORY, "cuda": [{**CARD, "device": None}]}},
    ],
)
def test_a_field_of_another_type_is_refused(wrong):
    assert parse(line({**MESSAGES[3], **wrong})) is None


@settings(deadline=None)  # the machine may be busy
@given(
    st.sampled_from(MESSAGES), st.dictionaries(st.sampled_from([*HEAD, *OOM, "type"]), json_values)
)
def test_what_is_read_is_what_was_written_or_nothing(message, changes):
    changed = {**message, **changes}
    report = parse(line(changed))
    assert report is None or holds(report, json.loads(line(changed)))


def test_half_a_surrogate_pair_is_replaced_and_everything_else_stays():
    message = {**MESSAGES[4], "message": "no \udcff\ud83d.yaml", "frames": ["\U0001f525 \\udcff ü"]}
    seen = receive(line(message))
    assert seen is not None
    assert seen.report.message == "no \ufffd\ufffd.yaml"
    assert seen.report.frames == ("\U0001f525 \\udcff ü",)
    msgspec.json.encode(json.loads(seen.line))


@settings(deadline=None)  # the machine may be busy
@given(st.binary())
def test_no_bytes_make_it_fail(data):
    read = parse(data)
    assert read is None or holds(read, json.loads(data))


@settings(deadline=None)  # the machine may be busy
@given(
    st.lists(st.binary(max_size=20).map(lambda b: b.replace(b"\n", b"")).filter(bool)), st.data()
)
def test_lines_do_not_depend_on_how_they_were_cut(lines, data):
    stream, cutter, got = b"".join(one + b"\n" for one in lines), Lines(), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        got += cutter.feed(stream[:size])
        stream = stream[size:]
    assert got == lines


def test_a_line_too_long_is_dropped_and_the_next_is_read():
    lines = Lines()
    exact = b"x" * LINE_BYTES
    assert list(lines.feed(exact + b"\n")) == [exact]
    for _ in range(100):
        assert list(lines.feed(b"y" * LINE_BYTES)) == []
    assert len(lines._rest) <= LINE_BYTES
    assert list(lines.feed(b"y\nnext\n")) == [b"next"]
    assert lines.dropped == 1


def test_reports_come_before_the_exit_and_garbage_is_counted(attempts):
    lines = [*map(line, MESSAGES), *(one for one in GARBAGE if one), b"z" * (LINE_BYTES + 1)]
    attempt = attempts.python(sender(*lines), monitored=True)
    assert attempt.exit() == 0, attempt.output
    assert received(attempt) == MESSAGES
    assert isinstance(attempt.seen[-1], ProcessExited)
    assert attempt.running._reports.refused == len(lines) - len(MESSAGES)


def test_the_last_line_of_a_killed_process_needs_no_end(attempts):
    code = sender()[:-1] + f"\ns.sendall({line(MESSAGES[3])!r}); os.kill(os.getpid(), 9)"
    attempt = attempts.python(code, monitored=True)
    assert attempt.exit() == -9
    assert received(attempt) == [MESSAGES[3]]


def test_lines_in_the_buffer_come_while_the_job_runs_and_at_its_end_once_each(attempts):
    write = "open(os.environ['OOMGUARD_BUFFER'] + '/{}.jsonl', 'ab').write({!r}); "
    first, last = (line(message) + b"\n" for message in (MESSAGES[3], MESSAGES[7]))
    code = "import os, signal; signal.signal(15, lambda *_: None); " + write.format(1, first)
    code += WAIT + "; " + write.format(1, last) + write.format(2, b"garbage\n" + last)
    attempt = attempts.python(code, monitored=True)
    attempt.wait_for(Report)
    attempt.running.signal(15)
    assert attempt.exit() == 0
    assert received(attempt) == [MESSAGES[3], MESSAGES[7], MESSAGES[7]]


@pytest.fixture
def server(tmp_path):
    events: queue.Queue[Report] = queue.Queue()
    with_events = ReportServer(events.put, buffer=tmp_path / "buffer")
    yield with_events, events
    with_events.close()


def connect(server: ReportServer) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(server.path))
    return client


def test_many_connections_are_served_at_once(server):
    clients = [connect(server[0]) for _ in range(200)]
    for number, client in enumerate(clients):
        client.sendall(line({**MESSAGES[5], "pid": number}) + b"\n")
    got = {server[1].get(timeout=PATIENCE_S).report.pid for _ in clients}
    assert got == set(range(200))
    for client in clients:
        client.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_not_heard(server):
    for path, mode in ((server[0].path.parent, 0o755), (server[0].path, 0o777)):
        path.chmod(mode)  # what the folder's mode forbids is allowed, to test the second lock
    os.seteuid(65534)
    try:
        stranger = connect(server[0])
    finally:
        os.seteuid(0)
    with stranger:
        assert stranger.recv(1) == b""  # hung up on
    with connect(server[0]) as client:
        client.sendall(line(MESSAGES[5]) + b"\n")
        assert server[1].get(timeout=PATIENCE_S).line == line(MESSAGES[5])


def test_nobody_else_can_enter_the_sockets_folder(server):
    assert server[0].path.parent.stat().st_mode & 0o777 == 0o700


def test_a_temporary_folder_with_a_long_name_is_passed_over(tmp_path, monkeypatch):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    server = ReportServer(print, buffer=tmp_path)
    connect(server).close()
    server.close()
    assert not Path(server.path).exists()
    assert list(long.iterdir()) == []


def test_the_socket_of_an_oomguard_that_was_killed_is_swept_and_nothing_else(tmp_path):
    attempt = tmp_path / "attempts" / "001"
    attempt.mkdir(parents=True)
    server = ReportServer(print, buffer=attempt / "buffer")
    note = attempt / SOCKET_FILE
    kept = tmp_path / "oomguard-mine"
    kept.mkdir()
    (kept / "s").write_text("no socket")
    said = note.read_text()
    for other in (kept / "s", kept, tmp_path / "gone" / "s", "", "\0"):
        note.write_text(str(other))
        sweep(tmp_path)
        assert server.path.exists()
    assert (kept / "s").exists()
    note.write_text(said)
    sweep(tmp_path)
    assert not server.path.parent.exists()
    assert not note.exists()
    server.close()


def test_what_is_left_of_a_socket_that_somebody_else_removed_is_swept(tmp_path):
    there = Path(tempfile.mkdtemp(prefix="oomguard-"))
    note = tmp_path / "attempts" / "001" / SOCKET_FILE
    note.parent.mkdir(parents=True)
    note.write_text(str(there / "s"))
    sweep(tmp_path)
    assert not note.exists()
    assert not there.exists()

"""The scanner: chunks, garbage, colours, long lines, bounded memory."""

# ruff: noqa: E501 -- messages are quoted as they are printed
from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from oomguard.evidence.judge import judge_log
from oomguard.evidence.log import LogScanner
from oomguard.evidence.log_lines import strip_ansi
from oomguard.evidence.verdict import Finding, Kind, Phase

FOLDER = Path(__file__).parents[1] / "data" / "failures"
TEXTS = [
    json.loads(path.read_text("utf-8"))["text"].encode() for path in sorted(FOLDER.glob("*.json"))
]
GIB = 1 << 30
OOM = (
    b"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total"
    b" capacity of 24.00 GiB of which 1.00 GiB is free.\n"
)
ORDINARY = b"".join(
    b"{'loss': 1.%04d, 'grad_norm': 0.71, 'learning_rate': 4.9e-05, 'epoch': 0.%04d, 'step': %d}\n"
    % (i, i, i)
    for i in range(10_000)
)


def scan(*chunks: bytes) -> list[Finding]:
    scanner = LogScanner()
    return [f for chunk in chunks for f in scanner.feed(chunk)] + scanner.close()


def cut(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    start = 0
    for size in sizes:
        yield data[start : start + size]
        start += size
    yield data[start:]


pieces = st.lists(
    st.one_of(
        st.sampled_from(TEXTS),
        st.sampled_from(
            [OOM, b"\r", b"\n", b"\r\n", b"\x00", b"\x1b[31m", b"x" * 70_000, b"Traceback"]
        ),
        st.binary(max_size=50),
    ),
    max_size=6,
).map(b"".join)


@settings(max_examples=60, deadline=None)
@given(pieces, st.lists(st.integers(0, 4000), max_size=60))
@example(b"x" * 66_000 + OOM, [65_000, 600, 3])
@example(OOM + b"x" * 140_000 + OOM + b"\r" + b"y" * 70_000, [65_536, 1, 70_000])
def test_findings_do_not_depend_on_the_chunks(data: bytes, sizes: list[int]) -> None:
    assert scan(*cut(data, sizes)) == scan(data)


#: Bytes without words: Hypothesis knows those of the code, and `oom` with `evicted` is an OOM.
garbage = st.binary(max_size=3000).map(lambda data: data.translate(None, b"aeiouAEIOU"))


@settings(max_examples=100, deadline=None)
@given(st.lists(garbage, max_size=20), st.sampled_from([None, 0, 1, -9]))
@example([b"\x00", b"\xff\xfe", b"\x1b]"], 1)
def test_garbage_is_read_and_shows_no_shortage(chunks: list[bytes], code: int | None) -> None:
    assert not judge_log(chunks, code).kind.is_memory


def test_one_byte_at_a_time() -> None:
    assert scan(*(bytes([byte]) for byte in OOM * 2)) == scan(OOM * 2)


def test_a_shortage_is_given_at_once_when_it_is_whole() -> None:
    (found,) = LogScanner().feed(OOM)
    assert (found.kind, found.requested_bytes, found.line) == (Kind.DEVICE_OOM, 2 * GIB, 1)


def test_a_message_that_may_go_on_can_be_peeked_at() -> None:
    scanner = LogScanner()
    assert scanner.feed(b"RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB\n") == []
    (peeked,) = scanner.peek()
    assert peeked.requested_bytes == 2 * GIB
    (found,) = scanner.feed(b"(GPU 0; 8.00 GiB total\ncapacity; 7.00 GiB already allocated)\n")
    assert found.capacity_bytes == 8 * GIB
    assert scanner.peek() == []


def test_colours_carriage_returns_and_wide_characters_are_read_through() -> None:
    bar = b"\r 10%|#         | 10/100 [00:01<00:09, 9.9it/s, loss=2.5]"
    noisy = (
        bar * 3
        + b"\r\n\x1b[31mRuntimeError: \x1b[1mCUDA out of\x1b[0m memory. Tried to allocate 1.00 GiB\x1b[0m"
    )
    found = judge_log([noisy], 1)
    assert (found.kind, found.requested_bytes, found.step) == (Kind.DEVICE_OOM, GIB, 10)
    assert judge_log([OOM.decode().encode("utf-16-le")], 1).requested_bytes == 2 * GIB


def test_line_numbers_count_line_feeds_in_quiet_and_in_busy_parts() -> None:
    (found, *_) = scan(ORDINARY + b"\r\n\r\n" + OOM)
    assert found.line == 10_003
    assert found.step == 9_999


def test_a_shortage_in_the_middle_of_a_huge_line_is_found_once() -> None:
    for size in (65_400, 65_536, 61_440, 200_000):
        found = scan(b"x" * size + b" " + OOM.strip() + b" " + b"y" * 150_000 + b"\n")
        assert [f.requested_bytes for f in found if f.kind.is_memory] == [2 * GIB]
        assert all(len(f.text) <= 400 for f in found)


def test_ranks_are_told_apart() -> None:
    log = (
        b'[rank0]:   File "train.py", line 3, in training_step\n'
        b'[rank1]:   File "train.py", line 3, in training_step\n'
        b'[rank1]:   File "torch/_tensor.py", line 9, in backward\n'
        b"[rank0]: ValueError: no\n[rank1]: " + OOM
    )
    error, shortage = (f for f in scan(log) if f.signature != "traceback")
    assert (error.rank, error.phase) == (0, Phase.FORWARD)
    assert (shortage.rank, shortage.phase) == (1, Phase.BACKWARD)


@pytest.mark.parametrize(
    "error",
    [
        "torch.distributed.DistNetworkError: port: 29500, message: address already in use",
        "torch.distributed.DistStoreError: Timed out after 301 seconds waiting for clients",
    ],
)
def test_a_rendezvous_that_fails_is_named_and_not_the_frame_it_failed_in(error: str) -> None:
    log = (
        "Traceback (most recent call last):\n"
        '  File "torch/rendezvous.py", line 67, in next_rendezvous\n    self._store = TCPStore(\n'
    )
    verdict = judge_log([f"{log}{error}\n".encode()], 1)
    assert (verdict.kind, verdict.root) == (Kind.NOT_OOM, error)


def test_a_hundred_thousand_shortages_leave_few_findings_and_the_last() -> None:
    found = scan(*[OOM * 1000] * 20, b"[rank7]: " + OOM)
    shortages = [f for f in found if f.kind.is_memory]
    assert len(shortages) < 100
    assert (shortages[0].line, shortages[-1].line, shortages[-1].rank) == (1, 20_001, 7)


def test_a_job_that_catches_each_of_hundreds_is_known_to_go_on() -> None:
    steps = b"step 1 loss 2\nstep 2 loss 2\nstep 3 loss 2\n"
    log = (OOM + b"other\n" * 60 + steps) * 200
    assert judge_log([log], 0).kind is Kind.OK
    assert len(scan(log)) < 200
    assert judge_log([log, OOM], 1).kind is Kind.DEVICE_OOM


def test_steps_much_later_are_those_of_another_run() -> None:
    log = OOM + b"waiting\n" * 11_000 + b"step 1 loss 2\nstep 2 loss 2\nstep 3 loss 2\n"
    assert judge_log([log], 1).kind is Kind.DEVICE_OOM


lines_of_logs = st.lists(
    st.sampled_from(
        [
            *(row for text in TEXTS for row in text.splitlines(keepends=True)[:40]),
            *(OOM, b"step 7 loss 2.0\n", b"\r 9%|# | 9/99 [00:01<00:09, loss=2]", b"\r\n", b"\n"),
            *(b'Traceback (most recent call last):\n  File "a.py", line 3, in f\n', b"x" * 70_000),
        ]
    ),
    max_size=30,
).map(b"".join)


def quotes_its_line(data: bytes) -> None:
    rows = [
        " ".join(strip_ansi(row.decode("utf-8", "replace")).split()) for row in data.split(b"\n")
    ]
    for finding in scan(data):
        assert finding.line is not None
        assert 1 <= finding.line <= len(rows)
        assert finding.text in rows[finding.line - 1]


@settings(max_examples=100, deadline=None)
@given(lines_of_logs)
@example(b"step 1 loss 2.0\nfour\nmore\nlines\nfollow\nit\n")
@example(b"step 1 loss 2.0\n" + ORDINARY[:70_000])
def test_a_finding_quotes_the_line_whose_number_it_has(data: bytes) -> None:
    quotes_its_line(data)


@pytest.mark.parametrize("text", TEXTS)
def test_a_finding_of_a_real_log_quotes_the_line_whose_number_it_has(text: bytes) -> None:
    quotes_its_line(text)


def _peak_bytes(chunks: Iterator[bytes]) -> int:
    scanner = LogScanner()
    tracemalloc.start()
    try:
        for chunk in chunks:
            scanner.feed(chunk)
        scanner.close()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_is_bounded_whatever_the_log_holds() -> None:
    limit = 4 << 20
    mixed = (OOM + b"x" * 997 + b"Error: \x00\xff" * 20 for _ in iter(int, 1))
    assert _peak_bytes(islice(iter(lambda: ORDINARY, b""), 12)) < limit + len(ORDINARY)
    assert _peak_bytes(b"\xfe" * 65_536 for _ in range(100)) < limit
    assert _peak_bytes(islice(mixed, 1000)) < limit

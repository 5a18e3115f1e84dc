"""The 78 labelled logs of real failures."""

# ruff: noqa: E501 -- messages are quoted as they are printed
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from oomguard.evidence.judge import judge_log
from oomguard.evidence.log_lines import unpack
from oomguard.evidence.verdict import Confidence, Kind, Verdict

FOLDER = Path(__file__).parents[1] / "data" / "failures"
LOGS = {
    log["id"]: log
    for log in (json.loads(path.read_text("utf-8")) for path in sorted(FOLDER.glob("*.json")))
}
CLEAR = {name: log for name, log in LOGS.items() if not log["ambiguous"]}
#: The line that names the failure was cut from these two; what is left shows no memory at all.
CUT = {
    "037": "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "107": "RuntimeError: CUDA error: out of memory",
}
#: Where the labels themselves say that the text does not decide: what is concluded, apart.
AMBIGUOUS = {
    "049": Kind.DEVICE_OOM,  # says so; the driver's host pool was exhausted
    "073": Kind.HOST_OOM,  # std::bad_alloc over a corrupt image
    "094": Kind.NOT_OOM,
    "131": Kind.NOT_OOM,  # labelled device_oom; wants a larger share, the opposite of a retry
    "204": Kind.DEVICE_OOM,  # a warning, after which the file is broken
    "255": Kind.UNKNOWN,  # a bare Killed after steps; labelled host_oom or not_oom
    "286": Kind.NOT_OOM,
    "292": Kind.HOST_OOM,  # killed while loading
}
PHASES_TOLD = 33  # of 35; the other texts hold no frame and no line that tells


def verdict_of(log: dict[str, Any]) -> Verdict:
    return judge_log([log["text"].encode()], log["exit_code"])


def test_all_logs_are_here() -> None:
    assert (len(LOGS), len(CLEAR)) == (78, 70)


@pytest.mark.parametrize("name", sorted(CLEAR.keys() - CUT.keys()))
def test_the_kind_is_right(name: str) -> None:
    assert verdict_of(LOGS[name]).kind.value == LOGS[name]["expected"]["kind"]


@pytest.mark.parametrize("name", sorted(LOGS))
def test_the_sizes_are_exact(name: str) -> None:
    verdict, expected = verdict_of(LOGS[name]), LOGS[name]["expected"]
    assert verdict.requested_bytes == expected["requested_bytes"]
    assert verdict.capacity_bytes == expected["capacity_bytes"]


@pytest.mark.parametrize("name", sorted(AMBIGUOUS))
def test_the_ambiguous_ones_stand_apart(name: str) -> None:
    assert verdict_of(LOGS[name]).kind is AMBIGUOUS[name]


def test_the_ambiguous_ones_are_these() -> None:
    assert {name for name, log in LOGS.items() if log["ambiguous"]} == AMBIGUOUS.keys()


@pytest.mark.parametrize("name", sorted(CUT))
def test_a_log_without_the_line_that_names_the_failure_is_not_guessed(name: str) -> None:
    verdict = verdict_of(LOGS[name])
    assert verdict.kind.is_other_failure
    assert verdict.confidence is not Confidence.HIGH


@pytest.mark.parametrize("name", sorted(CUT))
def test_with_that_line_it_is_known(name: str) -> None:
    log, lines = LOGS[name], LOGS[name]["text"].splitlines(keepends=True)
    frames = max(i for i, line in enumerate(lines) if line.lstrip().startswith("File ")) + 1
    text = "".join([*lines[:frames], CUT[name] + "\n", *lines[frames:]])
    assert verdict_of({**log, "text": text}).kind.value == log["expected"]["kind"]


def test_at_least_97_percent_of_the_kinds_are_right() -> None:
    right = [verdict_of(log).kind.value == log["expected"]["kind"] for log in CLEAR.values()]
    assert sum(right) / len(right) >= 0.97


def test_no_other_failure_is_taken_for_one_of_memory() -> None:
    others = [n for n, log in LOGS.items() if log["expected"]["kind"] in ("not_oom", "ok")]
    assert len(others) >= 29
    assert [name for name in others if verdict_of(LOGS[name]).kind.is_memory] == []


def test_the_phase_is_told_or_left_open() -> None:
    told = wrong = 0
    for log in LOGS.values():
        expected = log["expected"]["phase"]
        found = verdict_of(log).phase.value
        told += expected is not None and found == expected
        wrong += found not in (expected, "unknown")
    assert told >= PHASES_TOLD
    assert wrong == 0


PREFIXES = (
    "[rank0]: ",
    "[default3]:",
    "[1,2]<stderr>:",
    "# ",
    "> ",
    "│ ",
    "3: ",
    "(TrainWorker pid=812, ip=10.0.0.7) ",
    "2024-05-01 10:00:00,123 | ",
    "May 01 10:00:00 node7 train[812]: ",
    "[  812.150370] ",
    "worker-0  | ",
)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_what_is_put_before_each_line_changes_no_kind(prefix: str) -> None:
    changed = {}
    for name in sorted(CLEAR.keys() - CUT.keys()):
        log = LOGS[name]
        text = "".join(prefix + line for line in log["text"].splitlines(keepends=True))
        kind = verdict_of({**log, "text": text}).kind.value
        if kind != log["expected"]["kind"]:
            changed[name] = kind
    assert changed == {}


@pytest.mark.parametrize("field", ["message", "log", "exc_info"])
def test_a_log_packed_in_records_is_read_like_the_text_itself(field: str) -> None:
    changed = {}
    for name in sorted(CLEAR.keys() - CUT.keys()):
        record = json.dumps({"level": "error", field: LOGS[name]["text"]}) + "\n"
        kind = verdict_of({**LOGS[name], "text": record}).kind.value
        if kind != LOGS[name]["expected"]["kind"]:
            changed[name] = kind
    assert changed == {}


def _shown(line: str) -> str:
    """Return what a line of a log holds without what stands before its text."""
    pieces = (read for part in line.split("\r") for read in unpack(part.encode()))
    return " ".join(" ".join(piece.text.split()) for piece in pieces)


@pytest.mark.parametrize("name", sorted(LOGS))
def test_each_piece_of_evidence_stands_on_the_line_that_it_names(name: str) -> None:
    lines = LOGS[name]["text"].split("\n")
    for finding in verdict_of(LOGS[name]).evidence:
        if finding.line is not None:
            here = _shown(lines[finding.line - 1])
            below = _shown(lines[finding.line]) if finding.line < len(lines) else ""
            # A message may be broken between two lines, at a space or inside a word.
            assert any(
                finding.text[:60] in text for text in (here, f"{here} {below}", here + below)
            )

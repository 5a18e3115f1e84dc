"""The 48 labelled logs of real failures."""

# ruff: noqa: E501 -- messages are quoted as they are printed
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from oomguard.evidence.judge import judge_log
from oomguard.evidence.verdict import Confidence, Kind, Verdict

FOLDER = Path(__file__).parents[1] / "data" / "failures"
LOGS = {
    log["id"]: log
    for log in (json.loads(path.read_text("utf-8")) for path in sorted(FOLDER.glob("*.json")))
    if log["id"] < "200"  # the later ones are measured by benchmarks/explain alone, so far
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
}
PHASES_TOLD = 14  # of 23


def verdict_of(log: dict[str, Any]) -> Verdict:
    return judge_log([log["text"].encode()], log["exit_code"])


def test_all_logs_are_here() -> None:
    assert (len(LOGS), len(CLEAR)) == (48, 44)


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
    assert verdict.kind is Kind.NOT_OOM
    assert verdict.confidence is not Confidence.HIGH


@pytest.mark.parametrize("name", sorted(CUT))
def test_with_that_line_it_is_known(name: str) -> None:
    log, lines = LOGS[name], LOGS[name]["text"].splitlines(keepends=True)
    frames = max(i for i, line in enumerate(lines) if line.lstrip().startswith("File ")) + 1
    text = "".join([*lines[:frames], CUT[name] + "\n", *lines[frames:]])
    assert verdict_of({**log, "text": text}).kind.value == log["expected"]["kind"]


def test_at_least_95_percent_of_the_kinds_are_right() -> None:
    right = [verdict_of(log).kind.value == log["expected"]["kind"] for log in CLEAR.values()]
    assert sum(right) / len(right) >= 0.95


def test_no_other_failure_is_taken_for_one_of_memory() -> None:
    others = [n for n, log in LOGS.items() if log["expected"]["kind"] in ("not_oom", "ok")]
    assert len(others) >= 15
    assert [name for name in others if verdict_of(LOGS[name]).kind.is_memory] == []


def test_the_phase_is_told_or_left_open() -> None:
    told = wrong = 0
    for log in LOGS.values():
        expected = log["expected"]["phase"]
        found = verdict_of(log).phase.value
        if expected is not None:
            told += found == expected
            wrong += found not in (expected, "unknown")
    assert told >= PHASES_TOLD
    assert wrong == 0


@pytest.mark.parametrize("name", sorted(CLEAR.keys() - CUT.keys()))
@pytest.mark.parametrize("prefix", ["[rank0]: ", "[default3]:", "[1,2]<stderr>:", "# ", "> "])
def test_a_launchers_prefix_changes_no_kind(name: str, prefix: str) -> None:
    log = LOGS[name]
    text = "".join(prefix + line for line in log["text"].splitlines(keepends=True))
    assert verdict_of({**log, "text": text}).kind.value == log["expected"]["kind"]

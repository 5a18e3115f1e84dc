"""`oomguard runs` and `oomguard report`: what they say of runs that ended, go on or are damaged."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from oomguard.cli.main import main
from oomguard.cli.report_text import markdown
from oomguard.run.report import from_json
from shell.launches import CAP_BYTES, OOMGUARD, write_job

CAPPED = ("--host-memory", str(CAP_BYTES), "--ladder", "halve_micro_batch", "--no-predict")
CODE = "hold(micro)"


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """Return a folder with a run that was out of memory twice and trained, and one that failed."""
    folder = tmp_path_factory.mktemp("past")
    for name, code in (("trained", CODE), ("failed", "raise ValueError('a | b')")):
        job = write_job(folder, code)
        words = ("launch", "--name", name, "--fits", "fits.db", *CAPPED, "--", *job)
        oomguard(folder, *words)
    return folder / "oomguard-runs"


def oomguard(folder: Path, *words: str) -> None:
    subprocess.run([*OOMGUARD, *words], cwd=folder, capture_output=True, check=False)


def said(capsys, *words: str) -> str:
    assert main(words) == 0
    return capsys.readouterr().out


def test_runs_are_listed_newest_first_with_their_end(capsys, parent):
    first, second = said(capsys, "runs", str(parent)).splitlines()
    assert first.startswith("failed ")
    assert first.endswith("hf_trainer: the job failed, in 1 attempt")
    assert second.endswith("hf_trainer: trained, in 3 attempts")
    document = json.loads(said(capsys, "runs", str(parent), "--json"))
    assert [run["status"] for run in document["runs"]] == ["failed", "fit"]


def test_a_run_without_a_report_is_read_from_its_events(capsys, parent, tmp_path):
    events = (parent / "trained" / "events.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "going").mkdir()
    begun = b"".join(events[:-1]) + b'{"event":"fini'
    (tmp_path / "going" / "events.jsonl").write_bytes(begun)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "events.jsonl").write_bytes(b"[]\n" * 3)
    (tmp_path / "no run").mkdir()
    lines = said(capsys, "runs", str(tmp_path)).splitlines()
    assert len(lines) == 2
    assert lines[0].endswith("hf_trainer: not finished, in 3 attempts")
    assert "damaged" in lines[1]
    assert (tmp_path / "going" / "events.jsonl").read_bytes() == begun, "nothing is written"


def test_a_report_says_how_it_ended_what_changed_and_each_attempt(capsys, parent):
    text = said(capsys, "report", str(parent / "trained"))
    assert text.startswith("### oomguard: trained, in 3 attempts\n")
    assert "- changed (same math): micro_batch " in text
    rows = re.findall(r"^\| \d .*$", text, re.MULTILINE)
    assert [row.split("|")[3].split(" in ")[0].strip() for row in rows] == [
        "out of host memory",
        "out of host memory",
        "finished",
    ]
    assert len(text) < 5000


def test_a_pipe_in_a_message_does_not_end_its_cell(capsys, parent):
    text = said(capsys, "report", str(parent / "failed"))
    (row,) = re.findall(r"^\| 1 .*$", text, re.MULTILINE)
    assert len(re.findall(r"(?<!\\)\|", row)) == 6
    assert r"a \| b" in row


def test_the_whole_report_is_that_of_the_file(capsys, parent):
    stored = json.loads((parent / "trained" / "fit-report.json").read_text())
    told = json.loads(said(capsys, "report", str(parent / "trained"), "--format", "json"))
    assert told == stored


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({}, "there is no run in this folder"),
        ({"events.jsonl": ""}, "has no fit-report yet"),
        ({"events.jsonl": "", "fit-report.json": "{"}, "the fit-report is damaged"),
        ({"fit-report.json": '{"schema_version": 99}'}, "or of a newer oomguard"),
    ],
)
def test_a_report_that_cannot_be_read_is_an_error_that_says_why(capsys, tmp_path, files, why):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert main(["report", str(tmp_path)]) == 2
    assert why in capsys.readouterr().err


def test_a_long_diff_is_cut_and_a_fence_in_it_closes_nothing(parent):
    report = from_json((parent / "trained" / "fit-report.json").read_bytes())
    long = "".join(f"+line {number}\n" for number in range(100)) + "+```\n"
    lines = list(markdown(replace(report, config_diff="+```\n" + long)))
    assert lines.count("````") == 1
    assert "````diff" in lines
    assert "... and 62 more lines, see fit-report.json" in lines

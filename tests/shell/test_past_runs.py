"""`oomguard runs` and `oomguard report`: what they say of runs that ended, go on or are damaged."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from oomguard.cli.main import main
from oomguard.cli.report_text import markdown
from oomguard.run.report import from_json
from reported import on_card, reported
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
    assert "To run it elsewhere: `oomguard reproduce fit-report.json --root DIR`\n" in text
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


def test_a_page_is_written_to_a_file_at_once_and_without_matplotlib_says_what_to_install(
    capsys, parent, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    out = tmp_path / "report.html"
    out.write_text("old")
    assert main(["report", str(parent / "trained"), "--format", "html", "--out", str(out)]) == 0
    told = capsys.readouterr()
    assert told.out == ""
    assert "pip install 'oomguard[report]'" in told.err
    text = out.read_text()
    assert text.startswith("<!doctype html>")
    assert "pip install &#x27;oomguard[report]&#x27;" in text
    assert text.endswith("</html>\n")
    assert list(tmp_path.iterdir()) == [out]
    assert said(capsys, "report", str(parent / "trained"), "--format", "html") == text


def test_a_page_of_a_run_has_its_memory_and_loss(capsys, parent, tmp_path):
    pytest.importorskip("matplotlib")
    run = tmp_path / "r"
    shutil.copytree(parent / "trained", run)
    memory = on_card(reserved_bytes=1 << 30)
    lines = [reported("step", t=float(at), memory=memory).line for at in range(3)]
    (run / "attempts" / "003" / "memory.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    (run / "attempts" / "003" / "log.txt").write_text("{'loss': 1.5, 'step': 1}\n" * 2)
    text = said(capsys, "report", str(run), "--format", "html")
    assert 'aria-label="Memory of GPU 0 over time"' in text
    assert 'aria-label="Loss by step"' in text


def test_a_file_that_cannot_be_written_is_an_error_that_says_so(capsys, parent, tmp_path):
    words = ["report", str(parent / "trained"), "--out", str(tmp_path / "none" / "x.md")]
    assert main(words) == 2
    assert "cannot write the report" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["md", "json"])
def test_other_formats_import_nothing_that_only_the_page_needs(parent, form):
    code = (
        "import sys; from oomguard.cli.main import main; main(sys.argv[1:])\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    words = [sys.executable, "-c", code, "report", str(parent / "trained"), "--format", form]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    names = set(done.stderr.split())
    assert "oomguard.cli.report_command" in names
    assert not names & {"matplotlib", "oomguard.cli.report_plots", "oomguard.cli.report_page"}


# --- show and diff ---


def test_a_run_is_shown_as_its_report_by_name_folder_or_file(capsys, parent, monkeypatch, tmp_path):
    monkeypatch.chdir(parent.parent)
    shown = said(capsys, "show", "trained")
    assert shown == said(capsys, "report", "trained")
    sent = tmp_path / "theirs.json"
    shutil.copy(parent / "trained" / "fit-report.json", sent)
    assert said(capsys, "show", str(sent)) == said(capsys, "report", str(sent)) == shown
    stored = json.loads(sent.read_text())
    assert json.loads(said(capsys, "show", "trained", "--json")) == stored


def test_a_run_that_goes_on_is_shown_as_far_as_it_is(capsys, parent, tmp_path):
    events = (parent / "trained" / "events.jsonl").read_bytes().splitlines(keepends=True)
    last = max(at for at, line in enumerate(events) if b'"event":"exited"' in line)
    (tmp_path / "events.jsonl").write_bytes(b"".join(events[:last]))
    first, job, *attempts = said(capsys, "show", str(tmp_path)).splitlines()
    assert first.startswith("trained: not finished, started 20")
    assert job.startswith("hf_trainer on cpu: global batch 16")
    assert [re.split(r":| \(", line)[0] for line in attempts] == [
        "attempt 1",
        "  out of host memory",
        "attempt 2",
        "  out of host memory",
        "attempt 3",
        "  in launch, after 0 optimizer steps",
    ]
    document = json.loads(said(capsys, "show", str(tmp_path), "--json"))
    assert (document["status"], len(document["attempts"])) == (None, 3)
    assert document["attempts"][2]["verdict"] is None


def test_a_run_that_is_not_there_is_an_error(capsys, tmp_path):
    assert main(["show", str(tmp_path)]) == 2
    assert "there is no run in this folder" in capsys.readouterr().err
    (tmp_path / "x.json").write_text("{}")
    assert main(["diff", str(tmp_path / "x.json"), str(tmp_path / "x.json")]) == 2
    assert "Check that it is a fit-report.json" in capsys.readouterr().err


def test_the_difference_of_two_runs_is_listed_by_what_it_is_about(capsys, parent):
    runs = (str(parent / "trained"), str(parent / "failed"))
    text = said(capsys, "diff", *runs)
    assert text.startswith("from trained to failed\noutcome:\n")
    assert "  status fit -> failed\n" in text
    assert "  attempts 3 -> 1\n" in text
    assert "  verdict ok -> not_oom\n" in text
    assert "final config: failed found none that fits" in text
    document = json.loads(said(capsys, "diff", *runs, "--json"))
    found = {one["name"]: (one["before"], one["after"]) for one in document["differences"]}
    assert found["status"] == ("fit", "failed")
    assert said(capsys, "diff", runs[0], runs[0]) == (
        "from trained to trained\nnothing differs\n"
        "not compared:\n  data: not recorded for trained\n"
    )


def test_an_old_report_is_compared_as_far_as_it_goes(capsys, parent):
    old = str(Path(__file__).parents[1] / "data" / "reports" / "version-1.json")
    text = said(capsys, "diff", old, str(parent / "trained"))
    assert "data: not recorded for trained" in text
    assert re.search(r"gpus NVIDIA A10G, NVIDIA A10G -> ", text)

"""Faults around oomguard that a healthy job does not notice: screens, disks, reports, names."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from faults.cells import Cell, scenarios
from oomguard.cli.main import main
from shell.launches import OOMGUARD, REPORT

FLAGS = ("--per_device_train_batch_size", "4")
TRAINS = (
    "import os, sys, time\nfor n in range(4): print('line', n, flush=True); time.sleep(0.05)\n"
    "open('finished', 'w').close()\n"
)
HOLDS = "open('held', 'w').close()\nwhile not os.path.exists('go'): time.sleep(0.01)\n"


def script(cell: Cell, code: str) -> tuple[str, ...]:
    (cell.folder / "job.py").write_text("import os, sys, time\n" + code)
    return (sys.executable, str(cell.folder / "job.py"), *FLAGS)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    (tmp_path / "job.py").write_text(TRAINS)
    return tmp_path


JOB = (*OOMGUARD, "launch", "--name", "run", "--no-predict", "--", sys.executable, "job.py", *FLAGS)


def run(*redirection: str, words: tuple[str, ...] = JOB) -> subprocess.CompletedProcess:
    """Run oomguard with the redirections of a shell."""
    code = f'"$@" {" ".join(redirection)}'
    return subprocess.run(["bash", "-c", code, "-", *words], capture_output=True, check=False)


def log() -> str:
    return Path("oomguard-runs/run/attempts/001/log.txt").read_text()


@pytest.mark.parametrize(
    "redirection",
    ["> /dev/full", "2> /dev/full", "> /dev/full 2>&1", ">&-", "2>&-", ">&- 2>&-", "<&-"],
)
def test_a_screen_that_is_full_or_closed_does_not_stop_the_job(folder, redirection):
    done = run(redirection)
    assert done.returncode == 0, done.stderr
    assert (folder / "finished").exists()
    assert log() == "".join(f"line {n}\n" for n in range(4))
    full = b"stdout could not be written: No space left on device; the job's output is in log.txt"
    assert (full in done.stderr) == (redirection == "> /dev/full")


@pytest.mark.parametrize("stream", ["2>&1 |", "2> shown |"])
def test_a_reader_that_stops_early_does_not_stop_the_job(folder, stream):
    done = run(stream, "head -n 1 > first; exit ${PIPESTATUS[0]}")
    assert done.returncode == 0, done.stderr
    assert (folder / "finished").exists()
    assert len((folder / "first").read_text().splitlines()) == 1


def test_a_document_that_is_lost_is_not_taken_for_one(folder):
    words = (*JOB[:4], "--json", *JOB[4:])
    done = run("> /dev/full", words=words)
    assert done.returncode == 2
    assert b"trained, in 1 attempt" in done.stderr
    assert b"stdout could not be written: No space left on device" in done.stderr
    assert (folder / "finished").exists()


@pytest.mark.parametrize(
    "words",
    [("ladder",), ("ladder", "--json"), ("models", "llama"), ("nonsense", "--json"), ("--help",)],
    ids=" ".join,
)
def test_any_other_command_says_that_its_output_is_lost(folder, words):
    done = run("> /dev/full", words=(*OOMGUARD, *words))
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert done.stderr.count(b"\n") <= 3
    assert run("> /dev/full 2>&1", words=(*OOMGUARD, *words)).returncode == 2
    piped = run("| head -n 1; exit ${PIPESTATUS[0]}", words=(*OOMGUARD, *words))
    assert piped.returncode in (0, 2)  # 2 only for the unknown command
    assert b"Traceback" not in piped.stderr


def test_what_the_encoding_of_the_screen_lacks_is_escaped(folder):
    (folder / "job.py").write_text("raise ValueError('Größe ü \\udce9')")
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = subprocess.run(JOB, capture_output=True, env=env, check=False)
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert b"ValueError: Gr" in done.stderr


@pytest.mark.parametrize("where", ["folder", "script", "runs"])
def test_a_name_that_is_not_utf8_is_refused_before_anything_is_started(folder, where, capsys):
    odd = os.fsdecode(b"caf\xe9")
    words = ["launch", "--no-predict", "--", sys.executable, "job.py", *FLAGS]
    if where == "folder":
        (folder / odd).mkdir()
        os.chdir(folder / odd)
        shutil.copy(folder / "job.py", "job.py")
    elif where == "script":
        (folder / "job.py").rename(folder / f"{odd}.py")
        words[words.index("job.py")] = f"{odd}.py"
    else:
        words[1:1] = ["--runs", odd]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "caf\\udce9" in said
    assert "is not UTF-8, and the records of a run are" in said
    assert not list(folder.rglob("events.jsonl"))


COMMON = (
    "common = dict(v=1, pid=os.getpid(), rank=None, local_rank=None, world=None, "
    "phase='forward', step=1, t=1.0)\n"
)
ODD_REPORTS = {
    "a_count_too_large": "report('phase', step=2**70, memory=None)",
    "a_pid_too_large": "report('phase', pid=10**30, memory=None)",
    "a_rank_too_large": "report('phase', rank=10**30, memory=None)",
    "an_unknown_number_too_large": "report('phase', memory=None, extra=2**70)",
    "half_a_surrogate_pair": r"report('phase', memory=None, extra='\ud800')",
    "deep_nesting": "reporter.sendall(b'[' * 60000 + b'\\n')",
    "deep_unknown_field": (
        "deep = '[' * 900 + ']' * 900\n"
        "line = json.dumps({**common, 'type': 'phase', 'memory': None})[:-1]\n"
        "reporter.sendall((line + ', \"extra\": ' + deep + '}\\n').encode())"
    ),
    "an_endless_line": "reporter.sendall(b'x' * 1000000)",
    "noise": "reporter.sendall(os.urandom(100000))",
    "a_digit_string_too_long": (
        "line = json.dumps({**common, 'type': 'phase', 'memory': None, 'extra': 0})\n"
        "line = line.replace('\"extra\": 0', '\"extra\": ' + '9' * 5000)\n"
        "reporter.sendall(line.encode() + b'\\n')"
    ),
    "escape_codes": r"report('fault', message='\x1b]0;title\x07\x1b[2J')",
    "a_time_far_away": "report('phase', t=1e308, memory=None)",
}


def odd(name: str, code: str):
    def an_odd_report(cell):
        job = script(
            cell, REPORT + COMMON + f"try:\n{indented(code)}\nexcept OSError: pass\n" + TRAINS
        )
        cell.launch(job=job)
        assert cell.codes == [0], cell.said
        assert cell.kinds == ["ok"]
        assert (cell.folder / "finished").exists()

    an_odd_report.__name__ = f"the_job_goes_on_after_{name}"
    return an_odd_report


def indented(code: str) -> str:
    return "".join(f"    {line}\n" for line in code.splitlines())


def a_final_folder_that_cannot_be_made_costs_only_itself(cell):
    with cell.launched(job=script(cell, HOLDS + TRAINS)):
        cell.wait_held()
        (cell.run / "final").symlink_to("nowhere/at/all")
        (cell.folder / "go").touch()
    assert cell.codes == [0], cell.said
    assert "the final config could not be written: File exists" in cell.said
    assert "final config   " not in cell.said
    assert cell.report["status"] == "fit"


def a_report_that_cannot_be_written_costs_only_itself(cell):
    with cell.launched(job=script(cell, HOLDS + TRAINS)):
        cell.wait_held()
        (cell.run / "fit-report.json").mkdir()
        (cell.folder / "go").touch()
    assert cell.codes == [0], cell.said
    assert "the fit-report could not be written: " in cell.said
    assert "trained, in 1 attempt" in cell.said
    assert (cell.run / "final" / "command.txt").exists()


SCENARIOS = (
    *(odd(name, code) for name, code in ODD_REPORTS.items()),
    a_final_folder_that_cannot_be_made_costs_only_itself,
    a_report_that_cannot_be_written_costs_only_itself,
)
played, test_harmless = scenarios(*SCENARIOS)


OOM = b"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB\n"


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_log_is_read(folder, capsys, compress):
    (folder / "log").write_bytes(compress(OOM))
    assert main(["explain", "log", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "device_oom"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (gzip.compress(OOM * 99, mtime=0)[:40], "the log cannot be read: Compressed file ended"),
        (bz2.compress(OOM)[:20], "the log cannot be read: Compressed file ended"),
        (lzma.compress(OOM)[:30], "the log cannot be read: Compressed file ended"),
        (b"\x1f\x8b" + b"x" * 50, "the log cannot be read: "),
        (b"\xfd7zXZ\0" + b"x" * 50, "the log cannot be read: "),
        (b"(\xb5/\xfd" + b"x" * 50, "zstd -dc log | oomguard explain -"),
        (b"PK\3\4" + b"x" * 50, "unzip -p log | oomguard explain -"),
    ],
)
def test_a_log_that_cannot_be_unpacked_is_refused(folder, capsys, data, message):
    (folder / "log").write_bytes(data)
    assert main(["explain", "log"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("code", ["raise SystemExit(0)", "import sys; sys.exit(3)", "exit()"])
def test_a_strategy_file_that_exits_is_refused(folder, capsys, code):
    (folder / "mine").mkdir()
    (folder / "mine" / "001_mine.py").write_text(f"\n{code}\n")
    assert main(["ladder", "--strategies", "mine", "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["where"] == "mine/001_mine.py:2"
    assert "SystemExit" in error["what"]

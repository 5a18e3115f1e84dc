"""What each command prints: documents for machines, an account for people, on the right stream."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from oomguard.cli.main import cli, main
from shell.launches import CAP_BYTES, OOMGUARD, PATIENCE_S, make_live, write_job

live = pytest.fixture(make_live)


@pytest.fixture(autouse=True)
def data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))


OOM = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total "
    "capacity of 16.00 GiB of which 1.00 GiB is free."
)
ENDS = {
    "fit": ("hold(micro)", 0),
    "exhausted": ("raise MemoryError", 3),
    "failed": ("raise ValueError", 1),
}
CAPPED = (
    "--host-memory",
    str(CAP_BYTES),
    "--ladder",
    "halve_micro_batch",
    "--max-attempts",
    "3",
    "--no-predict",
)
ESCAPE = re.compile(rb"\x1b\[[0-9;]*m")


def run(folder, *words, env=None):
    return subprocess.run(
        [*OOMGUARD, *words],
        cwd=folder,
        env={**os.environ, **(env or {})},
        capture_output=True,
        check=False,
    )


@pytest.mark.parametrize("status", ENDS)
def test_a_launch_gives_exactly_one_document_on_stdout(tmp_path, status):
    code, exit_code = ENDS[status]
    job = write_job(tmp_path, f"say('the job')\n{code}")
    done = run(tmp_path, "launch", "--json", "--name", "r", *CAPPED, "--", *job)
    assert done.returncode == exit_code, done.stderr
    document = json.loads(done.stdout)
    assert set(document) == {
        *("status", "reason", "run", "attempts", "changes", "fidelity", "shortfall"),
        *("final_config", "fit_report"),
    }
    assert (document["shortfall"] is not None) == (status == "exhausted")
    assert document["status"] == status
    assert document["run"] == str(tmp_path / "oomguard-runs" / "r")
    assert document["attempts"] == json.loads(Path(document["fit_report"]).read_text())["attempts"]
    assert b"the job\n" in done.stderr


def test_an_interrupted_one_too(live):
    process = live("say('up', to=sys.stderr); signal.pause()", "--json")
    process.wait_for("up", stream="err")
    process.signal(signal.SIGINT)
    ended = process.ended()
    assert (ended.code, json.loads(ended.out)["status"]) == (130, "interrupted")


FAULTY = """
from oomguard.strategy import SAME_MATH, Kind, Remedy, Strategy

def cost_for(job):
    raise RuntimeError("a bug")

STRATEGY = Strategy(summary="s", fidelity=SAME_MATH, change=lambda job, plan: None,
                    remedies=frozenset({Remedy(kind=Kind.DEVICE_OOM)}), cost_for=cost_for)
"""


def test_and_a_fault_of_ones_own(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "001_faulty.py").write_text(FAULTY)
    job = write_job(tmp_path, "raise MemoryError")
    env = {"TMPDIR": str(tmp_path)}
    words = ("launch", "--json", "--strategies", "mine", "--ladder", "faulty", "--", *job)
    done = run(tmp_path, *words, env=env)
    assert done.returncode == 4
    error = json.loads(done.stdout)["error"]
    assert "RuntimeError: a bug" in error["what"]
    (log,) = tmp_path.glob("oomguard-fault-*.txt")
    assert str(log) in error["next"]
    assert "Traceback" in log.read_text()
    assert b"internal error in oomguard" in done.stderr
    assert b"Traceback" not in done.stderr.partition(b"oomguard: ")[2]


def on_a_terminal(folder, *words, env=None):
    """Run on a terminal of its own and give all that it shows."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*OOMGUARD, *words],
        cwd=folder,
        env={**os.environ, "TERM": "xterm", **(env or {})},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while data := os.read(ours, 1 << 16):
                shown += data
        except OSError:  # Linux: the other side is closed
            os.close(ours)
        assert process.wait(PATIENCE_S) == 0, shown
    return shown


@pytest.fixture
def job(tmp_path, monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return (*CAPPED, "--", *write_job(tmp_path, "print('x' * 99, end='', flush=True); hold(micro)"))


def test_in_a_pipe_it_is_plain_text(tmp_path, job):
    done = run(tmp_path, "launch", *job)
    assert done.returncode == 0
    assert b"\x1b" not in done.stderr + done.stdout
    lines = done.stderr.decode().splitlines()
    assert all(line.startswith("oomguard ") for line in lines)


def test_on_a_terminal_it_has_colours_and_each_line_begins_at_its_left(tmp_path, job):
    shown = on_a_terminal(tmp_path, "launch", *job)
    assert ESCAPE.search(shown)
    lines = ESCAPE.sub(b"", shown).decode().split("\r\n")
    told = [line for line in lines if "oomguard " in line]
    assert len(told) > 8
    assert all(line.startswith("oomguard ") for line in told), told


def test_no_color_is_respected(tmp_path, job):
    shown = on_a_terminal(tmp_path, "launch", *job, env={"NO_COLOR": "1"})
    assert b"\x1b[3" not in shown
    assert b"oomguard trained, in 3 attempts" in ESCAPE.sub(b"", shown)


def test_a_long_line_is_not_broken(tmp_path, job):
    done = run(tmp_path, "launch", *job, env={"COLUMNS": "40"})
    assert any(len(line) > 80 for line in done.stderr.decode().splitlines())


def test_explain_says_it_for_people_and_for_machines(tmp_path, capsys):
    log = tmp_path / "log.txt"
    log.write_text(f"{OOM}\n")
    assert main(("explain", str(log))) == 0
    assert capsys.readouterr().out.startswith("device_oom (")
    assert main(("explain", "--json", str(log), "--exit-code", "1")) == 0
    document = json.loads(capsys.readouterr().out)
    assert list(document)[:10] == [
        *("kind", "cause", "phase", "rank", "step", "requested_bytes", "capacity_bytes"),
        *("root", "confidence", "evidence"),
    ]
    assert (document["kind"], document["requested_bytes"]) == ("device_oom", 2 << 30)
    assert document["evidence"][0]["line"] == 1


def test_explain_reads_its_standard_input(tmp_path):
    done = subprocess.run(
        [*OOMGUARD, "explain", "-", "--json"],
        input=f"{OOM}\n".encode(),
        capture_output=True,
        check=True,
    )
    assert json.loads(done.stdout)["capacity_bytes"] == 16 << 30


@pytest.mark.parametrize(
    ("text", "code", "kind"),
    [
        ("", "0", "ok"),
        ("", "-9", "unknown"),
        ("", "130", "interrupted"),
        ("ValueError: no\n", "1", "not_oom"),
    ],
)
def test_explain_weighs_the_exit_code(tmp_path, capsys, text, code, kind):
    (tmp_path / "log").write_text(text)
    assert main(("explain", "--json", f"--exit-code={code}", str(tmp_path / "log"))) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == kind


def test_the_ladder_is_listed_in_its_order(capsys):
    assert main(("ladder", "--json")) == 0
    rows = json.loads(capsys.readouterr().out)["strategies"]
    assert set(rows[0]) == {"id", "summary", "fidelity", "remedies", "repeat"}
    assert main(("ladder",)) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()[::2]]
    assert listed == [row["id"] for row in rows]


def test_a_ladder_of_ones_own(tmp_path, capsys):
    (tmp_path / "001_faulty.py").write_text(FAULTY)
    own = ("--ladder", "faulty,enable_qlora", "--strategies", str(tmp_path))
    assert main(("ladder", "--json", *own)) == 0
    rows = json.loads(capsys.readouterr().out)["strategies"]
    assert [row["id"] for row in rows if row["remedies"]] == ["faulty", "enable_qlora"]


def test_the_classic_ladder_is_the_six_in_their_order(capsys):
    assert main(("ladder", "--json", "--ladder", "classic")) == 0
    rows = json.loads(capsys.readouterr().out)["strategies"]
    assert [row["id"] for row in rows if row["remedies"]] == [
        *("halve_micro_batch", "cut_cutoff_len", "freeze_vision_tower_and_projector"),
        *("switch_to_zero3", "enable_qlora", "low_cpu_mem_usage"),
    ]


@pytest.mark.parametrize("words", [(), ("launch",), ("explain",), ("ladder",), ("models",)])
def test_help_is_there(words, capsys):
    assert main((*words, "--help")) == 0
    assert capsys.readouterr().out.startswith("Usage: oomguard")


def test_a_reader_that_goes_away_is_no_fault(tmp_path):
    job = write_job(tmp_path, "for _ in range(1000): say('x' * 5000)")
    with subprocess.Popen(
        [*OOMGUARD, "launch", "--", *job],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdout.read(100)
        process.stdout.close()
        err = process.stderr.read().decode()
    assert process.returncode == 0
    assert "Traceback" not in err
    assert "fault of oomguard" not in err


def test_the_old_name_of_no_monitor_still_works_and_says_so(capsys):
    code = main(["launch", "--no-inside", "--grow", "--", "python", "-c", "pass"])
    said = capsys.readouterr().err
    assert code == 2
    assert said.startswith("note: --no-inside is now --no-monitor\n")
    assert "--no-inside" not in CliRunner().invoke(cli, ["launch", "--help"]).output


@pytest.mark.parametrize("words", [("--version",), ("--help",), ("explain", "/dev/null")])
def test_a_short_command_imports_neither_adapters_nor_the_supervisor(words):
    code = (
        "import sys; from oomguard.cli.main import main; main(sys.argv[1:])\n"
        "print(*[m for m in sys.modules if m.startswith('oomguard.')], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
    )
    packages = {name.split(".")[1] for name in done.stderr.split()}
    assert "cli" in packages
    shared = {"cli", "errors", "units", "redact", "secret_shapes", "present"}
    read = {"evidence", "ladder", "job", "configfile"} if "explain" in words else set()
    assert packages <= shared | read

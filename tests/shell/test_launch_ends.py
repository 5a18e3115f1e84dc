"""Every end of `oomguard launch`: its exit code, its account, what it leaves behind."""

from __future__ import annotations

import json
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

import oomguard
from oomguard.run.folder import ROOM_BYTES
from shell.launches import (
    CAP_BYTES,
    OOMGUARD,
    REPORT,
    TORCH_OOM,
    launch,
    make_live,
    write_job,
)

live = pytest.fixture(make_live)
CAP = ("--host-memory", str(CAP_BYTES))
TRAINS = "say('micro', micro, 'accumulation', accumulation); batch = hold(micro); say('trained')"
SCHEMA = json.loads(Path(oomguard.__file__).with_name("fit-report.schema.json").read_text())


@pytest.fixture(scope="module")
def fit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fit")
    return launch(folder, *CAP, "--", *write_job(folder, TRAINS))


def test_a_job_that_runs_out_of_memory_twice_ends_trained(fit):
    assert fit.code == 0, fit.err
    assert fit.report["status"] == "fit"
    assert fit.micro_batches == [16, 8, 4]
    kinds = [attempt["verdict"]["kind"] for attempt in fit.report["attempts"]]
    assert kinds == ["host_oom", "host_oom", "ok"]
    plans = [attempt["plan"] for attempt in fit.report["attempts"]]
    assert {plan["micro_batch"] * plan["accumulation"] for plan in plans} == {16}


def test_what_the_job_printed_is_on_stdout_and_in_its_logs(fit):
    assert fit.out == "".join(fit.log(number) for number in (1, 2, 3))
    said = [line for line in fit.out.splitlines() if line.startswith("micro")]
    assert said == [f"micro {n} accumulation {16 // n}" for n in (16, 8, 4)]
    assert fit.log(3).endswith("trained\n")


def test_the_account_is_on_stderr_and_says_each_change_with_its_cost(fit):
    lines = [line.removeprefix("oomguard ") for line in fit.err.splitlines()]
    assert lines[0] == (
        "hf_trainer on cpu: global batch 16 (micro batch 16 x accumulation 1 x 1 process)"
    )
    assert [line for line in lines if line.startswith("attempt")] == [
        f"attempt {number}: micro batch {micro}, accumulation {16 // micro}, fp32, full"
        for number, micro in ((1, 16), (2, 8), (3, 4))
    ]
    assert sum(line.startswith("out of host memory") for line in lines) == 2
    assert sum(line.endswith("[same math]") for line in lines) == 2
    assert "trained, in 3 attempts" in lines
    assert "  micro_batch 16 -> 4" in lines
    assert str(fit.run / "fit-report.json") in lines[-1]


def test_the_report_keeps_the_published_schema(fit):
    assert list(jsonschema.Draft202012Validator(SCHEMA).iter_errors(fit.report)) == []


def test_the_final_command_trains_by_hand_under_the_same_cap(fit):
    *notes, command = (fit.run / "final" / "command.txt").read_text().splitlines()
    assert str(CAP_BYTES) in notes[0]

    def cap() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (CAP_BYTES, CAP_BYTES))

    done = subprocess.run(
        ["sh", "-c", command], preexec_fn=cap, capture_output=True, text=True, check=False
    )
    assert done.stdout == "micro 4 accumulation 4\ntrained\n", done.stderr


def test_the_run_is_told_event_by_event(fit):
    kinds = [event["event"] for event in fit.events()]
    assert kinds[0] == "run_started"
    assert kinds[-1] == "finished"
    assert [kinds.count(kind) for kind in ("planned", "started", "exited")] == [3, 3, 3]
    times = [event["t"] for event in fit.events()]
    assert times == sorted(times)


def test_a_job_that_fits_as_asked_is_run_once_and_unchanged(tmp_path):
    ended = launch(tmp_path, "--", *write_job(tmp_path, TRAINS))
    assert ended.code == 0
    assert ended.micro_batches == [16]
    assert ended.report["changes"] == []
    assert "the requested config fits; nothing was changed" in ended.err


def test_when_no_rung_is_left_the_report_says_what_was_tried_and_what_was_missing(tmp_path):
    code = f"say({TORCH_OOM!r}, to=sys.stderr); sys.exit(1)"
    ended = launch(tmp_path, "--verbose", "--", *write_job(tmp_path, code))
    assert ended.code == 3
    assert ended.micro_batches == [16, 8, 4, 2, 1]
    report = ended.report
    assert (report["status"], report["final"]) == ("exhausted", None)
    assert report["not_taken"] == [
        {"strategy": "halve_micro_batch", "reason": "the micro batch is 1"}
    ]
    assert report["requested_bytes"] == 256 << 20
    assert "tried to allocate 256.00 MiB" in ended.err
    assert "giving up: all strategies are exhausted" in ended.err
    assert "skipped halve_micro_batch: the micro batch is 1" in ended.err
    assert not (ended.run / "final").exists()


def test_an_exhausted_run_says_what_is_missing_and_what_would_help_in_its_document_too(tmp_path):
    code = f"say({TORCH_OOM!r}, to=sys.stderr); sys.exit(1)"
    ended = launch(
        tmp_path, "--json", "--max-attempts", "2", "--host-memory", "8GiB", "--",
        *write_job(tmp_path, code),
    )  # fmt: skip
    assert ended.code == 3
    document = json.loads(ended.out)
    assert (document["reason"], document["changes"]) == ("none of 2 attempts fits", [])
    short = document["shortfall"]
    assert short == ended.report["shortfall"]
    assert (short["missing_bytes"], short["bound"], short["attempt"]) == (None, "unknown", 2)
    (untried,) = short["untried"]
    assert (untried["needs"], untried["step"]["strategy"]) == (
        "--max-attempts above 2",
        "halve_micro_batch",
    )
    assert short["helps"] == ["--host-memory above 8.00 GiB"]
    assert (
        "how much memory is missing is not known: an allocation of 256.00 MiB failed, and what was "
        "free is not known" in ended.err
    )
    assert "would help: --host-memory above 8.00 GiB" in ended.err


def reported_oom(phase):
    fields = {
        "uncaught": True, "frames": [], "memory": None, "shapes": None, "device": "cpu",
        "requested_bytes": None, "capacity_bytes": None,
    }  # fmt: skip
    return (
        f"{REPORT}\nreport('oom', phase={phase!r}, exception='MemoryError', message='', "
        f"**{fields!r})\nraise MemoryError"
    )


def test_an_exhausted_run_counts_skipped_strategies_in_one_line(tmp_path):
    job = write_job(tmp_path, reported_oom("load"))
    ended = launch(tmp_path, "--ladder", "classic", "--", *job)
    assert ended.code == 3
    assert len(ended.report["not_taken"]) == 6
    assert "skipped (--verbose lists the reasons)" in ended.err
    assert not [s for s in ended.report["not_taken"] if f"skipped {s['strategy']}:" in ended.err]


def test_no_more_attempts_than_allowed(tmp_path):
    job = write_job(tmp_path, "raise MemoryError")
    ended = launch(tmp_path, "--max-attempts", "2", "--", *job)
    assert (ended.code, ended.micro_batches) == (3, [16, 8])
    assert "none of 2 attempts fits" in ended.err


@pytest.mark.parametrize(
    ("code", "returncode", "kind", "message"),
    [
        ("raise ValueError('loss is nan')", 1, "not_oom", "ValueError: loss is nan"),
        (
            "say('no such dataset', to=sys.stderr); sys.exit(7)",
            7,
            "unknown",
            "exited with code 7; last output: no such dataset",
        ),
        ("os.kill(os.getpid(), signal.SIGSEGV)", -11, "not_oom", "exited with code -11"),
        ("os.kill(os.getpid(), signal.SIGKILL)", -9, "unknown", "killed by SIGKILL"),
    ],
)
def test_any_other_failure_is_the_jobs_own_and_ends_the_run(
    tmp_path, code, returncode, kind, message
):
    ended = launch(tmp_path, *CAP, "--", *write_job(tmp_path, code))
    assert ended.code == 1
    (attempt,) = ended.report["attempts"]
    assert attempt["returncode"] == returncode
    assert attempt["verdict"]["kind"] == kind
    assert ended.report["status"] == "failed"
    assert message in ended.report["reason"]
    assert ended.err.count(message) == 1
    assert "so it is not relaunched" in ended.err
    assert ("to find out: " in ended.err) == (kind == "unknown")


def test_an_error_after_a_caught_shortage_is_no_shortage(tmp_path):
    code = (
        "try:\n    hold(64)\nexcept MemoryError:\n    say('smaller, then')\n"
        "raise ValueError('loss is nan')"
    )
    ended = launch(tmp_path, *CAP, "--", *write_job(tmp_path, code))
    assert (ended.code, ended.micro_batches) == (1, [16])
    assert "loss is nan" in ended.err


def test_a_job_that_catches_its_shortage_and_goes_on_is_left_alone(tmp_path):
    code = f"""
step(1)
say({TORCH_OOM!r}, to=sys.stderr)
for number in range(2, 32):
    time.sleep(0.1)
    step(number)
say('trained')
"""
    ended = launch(tmp_path, "--", *write_job(tmp_path, REPORT + code))
    assert (ended.code, ended.micro_batches) == (0, [16])
    assert ended.report["attempts"][0]["stopped"] is None


def test_a_shortage_that_a_process_reports_as_its_end_stops_the_others_at_once(tmp_path):
    code = """
if micro > 8 and os.fork() == 0:
    report("oom", rank=1, exception="RuntimeError", message="no memory", uncaught=True, frames=[],
           memory=None, shapes=None, device="cpu", requested_bytes=5, capacity_bytes=None)
    os._exit(1)
if micro > 8: signal.pause()
"""
    ended = launch(tmp_path, "--", *write_job(tmp_path, REPORT + code))
    assert (ended.code, ended.micro_batches) == (0, [16, 8])
    first = ended.report["attempts"][0]
    assert (first["stopped"], first["verdict"]["requested_bytes"]) == ("out of memory", 5)
    assert first["verdict"]["confidence"] == "high"


def test_what_the_job_prints_is_passed_on_without_delay(live, tmp_path):
    run = live(
        "sys.stdout.write('half a line'); sys.stdout.flush()\n"
        "while not os.path.exists('go'): time.sleep(0.01)\nsay(' and the rest')"
    )
    run.wait_for("half a line")
    wait = run.run / "attempts" / "001" / "log.txt"
    assert wait.read_text() == "half a line"
    (tmp_path / "go").touch()
    assert run.ended().out == "half a line and the rest\n"


def test_bytes_that_are_no_text_are_passed_on_as_they_are(tmp_path):
    raw = bytes(range(256)) * 64 + b"\n"
    job = write_job(tmp_path, f"sys.stdout.buffer.write({raw!r})")
    done = subprocess.run(
        [*OOMGUARD, "launch", "--name", "raw", "--", *job],
        cwd=tmp_path, capture_output=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, raw)
    assert (tmp_path / "oomguard-runs/raw/attempts/001/log.txt").read_bytes() == raw


def test_a_file_of_flags_is_a_config_whose_comments_stay(tmp_path):
    argv = shlex.join(write_job(tmp_path, TRAINS)[:2])
    text = (
        f"# mine\noomguard:\n  command: [{', '.join(shlex.split(argv))}]\n"
        f"  host_memory: {CAP_BYTES}\n\n"
        "per_device_train_batch_size: 16  # all at once\noutput_dir: out  # stays\n"
    )
    (tmp_path / "train.yaml").write_text(text)
    ended = launch(tmp_path, "train.yaml")
    assert (ended.code, ended.micro_batches) == (0, [16, 8, 4])
    final = (ended.run / "final" / "train.yaml").read_text()
    assert "per_device_train_batch_size: 4  # all at once\n" in final
    assert "output_dir: out  # stays\n" in final
    assert "# mine\n" in final
    assert "gradient_accumulation_steps: 4\n" in final
    assert (tmp_path / "train.yaml").read_text() == text


def test_secrets_are_in_no_file_that_one_would_show_around(tmp_path):
    secret = "hf_" + "a1B2" * 8
    job = (*write_job(tmp_path, ""), "--output_dir", secret)
    ended = launch(tmp_path, "--", *job, env={"WANDB_API_KEY": secret})
    assert ended.code == 0, ended.err
    files = [path for path in ended.run.rglob("*") if path.is_file()]
    told = {path.name for path in files if secret in path.read_text()}
    # What one types to have the run again, or to go on, has to work; the folder is its owner's.
    assert told == {"job.json", "command.txt"}
    assert ended.run.stat().st_mode & 0o77 == 0


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    room = ("mount", "-t", "tmpfs", "-o", f"size={ROOM_BYTES + (8 << 20)}", "tmpfs", place)
    if subprocess.run(room, capture_output=True, check=False).returncode != 0:
        pytest.skip("no file system may be mounted here")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_log_that_fills_the_disk_costs_its_own_end_and_nothing_else(tmp_path, small_disk):
    code = f"for _ in range({(ROOM_BYTES >> 20) + 16}): say('.' * (1 << 20))\nsay('trained')"
    ended = launch(tmp_path, "--runs", str(small_disk), "--", *write_job(tmp_path, code))
    assert ended.code == 0, ended.err
    assert ended.out.endswith("trained\n")
    (run,) = small_disk.iterdir()
    assert json.loads((run / "fit-report.json").read_text())["status"] == "fit"
    assert (run / "final" / "command.txt").exists()
    last = (run / "events.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["event"] == "finished"
    assert "not complete" not in ended.err


def test_a_script_whose_own_flags_are_all_that_it_takes_is_launched_once(tmp_path):
    code = (
        "import argparse\nparser = argparse.ArgumentParser()\n"
        "parser.add_argument('--bs', type=int)\ngiven = parser.parse_args()\n"
        f"raise RuntimeError({TORCH_OOM!r})\n"
    )
    (tmp_path / "job.py").write_text(code)
    job = (sys.executable, "job.py", "--bs", "16")
    run = launch(tmp_path, "--ladder", "halve_micro_batch,gradient_checkpointing", "--", *job)
    assert run.code == 3, run.err
    assert len(run.report["attempts"]) == 1
    assert "warning: job.py does not take --per_device_train_batch_size (its own flags: --bs)" in (
        run.err
    )
    skipped = {one["strategy"]: one["reason"] for one in run.report["not_taken"]}
    assert skipped["halve_micro_batch"] == (
        "refused by hf_trainer: the script does not take --per_device_train_batch_size, "
        "--gradient_accumulation_steps"
    )

"""What is recorded of environment and data is what is there, by an allow-list and within bounds."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
from importlib import metadata

import msgspec
import pytest

from oomguard.adapters.registry import adapter_named
from oomguard.cli.provenance_lines import data_line, environment_line
from oomguard.dataset import fingerprint as fingerprints
from oomguard.dataset.fingerprint import fingerprint
from oomguard.job.provenance import Environment, GitState, GpuModel
from oomguard.machine.git_state import git_state
from oomguard.machine.interpreter import facts_of
from oomguard.run.event_log import parse_history
from oomguard.run.outcome import report_of
from oomguard.run.report import to_json
from shell.launches import CAP_BYTES, launch, write_job

SAMPLES = [{"prompt": "a", "response": "b"}] * 3


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --- Data ---


def test_files_are_hashed_and_their_samples_counted(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.json").write_text(json.dumps(SAMPLES))
    lines = "".join(json.dumps(one) + "\n" for one in SAMPLES)
    (tmp_path / "b.jsonl").write_text(lines)
    named = (str(tmp_path / "data" / "a.json"), str(tmp_path / "b.jsonl"), str(tmp_path / "org/x"))
    found = fingerprint(named, tmp_path, seed=7)
    assert [one.path for one in found.files] == ["data/a.json", "b.jsonl"]
    assert found.files[1].sha256 == sha256(lines.encode())
    assert [one.samples for one in found.files] == [3, 3]
    assert all(one.is_whole for one in found.files)
    assert (found.elsewhere, found.seed, found.samples) == (("org/x",), 7, None)
    assert "org/x: not a local file" in data_line(found)
    both = fingerprint(named[:2], tmp_path)
    assert both.samples == 6
    assert data_line(both).endswith("6 samples")


def test_large_files_are_hashed_at_both_ends_and_too_many_only_sized(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "MOST_OF_A_FILE_BYTES", 8)
    monkeypatch.setattr(fingerprints, "MOST_HASHED_BYTES", 16)
    monkeypatch.setattr(fingerprints, "MOST_FILES", 3)
    for number in range(4):
        (tmp_path / f"{number}.parquet").write_bytes(b"head" + bytes([number]) * 5 + b"tail")
    found = fingerprint((str(tmp_path),), tmp_path)
    assert [one.path for one in found.files] == ["0.parquet", "1.parquet", "2.parquet"]
    first, second, third = found.files
    assert first.sha256 == second.sha256 == sha256(b"headtail")
    assert (first.hashed_bytes, first.size_bytes, first.is_whole) == (8, 13, False)
    assert (third.sha256, third.size_bytes, third.is_whole) == (None, 13, False)
    assert (found.left_out, found.samples) == (1, None)


def test_a_dataset_of_llamafactory_is_the_file_that_its_info_names(tmp_path):
    (tmp_path / "dataset_info.json").write_text('{"mine": {"file_name": "a.json"}}')
    (tmp_path / "a.json").write_text(json.dumps(SAMPLES))
    found = fingerprint((str(tmp_path / "mine"),), tmp_path)
    assert [one.path for one in found.files] == ["a.json"]


# --- Environment ---


def git(folder, *words):
    author = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", *author, *words], cwd=folder, check=True, capture_output=True)


def test_the_commit_of_a_folder_and_whether_its_files_differ(tmp_path):
    assert git_state(tmp_path) is None
    git(tmp_path, "init", "-q")
    assert git_state(tmp_path) is None, "there is no commit yet"
    job, other = tmp_path / "job", tmp_path / "other"
    for folder in (job, other):
        folder.mkdir()
        (folder / "train.py").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "x")
    head = (tmp_path / ".git" / "HEAD").read_text().split()[1]
    commit = (tmp_path / ".git" / head).read_text().strip()
    (job / "oomguard-runs").mkdir()
    (job / "oomguard-runs" / "log.txt").write_text("not tracked")
    assert git_state(job) == GitState(commit=commit, dirty=False)
    (other / "train.py").write_text("2")
    assert git_state(job) == GitState(commit=commit, dirty=False)
    (job / "train.py").write_text("2")
    assert git_state(job) == GitState(commit=commit, dirty=True)


def test_nothing_that_a_repository_configures_is_run(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "x")
    git(tmp_path, "config", "core.fsmonitor", f"touch {tmp_path}/ran")
    assert git_state(tmp_path) is not None
    assert not (tmp_path / "ran").exists()


def test_versions_are_those_of_the_python_that_is_asked(tmp_path, monkeypatch):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise SystemExit('never imported')")
    (tmp_path / "torch" / "version.py").write_text("cuda: str = '12.8'\ngit_version = 'x'\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = facts_of(sys.executable, ["msgspec", "no-such-package"])
    assert found.version == platform.python_version()
    assert found.cuda == "12.8"
    assert found.packages == {"msgspec": metadata.version("msgspec")}
    assert facts_of(str(tmp_path / "no-python"), ["msgspec"]).packages == {}


@pytest.mark.parametrize(("dirty", "shown"), [(True, ", with changes"), (False, "")])
def test_the_line_names_what_decides_memory(dirty, shown):
    found = Environment(
        system="Linux",
        gpus=(GpuModel(name="A10G", total_bytes=22 << 30),),
        driver="570.1",
        cuda="12.8",
        python="3.11.7",
        packages={"torch": "2.8.0", "tokenizers": "0.22"},
        git=GitState(commit="0123456789abcdef", dirty=dirty),
    )
    assert environment_line(found) == (
        "A10G (22.00 GiB), driver 570.1, Python 3.11.7, torch 2.8.0, CUDA 12.8, "
        f"git 0123456789ab{shown}"
    )


def test_a_launch_records_both_before_its_first_attempt(tmp_path):
    (tmp_path / "train.json").write_text(json.dumps(SAMPLES))
    code = "say({'loss': 2.5, 'epoch': 0.5}); say({'loss': 1.5, 'epoch': 1.0})"
    flags = ("--train_file", "train.json", "--seed", "7")
    accept = "for name in ('--train_file', '--seed'): parser.add_argument(name)\n"
    job = write_job(tmp_path, code)
    script = tmp_path / "job.py"
    script.write_text(script.read_text().replace("given =", accept + "given ="))
    secret = "hf_" + "a1B2" * 8
    ended = launch(tmp_path, "--", *job, *flags, env={"HF_TOKEN": secret})
    assert ended.code == 0, ended.err
    first = ended.events()[0]
    assert first["environment"]["executable"] == sys.executable
    assert first["environment"]["python"] == platform.python_version()
    assert set(first["environment"]) == set(Environment.__dataclass_fields__)
    (file,) = first["data"]["files"]
    text = (tmp_path / "train.json").read_bytes()
    assert (file["path"], file["sha256"], file["samples"]) == ("train.json", sha256(text), 3)
    assert first["data"]["seed"] == 7
    report = ended.report
    assert (report["environment"], report["data"]) == (first["environment"], first["data"])
    assert report["attempts"][0]["loss"] == {
        "unit": "epoch", "first_at": 0.5, "first": 2.5, "last_at": 1.0, "last": 1.5,
    }  # fmt: skip
    assert secret not in json.dumps([first, report])


# --- From the events alone ---


def test_a_report_is_rendered_from_the_events_alone_as_it_was_written(tmp_path):
    """With secrets in the config and in the command, which events.jsonl has masked."""
    secret = "hf_" + "a1B2" * 8
    argv = write_job(tmp_path, "hold(micro); say({'loss': 1.5, 'epoch': 1.0})")[:2]
    script = tmp_path / "job.py"
    accept = "parser.add_argument('--hub_token')\n"
    script.write_text(script.read_text().replace("given =", accept + "given ="))
    (tmp_path / "train.yaml").write_text(
        f"oomguard:\n  command: [{', '.join(argv)}]\n  host_memory: {CAP_BYTES}\n"
        f"hub_token: {secret}  # mine\nper_device_train_batch_size: 16\noutput_dir: out\n"
    )
    ended = launch(tmp_path, "train.yaml")
    assert (ended.code, ended.micro_batches) == (0, [16, 8, 4]), ended.err
    with (ended.run / "events.jsonl").open("rb") as lines:
        record = parse_history(lines, "events.jsonl").record
    assert record.job is not None
    rendered = to_json(report_of(record, adapter_named(record.job.framework), tmp_path))
    assert json.loads(msgspec.json.encode(rendered)) == ended.report
    (file,) = ended.report["reproduction"]["files"]
    assert 'hub_token: "***"  # mine\nper_device_train_batch_size: 4\n' in file["text"]

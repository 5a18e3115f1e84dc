"""`oomguard reproduce`: the config that fits runs again in another folder, and is compared."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shell.launches import CAP_BYTES, OOMGUARD, SETUP, launch

SAMPLES = [{"instruction": "a", "output": "b"}] * 3
#: What LLaMA-Factory's command does, without it: the config decides how much memory is held.
TRAINER = SETUP.replace(
    "given = parser.parse_args()",
    "import yaml\n"
    "config = yaml.safe_load(open(sys.argv[2]))\n"
    "data = open(config['dataset_dir'] + '/mine.json').read()\n"
    "given = argparse.Namespace(**config)",
)
TRAINER += "hold(micro)\nprint('micro', micro)\nprint({'loss': 1.0 + len(data), 'epoch': 1.0})\n"
CONFIG = """\
stage: sft
do_train: true
finetuning_type: full
model_name_or_path: org/model
dataset: mine
dataset_dir: data
template: default
use_cpu: true
per_device_train_batch_size: 16  # all at once
gradient_accumulation_steps: 1
output_dir: out
seed: 7
"""


def make_folder(folder: Path, config: str = CONFIG) -> Path:
    for name in ("bin", "data"):
        (folder / name).mkdir(parents=True)
    program = folder / "bin" / "llamafactory-cli"
    program.write_text(f"#!{sys.executable}\n{TRAINER}")
    program.chmod(0o755)
    (folder / "data" / "mine.json").write_text(json.dumps(SAMPLES))
    (folder / "data" / "dataset_info.json").write_text('{"mine": {"file_name": "mine.json"}}')
    (folder / "train.yaml").write_text(config)
    return folder


def path_of(folder: Path) -> dict[str, str]:
    return {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}


def oomguard(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **path_of(folder), "XDG_DATA_HOME": str(folder)}
    return subprocess.run(
        [*OOMGUARD, "reproduce", *words],
        cwd=folder, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip


def fit_in(folder: Path, config: str = CONFIG) -> Path:
    """Launch in a folder until it fits; return the report."""
    make_folder(folder, config)
    words = ("--host-memory", str(CAP_BYTES), "train.yaml")
    ended = launch(folder, *words, env=path_of(folder))
    assert (ended.code, ended.micro_batches) == (0, [16, 8, 4]), ended.err
    return ended.run / "fit-report.json"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return fit_in(tmp_path_factory.mktemp("original") / "job")


@pytest.fixture
def sent(original, tmp_path):
    """Return the report alone, as somebody else gets it, and a copy of the job's folder."""
    report = tmp_path / "sent" / "theirs.json"
    report.parent.mkdir()
    shutil.copy(original, report)
    return report, make_folder(tmp_path / "copy")


def runs_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("oomguard-runs/*/fit-report.json"))


def test_it_trains_in_another_folder_at_once_and_is_compared(sent):
    report, copy = sent
    done = oomguard(copy, str(report), "--root", str(copy))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("micro 4\n")
    (run,) = runs_in(copy)
    document = json.loads(run.read_text())
    assert document["changes"] == []
    assert [attempt["plan"]["micro_batch"] for attempt in document["attempts"]] == [4]
    assert document["limits"]["host_memory_bytes"] == CAP_BYTES
    (config,) = copy.glob("oomguard-reproduced/*/train.yaml")
    assert "per_device_train_batch_size: 4  # all at once\n" in config.read_text()
    lines = [line.removeprefix("oomguard ") for line in done.stderr.splitlines()]
    assert f"command  llamafactory-cli train {config}" in lines
    assert f"config   {config}" in lines
    assert "nothing that was recorded differs" in lines
    assert "note: the weights of the model are not compared: org/model" in lines
    results = {"final: as recorded", "loss: as recorded", "peaks: not known in both runs"}
    assert results <= set(lines)
    # A second time the config is there already.
    assert oomguard(copy, str(report), "--root", str(copy)).returncode == 0


def test_a_dry_run_shows_what_would_be_launched_and_writes_nothing(sent):
    report, copy = sent
    before = sorted(copy.rglob("*"))
    done = oomguard(copy, str(report), "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"in {copy}\n" in done.stdout
    assert f"command  llamafactory-cli train {copy}/oomguard-reproduced/" in done.stdout
    assert "nothing that was recorded differs" in done.stdout
    assert sorted(copy.rglob("*")) == before


def test_the_folder_is_found_above_the_report(original, tmp_path):
    copy = tmp_path / "moved"
    shutil.copytree(original.parents[2], copy)
    (report,) = runs_in(copy)
    env = {**os.environ, **path_of(copy)}
    words = [*OOMGUARD, "reproduce", str(report), "--dry-run", "--json"]
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    document = json.loads(done.stdout)
    assert document["root"] == str(copy)
    assert (document["differences"], document["problems"], document["launched"]) == ([], [], False)


def test_other_data_stop_it_unless_they_are_accepted(sent):
    report, copy = sent
    (copy / "data" / "mine.json").write_text(json.dumps(SAMPLES * 2))
    done = oomguard(copy, str(report))
    assert done.returncode == 2
    assert "the data differ: data/mine.json sha256 " in done.stderr
    assert ", 3 samples -> sha256 " in done.stderr
    assert runs_in(copy) == []
    dry = oomguard(copy, str(report), "--dry-run", "--json")
    assert dry.returncode == 2
    (one,) = json.loads(dry.stdout)["differences"]
    assert (one["section"], one["name"], one["weight"]) == ("data", "data/mine.json", "result")
    done = oomguard(copy, str(report), "--accept-changes", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["status"] == "fit"
    assert len(document["reproduction"]["problems"]) == 1
    assert "loss: first " in done.stderr


def test_missing_files_are_named(sent):
    report, copy = sent
    (copy / "data" / "mine.json").unlink()
    done = oomguard(copy, str(report), "--root", str(copy))
    assert done.returncode == 2
    assert f"{copy}: the job's folder lacks data/mine.json" in done.stderr
    done = oomguard(copy, str(report))
    assert done.returncode == 2
    assert "the job's files are not found here, nor above the report: data/mine.json" in done.stderr
    done = oomguard(copy, str(report), "--root", str(copy), "--dry-run")
    assert done.returncode == 2
    assert "problem: data/mine.json is missing" in done.stdout
    assert oomguard(copy, str(report), "--root", "nowhere").returncode == 2
    assert oomguard(copy, str(copy / "no-report.json")).returncode == 2


def changed(report: Path, **fields: object) -> Path:
    document = {**json.loads(report.read_text()), **fields}
    path = report.with_name("changed.json")
    path.write_text(json.dumps(document))
    return path


def test_what_differs_in_the_environment_is_said_with_what_it_means(sent):
    report, copy = sent
    environment = json.loads(report.read_text())["environment"]
    environment |= {
        "packages": {**environment["packages"], "torch": "1.0"},
        "driver": None,
        "system": "Plan 9",
        "gpus": [{"name": "NVIDIA A10G", "total_bytes": 22 << 30}],
    }
    done = oomguard(copy, str(changed(report, environment=environment)), "--dry-run")
    assert done.returncode == 0, done.stderr
    found = [line for line in done.stdout.splitlines() if line.startswith("differs: ")]
    assert found[0].startswith("differs: gpus NVIDIA A10G -> ")
    assert found[0].endswith("(may change how much memory it takes, or whether it fits)")
    assert found[1].startswith("differs: system Plan 9 -> ")
    assert found[1].endswith("(not expected to matter)")
    assert found[2].startswith("differs: torch 1.0 -> ")
    assert found[2].endswith("(may change the result)")


def test_another_number_of_processes_would_be_another_batch(sent):
    report, copy = sent
    done = oomguard(copy, str(changed(report, global_batch=32, world={"per_node": 2})))
    assert done.returncode == 2
    assert "the global batch would be 16 instead of 32: 1 process here, 2 recorded" in done.stderr


def test_an_old_report_and_one_of_a_failed_run_say_why_they_cannot_be_reproduced(sent, tmp_path):
    report, copy = sent
    old = Path(__file__).parents[1] / "data" / "reports" / "version-1.json"
    done = oomguard(copy, str(old))
    assert done.returncode == 2
    assert "did not record what reproduces it (schema version 1)" in done.stderr
    done = oomguard(copy, str(changed(report, status="exhausted", reproduction=None)))
    assert done.returncode == 2
    assert "this run found no config that fits (exhausted)" in done.stderr


def test_a_report_cannot_write_outside_of_its_folder(sent):
    report, copy = sent
    reproduction = json.loads(report.read_text())["reproduction"]
    reproduction["files"][0]["path"] = "{oomguard:final}/../../bin/llamafactory-cli"
    for fields in ({"reproduction": reproduction}, {"run": "../bin"}):
        done = oomguard(copy, str(changed(report, **fields)))
        assert done.returncode == 2, done.stderr
        assert (copy / "bin" / "llamafactory-cli").read_text().endswith(TRAINER)
    assert runs_in(copy) == []


def test_a_masked_secret_is_asked_for_and_kept_once_it_is_there(tmp_path):
    secret = "hf_" + "a1B2" * 8
    report = fit_in(tmp_path / "job", f"{CONFIG}hub_token: {secret}\n")
    assert secret not in report.read_text()
    copy = make_folder(tmp_path / "copy")
    done = oomguard(copy, str(report))
    assert done.returncode == 2
    (config,) = copy.glob("oomguard-reproduced/*/train.yaml")
    assert f"{config}: a secret in the config was masked" in done.stderr
    config.write_text(config.read_text().replace("***", secret))
    done = oomguard(copy, str(report))
    assert done.returncode == 0, done.stderr
    assert secret in config.read_text()
    config.write_text(CONFIG)
    done = oomguard(copy, str(report))
    assert done.returncode == 2
    assert "is there already, and is not the recorded config" in done.stderr


def test_a_script_is_started_by_the_python_of_this_machine(tmp_path):
    job = tmp_path / "job"
    job.mkdir()
    (job / "job.py").write_text(SETUP + "hold(micro)\nsay('micro', micro)\n")
    words = ("--host-memory", str(CAP_BYTES), "--", sys.executable, "job.py")
    ended = launch(job, *words, "--per_device_train_batch_size", "16")
    assert ended.code == 0, ended.err
    assert ended.report["reproduction"]["argv"][:2] == ["{oomguard:python}", "job.py"]
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copy(job / "job.py", copy)
    done = oomguard(copy, str(ended.run), "--python", sys.executable)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "micro 4\n"
    assert "note: the report does not record the data" in done.stderr

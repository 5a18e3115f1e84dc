"""Every mistake of a user: one message with what, where and what next; exit 2; nothing lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
from filelock import FileLock

from oomguard.cli.main import main

JOB = "open('started', 'w').close()"
FLAGS = "per_device_train_batch_size: 16\noutput_dir: out\n"
COMMAND = (sys.executable, "job.py", "--per_device_train_batch_size", "16")
GOOD = f"oomguard:\n  command: [{sys.executable}, job.py]\n{FLAGS}"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    (tmp_path / "job.py").write_text(JOB)
    (tmp_path / "train.yaml").write_text(GOOD)
    return tmp_path


@pytest.fixture
def refused(folder, capsys):
    """Return a function that runs a command line to its refusal and gives the message."""

    def run(*words):
        before = _files(folder)
        capsys.readouterr()
        assert main(words) == 2
        said = capsys.readouterr()
        assert said.err.startswith("oomguard: ")
        assert len(said.err.splitlines()) <= 3
        assert "Traceback" not in said.err
        assert said.out == ""
        _nothing_started(folder)
        assert {path: text for path, text in _files(folder).items() if path in before} == before
        assert main((words[0], "--json", *words[1:])) == 2
        said_again = capsys.readouterr()
        assert said_again.err == said.err
        error = json.loads(said_again.out)["error"]
        assert set(error) == {"what", "where", "next"}
        assert error["what"] in said.err
        return said.err.removeprefix("oomguard: ")

    return run


def _files(folder):
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in paths}


def _nothing_started(folder):
    assert not (folder / "started").exists()
    assert not list(folder.rglob("attempts"))


CASES = {
    "no such file": (("launch", "trian.yaml"), ("trian.yaml", "does not exist", "'train.yaml'?")),
    "a folder": (("launch", "."), ("is a folder",)),
    "neither": (("launch",), ("needs a config file, or a command after --", "train.yaml")),
    "both": (("launch", "train.yaml", "--", *COMMAND), ("pass one of them",)),
    "an empty command": (("launch", "--"), ("no command after --",)),
    "a command unknown": (("launch", "--", "make", "train"), ("make",)),
    "an option": (
        ("launch", "--lader", "classic", "train.yaml"),
        ("Did you mean --ladder",),
    ),
    "a rung": (
        ("launch", "--ladder", "halve_micro_bach", "train.yaml"),
        ("key '--ladder'", "halve_micro_bach", "'halve_micro_batch'?"),
    ),
    "a size": (("launch", "--host-memory", "lots", "train.yaml"), ("--host-memory", "24GiB")),
    "no unit": (("launch", "--host-memory", "16", "train.yaml"), ("--host-memory", "16GiB")),
    "an option of plan": (("launch", "t.yaml", "--gpu", "a10"), ("--gpu", "oomguard plan")),
    "a setting": (("launch", "t.yaml", "--batch-size", "4"), ("--batch-size", "after --")),
    "no dashes": (("plan", "llamafactory-cli", "train", "t.yaml"), ("-- COMMAND",)),
    "not a number": (("plan", "t.yaml", "--gpus", "two"), ("--gpus", "whole number")),
    "two GPUs": (("plan", "train.yaml", "--gpu", "a10", "--gpu-memory", "24GiB"), ("not both",)),
    "no GPU": (("plan", "--ci", "train.yaml"), ("--ci is about one GPU", "--gpu NAME")),
    "classic and more": (
        ("launch", "--ladder", "classic,enable_qlora", "train.yaml"),
        ("--ladder", "classic alone"),
    ),
    "no size": (("launch", "--host-memory", "-3GiB", "train.yaml"), ("--host-memory",)),
    "too small a size": (
        ("launch", "--host-memory", "16MiB", "train.yaml"),
        ("key '--host-memory'", "16.00 MiB", "64.00 MiB"),
    ),
    "a cost": (("launch", "--allow", "anything", "train.yaml"), ("--allow", "same_math")),
    "no attempt": (("launch", "--max-attempts", "0", "train.yaml"), ("--max-attempts",)),
    "a framework": (("launch", "--framework", "torchtun", "train.yaml"), ("torchtun",)),
    "a python": (("launch", "--python", "no/python", "train.yaml"), ("no/python", "--python")),
    "strategies": (
        ("launch", "--strategies", "none", "train.yaml"),
        ("none", "does not exist"),
    ),
    "a cap by nothing": (
        ("launch", "--host-memory-by", "cgroup", "train.yaml"),
        ("--host-memory-by", "Add --host-memory SIZE"),
    ),
    "a subcommand": (("lunch", "train.yaml"), ("'lunch'", "'launch'?")),
    "a log": (("explain", "log.txt"), ("log.txt", "cannot be read")),
    "a ladder": (("ladder", "--ladder", "nope"), ("'nope'", "oomguard ladder")),
}


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_on_the_command_line(refused, name):
    words, told = CASES[name]
    message = refused(*words)
    assert [word for word in told if word not in message] == [], message


FILES = {
    "no YAML": ("a: 1\nb: [1\nc: 2\n", "train.yaml:"),
    "a tab": ("a: 1\n\tb: 2\n", "train.yaml:2"),
    "a key twice": ("a: 1\na: 2\n", "train.yaml:2"),
    "no mapping": ("- 1\n- 2\n", "train.yaml"),
    "empty": ("", "train.yaml"),
    "no text": (b"\xff\xfe\x00", "train.yaml:1"),
    "a python object": ("a: !!python/object/apply:os.system ['touch started']\n", "train.yaml:1"),
    "an option": (f"{FLAGS}oomguard:\n  laddr: classic\n", "train.yaml:4, key 'oomguard.laddr'"),
    "a type": (
        f"{FLAGS}oomguard:\n  max_attempts: many\n",
        "train.yaml:4, key 'oomguard.max_attempts'",
    ),
    "a size": (f"{FLAGS}oomguard: {{host_memory: much}}\n", "key 'oomguard.host_memory'"),
    "too small a size": (
        f"{FLAGS}oomguard:\n  command: [{sys.executable}, job.py]\n  host_memory: 16MiB\n",
        "train.yaml, key 'oomguard.host_memory'",
    ),
    "a block that is none": (f"{FLAGS}oomguard: yes please\n", "train.yaml:3, key 'oomguard'"),
    "a batch": (GOOD.replace("16", "sixteen"), "key 'per_device_train_batch_size'"),
    "no batch": (GOOD.replace("16", "0"), "key 'per_device_train_batch_size'"),
    "no command": (FLAGS, "command: [python, train.py]"),
    "no framework": ("a: 1\n", "train.yaml"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_mistake_in_the_file(refused, folder, name):
    text, told = FILES[name]
    (folder / "train.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    message = refused("launch", "train.yaml")
    assert told in message
    assert message.startswith((str(folder), "train.yaml"))


LITGPT = (sys.executable, "-m", "litgpt", "finetune_lora", "--config", "lit.yaml")
LITGPT_YAML = "checkpoint_dir: c\nout_dir: out\ntrain: {micro_batch_size: 4}\n"


def test_checkpoints_that_nothing_can_resume_from_are_not_asked_for(refused, folder):
    (folder / "lit.yaml").write_text(LITGPT_YAML)
    message = refused("launch", "--checkpoint-every", "5", "--", *LITGPT)
    assert "key '--checkpoint-every': it would have no effect: LitGPT saves only weights" in message


@pytest.mark.parametrize(
    ("command", "way_out"),
    [
        ((*COMMAND, "--output_dir", "out", "--save_strategy", "no"),
         "; use --checkpoint-every STEPS"),
        ((*COMMAND, "--output_dir", "out"), None),
        (LITGPT, ": LitGPT saves only weights here and cannot resume"),
    ],
)  # fmt: skip
def test_saving_is_offered_only_where_it_helps(folder, capfd, command, way_out):
    (folder / "lit.yaml").write_text(LITGPT_YAML)
    main(["launch", "--no-predict", "--", *command])
    warning = "warning: this job saves no checkpoints, so a late OOM loses all progress"
    said = [line.partition(warning)[2] for line in capfd.readouterr().err.splitlines()
            if warning in line]  # fmt: skip
    assert said == ([way_out] if way_out else [])


def test_a_framework_that_is_not_installed(refused, folder):
    (folder / "train.yaml").write_text(
        "model_name_or_path: model\nstage: sft\ndo_train: true\nfinetuning_type: lora\n"
        f"dataset: tiny\n{FLAGS}"
    )
    message = refused("launch", "train.yaml", "--python", sys.executable)
    assert "'llamafactory-cli' is not installed" in message
    assert "--python" in message


def test_a_folder_that_holds_a_run_already(refused, folder):
    assert main(("launch", "--name", "r", "--", *COMMAND)) == 0
    (folder / "started").unlink()
    run = folder / "oomguard-runs" / "r"
    shutil.rmtree(run / "attempts")
    kept = (run / "fit-report.json").read_bytes()
    message = refused("launch", "--name", "r", "--", *COMMAND)
    assert (run / "fit-report.json").read_bytes() == kept
    assert str(run) in message
    assert "choose another --name" in message


def test_a_folder_in_which_another_oomguard_is_at_work(refused, folder):
    run = folder / "oomguard-runs" / "r"
    run.mkdir(parents=True)
    with FileLock(run / ".lock"):
        message = refused("launch", "--name", "r", "train.yaml")
    assert "locked by another oomguard" in message
    assert str(run) in message


def test_a_place_where_nothing_can_be_written(refused, folder):
    (folder / "file").touch()
    message = refused("launch", "--name", "r", "--runs", "file", "train.yaml")
    assert "cannot write to the run folder" in message
    assert "--runs DIR" in message


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", "..", "."])
def test_a_name_is_no_path(refused, name):
    assert "--name" in refused("launch", "--name", name, "train.yaml")


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("no file system may be mounted here")
    yield place
    subprocess.run(["umount", place], check=True)


def test_no_room_on_the_disk(refused, small_disk):
    message = refused("launch", "--name", "r", "--runs", str(small_disk), "train.yaml")
    assert "only 1.00 MiB free on disk," in message
    assert "--runs DIR" in message


def test_the_files_are_not_touched_by_a_user_who_may_not_write_them(folder, refused):
    if os.geteuid() == 0:
        pytest.skip("root may write everything")
    folder.chmod(0o500)
    try:
        assert "cannot write to the run folder" in refused("launch", "train.yaml")
    finally:
        folder.chmod(0o700)


def test_a_home_folder_that_is_not_known_is_no_fault(refused):
    model = ("--model_name_or_path", "~nobody-of-that-name/model")
    message = refused("plan", "--gpu", "3090", "--", *COMMAND, *model)
    assert "unknown model '~nobody-of-that-name/model'" in message


def test_a_working_directory_that_was_deleted_is_named(folder, monkeypatch, refused):
    (folder / "gone").mkdir()
    monkeypatch.chdir(folder / "gone")
    (folder / "gone").rmdir()
    assert refused("launch", "--", *COMMAND).startswith("the working directory was deleted")


def test_a_fault_of_ones_own_that_cannot_be_written_is_still_reported(monkeypatch, capsys):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    def broken(*_: object, **__: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr("oomguard.cli.main.tempfile.NamedTemporaryFile", full)
    monkeypatch.setattr("oomguard.cli.main.cli.main", broken)
    assert main(["ladder"]) == 4
    said = capsys.readouterr().err
    assert said.startswith("oomguard: internal error in oomguard: KeyError: 'x'")
    assert "its traceback could not be written: No space left on device." in said

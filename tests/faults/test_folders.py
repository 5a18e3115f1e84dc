"""Run folders that are moved, deleted, linked, read-only, or of another version."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from faults.cells import Cell, scenarios
from oomguard.cli.main import main
from shell.launches import wait_until

OOM_AT_5 = {"OOM_ABOVE": "4", "OOM_AT": "5"}
JOB = (
    "launch",
    "--no-predict",
    "--",
    sys.executable,
    "job.py",
    "--per_device_train_batch_size",
    "4",
)


def moved(cell: Cell) -> Path:
    """Move the run folder while the job waits, until that is reported; give its new place."""
    cell.wait_held()
    there = cell.folder / "elsewhere"
    cell.run.rename(there)
    wait_until(lambda: "was moved to" in cell.said)
    (cell.folder / "go").touch()
    return there


def a_folder_that_is_moved_is_followed(cell):
    cell.env = {"HOLD_AT": "4", **OOM_AT_5}
    with cell.launched():
        there = moved(cell)
    assert cell.codes == [0], cell.said
    assert f"the run folder {cell.run} was moved to {there}" in cell.said
    assert not cell.run.exists()
    assert (there / "attempts" / "002" / "log.txt").exists()
    assert (there / "final" / "command.txt").exists()
    assert '"finished"' in (there / "events.jsonl").read_text().splitlines()[-1]
    assert cell.is_trained()


def another_folder_in_its_place_is_left_alone(cell):
    cell.env = {"HOLD_AT": "4", **OOM_AT_5}
    with cell.launched():
        cell.wait_held()
        cell.run.rename(cell.folder / "elsewhere")
        cell.run.mkdir()
        (cell.run / "events.jsonl").write_text("mine\n")
        (cell.run / "final").mkdir()
        wait_until(lambda: "was moved to" in cell.said)
        (cell.folder / "go").touch()
    assert cell.codes == [0], cell.said
    assert sorted(path.name for path in cell.run.rglob("*")) == ["events.jsonl", "final"]
    assert (cell.run / "events.jsonl").read_text() == "mine\n"


def a_folder_that_is_deleted_is_reported_at_once_and_not_made_again(cell):
    cell.env = {"HOLD_AT": "4"}
    with cell.launched():
        cell.wait_held()
        shutil.rmtree(cell.run)
        wait_until(lambda: "was deleted: the job goes on" in cell.said)
        (cell.folder / "go").touch()
    assert cell.codes == [0], cell.said
    assert cell.is_trained()
    assert not cell.run.exists()
    assert "the final config could not be written: the run folder was deleted" in cell.said
    assert cell.left() == []


def a_deleted_folder_ends_a_run_that_would_need_another_attempt(cell):
    cell.env = {"HOLD_AT": "4", **OOM_AT_5}
    with cell.launched():
        cell.wait_held()
        shutil.rmtree(cell.run)
        (cell.folder / "go").touch()
    assert cell.codes == [2], cell.said
    assert "the run folder was deleted" in cell.said
    assert "internal error" not in cell.said
    assert not cell.run.exists()
    assert cell.left() == []


def a_run_of_a_newer_version_is_refused_and_not_cut(cell):
    cell.launch(at="started", do="kill")
    events = cell.run / "events.jsonl"
    newer = events.read_bytes() + b'{"event":"quantum_leap","t":3.0,"attempt":1}\n'
    events.write_bytes(newer)
    assert cell.resume() == 2
    assert "another version of oomguard has written this run" in cell.said
    assert events.read_bytes() == newer


def a_log_that_is_a_link_is_not_written_through(cell):
    cell.launch(at="started", do="kill")
    secret = cell.folder / "secret"
    secret.write_text("mine")
    (cell.run / ".reserve").unlink()
    (cell.run / ".reserve").symlink_to(secret)
    assert cell.resume() == 2, cell.said
    assert secret.read_text() == "mine"
    assert "internal error" not in cell.said


SCENARIOS = (
    a_folder_that_is_moved_is_followed,
    another_folder_in_its_place_is_left_alone,
    a_folder_that_is_deleted_is_reported_at_once_and_not_made_again,
    a_deleted_folder_ends_a_run_that_would_need_another_attempt,
    a_run_of_a_newer_version_is_refused_and_not_cut,
    a_log_that_is_a_link_is_not_written_through,
)
played, test_folders = scenarios(*SCENARIOS)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    (tmp_path / "job.py").write_text("open('started', 'w').close()")
    (tmp_path / "target").mkdir()
    return tmp_path


@pytest.mark.parametrize("option", ["--runs", "--name"])
@pytest.mark.parametrize("target", ["target", "nowhere"])
def test_a_link_given_for_a_folder_is_not_followed(folder, capsys, option, target):
    if option == "--name":
        (folder / "oomguard-runs").mkdir()
    link = folder / "oomguard-runs" / "link" if option == "--name" else folder / "link"
    link.symlink_to(folder / target)
    assert main([JOB[0], option, "link", *JOB[1:]]) == 2
    said = capsys.readouterr().err
    assert "it is a symbolic link, which is not followed" in said
    assert f"Name the folder itself: {folder / target}." in said
    assert not (folder / "started").exists()
    assert list((folder / "target").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="another user is needed")
def test_a_run_folder_that_is_read_only_for_an_unprivileged_user_is_refused(open_folder):
    runs = open_folder / "runs"
    runs.mkdir(mode=0o555)
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom oomguard.run.folder import RunFolder\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: RunFolder.create(Path(sys.argv[1]), 'run')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(runs)], capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("RunFolderError"), done.stderr
    assert "cannot write to the run folder: Permission denied" in done.stdout
    assert "--runs DIR" in done.stdout
    assert list(runs.iterdir()) == []

from __future__ import annotations

import os
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import pytest

from generators import make_job, make_ladder
from oomguard.errors import RunFolderError
from oomguard.machine.atomic_write import write_text
from oomguard.run.event_log import parse_history
from oomguard.run.events import Limits, RunStarted, Signalled
from oomguard.run.folder import RunFolder, write_json
from oomguard.run.state import replay

LIMITS = Limits(ladder=("halve_micro_batch",), allow=make_ladder().allow, max_attempts=20)
STARTED = RunStarted(
    t=0.0, run="run", version="0", at="2026-01-01T00:00:00Z", job=make_job(), limits=LIMITS
)


def test_a_run_folder_is_its_owners_alone(tmp_path):
    folder = RunFolder.create(tmp_path / "runs", "a b'c")
    assert folder.path.stat().st_mode & 0o777 == 0o700
    assert folder.attempt(3).name == "003"
    folder.close()


def test_events_are_read_back_and_a_line_cut_off_is_left_out(tmp_path):
    folder = RunFolder.create(tmp_path, "run")
    for event in (STARTED, Signalled(t=1.0, signum=2), Signalled(t=2.0, signum=15)):
        folder.append(event)
    folder.close()
    path = folder.path / "events.jsonl"
    path.write_bytes(path.read_bytes()[:-7])

    events = list(parse_history(BytesIO(path.read_bytes()), str(path)).events)
    assert events == [STARTED, Signalled(t=1.0, signum=2)]
    assert replay(events).signum == 2


def test_a_folder_with_a_run_in_it_is_left_alone(tmp_path):
    folder = RunFolder.create(tmp_path, "run")
    folder.append(Signalled(t=1.0, signum=2))
    folder.close()
    before = (folder.path / "events.jsonl").read_bytes()
    with pytest.raises(RunFolderError, match="already holds a run"):
        RunFolder.create(tmp_path, "run")
    assert (folder.path / "events.jsonl").read_bytes() == before


def test_two_supervisors_never_hold_one_folder(tmp_path):
    folder = RunFolder.create(tmp_path, "run")
    code = "import sys; from pathlib import Path; from oomguard.run.folder import RunFolder\n"
    code += "RunFolder.create(Path(sys.argv[1]), 'run')"
    other = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    folder.close()
    assert other.returncode == 1
    assert "locked by another oomguard" in other.stderr


def test_a_place_that_cannot_be_written_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError) as caught:
        RunFolder.create(tmp_path / "file", "run")
    assert str(tmp_path / "file") in str(caught.value)
    assert "--runs" in str(caught.value)


def test_a_disk_without_room_is_an_error_before_anything_starts(tmp_path):
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("a small file system can be mounted by root alone")
    try:
        with pytest.raises(RunFolderError, match="free on disk"):
            RunFolder.create(tmp_path, "run")
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_disk_that_fills_up_is_noted_and_the_run_goes_on(tmp_path):
    folder = RunFolder.create(tmp_path, "run")
    own, folder._events = folder._events, os.open("/dev/full", os.O_WRONLY)
    folder.append(STARTED)
    assert isinstance(folder.lost, OSError)
    os.close(folder._events)
    folder._events = own
    folder.append(Signalled(t=1.0, signum=2))
    assert folder.lost is None
    folder.close()
    events = parse_history(BytesIO((folder.path / "events.jsonl").read_bytes()), "events").events
    assert events == (STARTED, Signalled(t=1.0, signum=2))


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "report.json"
    write_json(path, {"a": 1})
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert [p.name for p in Path(tmp_path).iterdir()] == ["report.json"]

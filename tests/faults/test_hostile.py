"""Hostile surroundings: disks, folders, names, logs, clocks, limits, and others at work there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from faults.cells import Cell, scenarios
from oomguard.cli.main import main
from oomguard.machine.cgroups import Cgroup
from oomguard.run.events import Started
from oomguard.run.folder import ROOM_BYTES
from shell.launches import wait_until
from shell.process_attempts import cgroup_can_be_made

FLAGS = ("--per_device_train_batch_size", "8")
OOM_AT_5 = {"OOM_ABOVE": "4", "OOM_AT": "5"}


def script(cell: Cell, code: str) -> tuple[str, ...]:
    (cell.folder / "job.py").write_text("import os, sys, time\n" + code)
    return (sys.executable, str(cell.folder / "job.py"), *FLAGS)


def paths_with_spaces_quotes_and_unicode(cell):
    cell.folder = cell.folder / 'it\'s a "run" é 数 $HOME `x`'
    cell.folder.mkdir()
    cell.env = OOM_AT_5
    assert cell.launch("--runs", "my runs") == 0, cell.said
    command = (cell.folder / "my runs" / cell.name / "final" / "command.txt").read_text()
    shutil.rmtree(cell.folder / "out")
    (line,) = (one for one in command.splitlines() if not one.startswith("#"))
    subprocess.run(["sh", "-c", line], check=True, capture_output=True, env=os.environ)
    assert cell.is_trained()


def a_hundred_megabytes_without_a_newline(cell):
    noise = "data = os.urandom(1 << 20).replace(b'\\n', b'')\n"
    job = script(cell, noise + "for _ in range(100): sys.stdout.buffer.write(data)")
    assert cell.launch(job=job) == 0
    assert (cell.run / "attempts" / "001" / "log.txt").stat().st_size > 99 << 20
    assert cell.report["status"] == "fit"


def a_hundred_megabytes_of_lines(cell):
    job = script(cell, "for n in range(100): sys.stdout.write('step of nothing much\\n' * 50000)")
    assert cell.launch(job=job) == 0
    assert cell.kinds == ["ok"]


def the_log_is_deleted(cell):
    cell.env = {"HOLD_AT": "4", **OOM_AT_5}
    with cell.launched():
        cell.wait_held()
        (cell.run / "attempts" / "001" / "log.txt").unlink()
        (cell.folder / "go").touch()
    assert cell.codes == [0], cell.said
    assert cell.kinds == ["device_oom", "ok"]


def the_run_folder_vanishes_and_the_job_is_trained_all_the_same(cell):
    cell.env = {"HOLD_AT": "4"}
    with cell.launched():
        cell.wait_held()
        shutil.rmtree(cell.run)
        (cell.folder / "go").touch()
    assert cell.codes == [0], cell.said
    assert cell.is_trained()
    assert cell.left() == []


def the_run_folder_cannot_take_another_attempt(cell):
    cell.env = {"HOLD_AT": "4", **OOM_AT_5}
    attempts = cell.run / "attempts"
    with cell.launched():
        cell.wait_held()
        attempts.rename(cell.run / "aside")
        attempts.write_text("")
        (cell.folder / "go").touch()
    assert cell.codes == [2], cell.said
    assert "cannot write to the run folder" in cell.said
    assert "Traceback" not in cell.said
    assert cell.left() == []
    attempts.unlink()
    (cell.run / "aside").rename(attempts)
    assert cell.resume() == 0, cell.said
    assert cell.is_trained()


def the_output_folder_vanishes(cell):
    cell.env = {"HOLD_AT": "4"}
    with cell.launched():
        cell.wait_held()
        shutil.rmtree(cell.folder / "out")
        (cell.folder / "go").touch()
    assert cell.codes == [1]
    assert cell.kinds == ["not_oom"]
    assert "FileNotFoundError" in cell.report["reason"]


def a_read_only_output_folder_is_the_jobs_own_failure(cell):
    with mounted(cell.folder / "out", "ro"):
        assert cell.launch() == 1
    assert cell.kinds == ["not_oom"]
    assert "Read-only file system" in cell.report["reason"]


def a_read_only_place_for_runs_is_said_before_anything_is_started(cell):
    with mounted(cell.folder / "oomguard-runs", "ro"):
        assert cell.launch() == 2
    assert "Read-only file system" in cell.said
    assert "--runs DIR" in cell.said
    assert not (cell.folder / "out").exists()


def a_full_disk_is_the_jobs_own_failure_when_it_saves(cell):
    job = script(cell, "raise OSError(28, 'No space left on device', 'checkpoint-2/optimizer.pt')")
    assert cell.launch(job=job) == 1
    assert cell.kinds == ["not_oom"]
    assert "No space left on device" in cell.report["reason"]


def the_disk_of_the_run_folder_is_full_when_memory_runs_out(cell):
    cell.env = {"HOLD_AT": "4", **OOM_AT_5}
    with small_disk(cell) as ballast:
        with cell.launched():
            cell.wait_held()
            fill_up(ballast)
            (cell.folder / "go").touch()
        ballast.unlink()
        assert cell.codes[0] in (0, 2), cell.said
        assert "Traceback" not in cell.said
        assert cell.resume() == 0, cell.said
        assert cell.kinds.count("device_oom") == 1
        assert cell.is_trained()


def a_log_that_fills_the_disk_ends_early_and_the_job_goes_on(cell):
    code = (
        "open('held', 'w').close()\nwhile not os.path.exists('go'): time.sleep(0.01)\n"
        "for n in range(100): print('x' * 100000)"
    )
    with small_disk(cell) as ballast:
        with cell.launched(job=script(cell, code)):
            cell.wait_held()
            fill_up(ballast)
            (cell.folder / "go").touch()
        assert cell.codes == [0], cell.said
        assert "its log ends early: No space left on device" in cell.said
        assert cell.report["attempts"][0]["log_error"] == "No space left on device"
        assert cell.said.count("x" * 100000) == 100


@contextmanager
def small_disk(cell: Cell) -> Iterator[Path]:
    """Have the run folders on a disk with little more room than they need; give a file on it."""
    with mounted(cell.folder / "oomguard-runs", f"size={ROOM_BYTES + (8 << 20)}") as runs:
        yield runs / "ballast"


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    mount = ("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder))
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no file system may be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill_up(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(b"\0" * 65536):
            pass


def the_clock_is_set_back(cell):
    cell.env = {"CLOCK_BACK": "1", **OOM_AT_5}
    assert cell.launch() == 0, cell.said
    times = [event.t for event in cell.events]
    assert times == sorted(times)
    assert all(0 <= attempt.seconds < 60 for attempt in cell.record.attempts)


#: Writes a whole checkpoint whose files run a command when they are unpickled, then runs out.
MALICIOUS = """
import json, pickle, zipfile
class Evil:
    def __reduce__(self): return os.system, (f"touch {os.getcwd()}/unpickled",)
if sys.argv[2] != '8': sys.exit()
os.makedirs('out/checkpoint-2')
with open('out/checkpoint-2/pytorch_model.bin', 'wb') as bare: pickle.dump(Evil(), bare)
for name in ('optimizer.pt', 'scheduler.pt', 'rng_state.pth', 'training_args.bin'):
    with zipfile.ZipFile(f'out/checkpoint-2/{name}', 'w') as archive:
        archive.writestr('archive/data.pkl', pickle.dumps(Evil()))
with open('out/checkpoint-2/trainer_state.json', 'w') as state: json.dump({'global_step': 2}, state)
print("{'loss': 1.0, 'step': 2}")
sys.exit('torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.')
"""


def a_checkpoint_of_malicious_pickles_is_resumed_from_and_never_opened(cell):
    job = (*script(cell, MALICIOUS), "--output_dir", "out")
    assert cell.launch("--ladder", "halve_micro_batch", job=job) == 0, cell.said
    assert cell.kinds == ["device_oom", "ok"]
    begins = cell.record.last.spec.begins
    assert begins is not None
    assert begins.checkpoint is not None
    assert begins.checkpoint.step == 2
    assert main(["explain", str(cell.folder / "out")]) == 0
    assert main(["report", str(cell.run)]) == 0
    assert not (cell.folder / "unpickled").exists()


def a_port_in_use_is_the_jobs_own_failure(cell):
    code = (
        "import socket\nfirst, second = socket.socket(), socket.socket()\n"
        "first.bind(('127.0.0.1', 0)); first.listen()\nsecond.bind(first.getsockname())"
    )
    assert cell.launch(job=script(cell, code)) == 1
    assert cell.kinds == ["not_oom"]
    assert "Address already in use" in cell.report["reason"]


def the_limit_is_lowered_under_the_job(cell):
    if not cgroup_can_be_made():
        pytest.skip("no memory cgroup may be made here")
    code = (
        "if sys.argv[2] != '8': sys.exit()\nopen('held', 'w').close()\n"
        "while not os.path.exists('go'): time.sleep(0.01)\nx = bytearray(100 << 20)"
    )
    caps = ("--host-memory", "512MiB", "--host-memory-by", "cgroup")
    with cell.launched(*caps, job=script(cell, code)):
        cell.wait_held()  # the job may get here before oomguard has recorded its start
        wait_until(lambda: any(isinstance(event, Started) for event in cell.events))
        folder = next(Path(event.cgroup) for event in cell.events if isinstance(event, Started))
        version = 1 if (folder / "memory.oom_control").exists() else 2
        lower(Cgroup(folder=folder, version=version), 48 << 20)
        (cell.folder / "go").touch()
    assert cell.codes == [0], cell.said
    assert cell.kinds == ["host_oom", "ok"]


def lower(group: Cgroup, size_bytes: int) -> None:
    """Lower the limit; with swap accounted for, version 1 wants the inner one first."""
    name = "memory.limit_in_bytes" if group.version == 1 else "memory.max"
    (group.folder / name).write_text(str(size_bytes))


def zombies_and_children_of_children(cell):
    cell.env = {"IDLE_S": "1"}
    code = (
        "for _ in range(20):\n    if os.fork() == 0: os._exit(0)\n"
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(600)\n"
        "    os._exit(0)\nprint('trained')"
    )
    assert cell.launch(job=script(cell, code)) == 0
    assert cell.left() == []


def another_sitecustomize_still_runs(cell):
    (cell.folder / "mine").mkdir()
    (cell.folder / "mine" / "sitecustomize.py").write_text("import sys; sys.mine = 7")
    (cell.folder / "mine" / "helper.py").write_text("")
    others = [path for path in [os.environ.get("PYTHONPATH")] if path]
    cell.env = {"PYTHONPATH": os.pathsep.join([str(cell.folder / "mine"), *others])}
    job = script(cell, "import helper\nassert sys.mine == 7\nprint('trained')")
    assert cell.launch(job=job) == 0, cell.said


def a_fault_inside_leaves_the_job_alone(cell):
    # What it hooks does not do what its name says.
    torch = "__version__ = '9'\nclass Optimizer:\n    pass\ndef __getattr__(name):\n"
    torch += "    raise AttributeError(name) if name in EARLY else RuntimeError(name)\n"
    torch += "EARLY = ('compiler', '_utils', '_dynamo', 'cuda', '__path__', '__spec__')\n"
    (cell.folder / "torch.py").write_text(torch)
    job = script(cell, "import torch\nprint('trained')")
    assert cell.launch(job=job) == 0, cell.said
    told = (cell.run / "attempts" / "001" / "memory.jsonl").read_text().splitlines()
    assert "fault" in [json.loads(line)["type"] for line in told]
    assert cell.kinds == ["ok"]


def the_socket_is_taken_away(cell):
    cell.env = {"HOLD_AT": "4", **OOM_AT_5}
    with cell.launched():
        cell.wait_held()
        (pid,) = cell.left()
        environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        (where,) = (x.partition(b"=")[2] for x in environ if x.startswith(b"OOMGUARD_SOCKET="))
        shutil.rmtree(Path(os.fsdecode(where)).parent)
        (cell.folder / "go").touch()
    assert cell.codes == [0], cell.said
    assert cell.kinds == ["device_oom", "ok"]


def a_record_that_is_empty_or_no_record(cell):
    cell.launch(at="started", do="kill")
    events = cell.run / "events.jsonl"
    whole = events.read_bytes()
    first = whole.splitlines(keepends=True)[0]
    for data in (b"", b"\0" * 4096, b"{}\n", first + first, b"nonsense\n" + whole, first[:-1]):
        events.write_bytes(data)
        assert cell.resume() == 2
    assert cell.said.count("events.jsonl is damaged") == 6
    assert "Traceback" not in cell.said
    assert "internal error in oomguard" not in cell.said
    events.write_bytes(whole + b"\0\0\0\n\xff{\n")
    assert cell.resume() == 0, cell.said
    assert "6 bytes of an incomplete event were dropped" not in cell.said
    assert cell.is_trained()


def hangup_is_ignored_as_nohup_asks(cell):
    cell.env = {"HOLD_AT": "4", "NOHUP": "1"}
    with cell.launched() as pid:
        cell.wait_held()
        os.kill(pid, signal.SIGHUP)
        (cell.folder / "go").touch()
    assert cell.codes == [0], cell.said


SCENARIOS = (
    paths_with_spaces_quotes_and_unicode,
    a_hundred_megabytes_without_a_newline,
    a_hundred_megabytes_of_lines,
    the_log_is_deleted,
    the_run_folder_vanishes_and_the_job_is_trained_all_the_same,
    the_run_folder_cannot_take_another_attempt,
    the_output_folder_vanishes,
    a_read_only_output_folder_is_the_jobs_own_failure,
    a_read_only_place_for_runs_is_said_before_anything_is_started,
    a_full_disk_is_the_jobs_own_failure_when_it_saves,
    the_disk_of_the_run_folder_is_full_when_memory_runs_out,
    a_log_that_fills_the_disk_ends_early_and_the_job_goes_on,
    the_clock_is_set_back,
    a_checkpoint_of_malicious_pickles_is_resumed_from_and_never_opened,
    a_port_in_use_is_the_jobs_own_failure,
    the_limit_is_lowered_under_the_job,
    zombies_and_children_of_children,
    another_sitecustomize_still_runs,
    a_fault_inside_leaves_the_job_alone,
    the_socket_is_taken_away,
    a_record_that_is_empty_or_no_record,
    hangup_is_ignored_as_nohup_asks,
)
played, test_hostile = scenarios(*SCENARIOS)

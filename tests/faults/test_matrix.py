"""Every fault at every phase of every kind of job: nobody is left, and the job ends trained."""

from __future__ import annotations

import itertools
import json
import os
import signal
from pathlib import Path

import jsonschema
import pytest

import oomguard
from faults.cells import Cell, all_at_once
from oomguard.process.report_server import SOCKET_FILE

SCHEMA = json.loads(Path(oomguard.__file__).with_name("fit-report.schema.json").read_text())
JOBS = {"plain": {}, "ranks": {"RANKS": "2"}, "daemon": {"DAEMON": "1"}}
#: A phase: the event at which the fault happens, or None while the job holds, and the job's part.
PHASES = {
    "launch": ("planned", {}),
    "load": (None, {"HOLD_AT": "1"}),
    "running": (None, {"HOLD_AT": "5"}),
    "stopping": ("stopping", {"OOM_ABOVE": "4", "OOM_AT": "5", "OOM_HANGS": "1"}),
    "waiting": ("exited", {"OOM_ABOVE": "4", "OOM_AT": "5"}),
}
FAULTS = ("kill", "kill-all", "cut-record", "term", "usr1")
CELLS = list(itertools.product(FAULTS, PHASES, JOBS))
SIGNALS = {"term": "SIGTERM", "usr1": "SIGUSR1"}


def act(cell: Cell, fault: str, phase: str, kind: str) -> dict:
    """Make the fault happen, resume the run twice, and return what was seen on the way."""
    at, env = PHASES[phase]
    cell.env = {**JOBS[kind], **env}
    do = SIGNALS.get(fault, "kill")
    with cell.launched(at=at or "", do="" if at is None else do) as pid:
        if at is None:
            cell.wait_held()
            if fault == "kill-all":
                cell.kill_with_guard()
            else:
                os.kill(pid, signal.SIGKILL if do == "kill" else getattr(signal, do))
    if fault == "cut-record":
        cut_record(cell.run / "events.jsonl")
    seen = {"after": cell.record.status, "left": cell.left() if do != "kill" else []}
    sockets = [Path(note.read_text()) for note in cell.run.glob(f"attempts/*/{SOCKET_FILE}")]
    cell.resume()
    seen["sockets"] = {path: path.parent.exists() for path in sockets}
    seen["kinds"], seen["ledger"] = cell.kinds, cell.ledger()
    seen["report"], seen["left"] = cell.report, seen["left"] + cell.left()
    cell.resume()
    return seen


def cut_record(events: Path) -> None:
    """Leave the last event incomplete, as a crash in the middle of a write does."""
    lines = events.read_bytes().splitlines(keepends=True)
    events.write_bytes(b"".join(lines) + b'{"event":"progress","t":1.2,"att\x00\x00')


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    work = {}
    for key in CELLS:
        folder = tmp_path_factory.mktemp("-".join(key))
        work[key] = Cell(folder=folder, zygote=None)  # type: ignore[arg-type]

    def make(key):
        def run(zygote):
            work[key].zygote = zygote
            return act(work[key], *key)

        return run

    seen = all_at_once([(key, make(key)) for key in CELLS])
    return {key: (work[key], seen[key]) for key in CELLS}


@pytest.mark.parametrize(("fault", "phase", "kind"), CELLS)
def test_nobody_is_left_and_the_job_ends_trained(cells, fault, phase, kind):
    cell, seen = cells[fault, phase, kind]
    if isinstance(seen, BaseException):
        raise seen
    first, resumed, again = cell.codes
    assert first == (130 if fault in SIGNALS else -signal.SIGKILL), cell.said
    assert (seen["after"] is None) == (fault not in SIGNALS)
    assert (resumed, again) == (0, 0), cell.said
    assert seen["left"] == cell.left() == []
    runs = phase in ("load", "running", "stopping")
    assert list(seen["sockets"].values()) == [False] * (runs and fault not in SIGNALS)

    ends_before = ["device_oom"] if phase in ("stopping", "waiting") else ["interrupted"]
    never = phase == "launch" and fault in SIGNALS  # it was started before the signal was seen
    assert seen["kinds"] == [*ends_before, "ok"] or never, cell.said
    assert [a["number"] for a in seen["report"]["attempts"]] == [1, 2]
    jsonschema.validate(seen["report"], SCHEMA)
    assert seen["report"]["status"] == cell.record.status == "fit"

    assert cell.is_trained()
    steps = [row["step"] for row in seen["ledger"]]
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8]
    assert {row["batch"] for row in seen["ledger"]} == {8}
    assert cell.ledger() == seen["ledger"], "a finished training was repeated"

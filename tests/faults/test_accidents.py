"""Accidents around a run that are no fault of its job: a full disk, a port, a broken index."""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from faults.cells import JOB, Cell, scenarios
from oomguard.predict.history import FitIndex


def script(cell: Cell, code: str) -> tuple[str, ...]:
    (cell.folder / "job.py").write_text("import os, signal, sys, time\n" + code)
    return (sys.executable, str(cell.folder / "job.py"), "--per_device_train_batch_size", "8")


def who_does_not_listen_is_not_waited_for_after_ctrl_c(cell):
    cell.env = {"LEFTOVERS_S": "3600", "IDLE_S": "1"}
    job = script(
        cell,
        "ready, told = os.pipe()\n"
        "if os.fork():\n    sys.exit(0 if os.read(ready, 1) else 1)\n"
        "os.setsid()\nsignal.signal(signal.SIGTERM, lambda *_: open('held', 'w').close())\n"
        "os.write(told, b'.')\nwhile True: time.sleep(3600)\n",
    )
    with cell.launched(job=job) as pid:
        cell.wait_held()  # asked to end, and given an hour
        os.kill(pid, signal.SIGINT)
    assert cell.codes == [0], cell.said
    assert cell.left() == []


def index(cell: Cell) -> Path:
    return cell.folder / "fits.sqlite"


def launch(cell: Cell, *options: str, at: str = "", do: str = "") -> None:
    """Launch a job for which the history database is asked: there is a GPU for it."""
    cell.env["GPU"] = "1"
    job = (*JOB, "--model_name_or_path", "me/unheard-of")
    cell.launch("--fits", str(index(cell)), *options, job=job, at=at, do=do)


def garbage(path: Path) -> None:
    path.write_bytes(b"\0\xff{]" * 2048)


def another_database(path: Path) -> None:
    base = sqlite3.connect(path)
    base.executescript(
        "DROP TABLE IF EXISTS fits; DROP TABLE IF EXISTS measured;"
        "CREATE TABLE fits (x); CREATE TABLE measured (device, versions, framework)"
    )
    base.close()


def cut(path: Path) -> None:
    FitIndex(path).remember("another job", ("x" * 200_000,))
    base = sqlite3.connect(path)
    base.execute("PRAGMA journal_mode=DELETE")
    base.close()
    os.truncate(path, 6000)


def of_another_version(path: Path) -> None:
    base = sqlite3.connect(path)
    base.execute("PRAGMA user_version=99")
    base.close()


def a_folder(path: Path) -> None:
    path.mkdir()


BROKEN = (garbage, another_database, cut, of_another_version, a_folder)


def broken(how: Callable[[Path], None]) -> Callable[[Cell], None]:
    def an_index(cell: Cell) -> None:
        how(index(cell))
        launch(cell, at="started", do="kill")
        assert cell.resume() == 0, cell.said
        assert cell.said.count(f"the history database {index(cell)} is not used") == 2
        assert "Traceback" not in cell.said
        assert cell.is_trained()

    an_index.__name__ = f"an_index_of_fits_that_is_{how.__name__}_stops_neither_launch_nor_resume"
    return an_index


def an_index_of_fits_that_another_holds_stops_neither_launch_nor_resume(cell):
    FitIndex(index(cell)).remember("before", ())
    holder = sqlite3.connect(index(cell), isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN EXCLUSIVE")
    launch(cell, at="started", do="kill")
    assert cell.resume() == 0, cell.said
    assert cell.said.count("is not used: database is locked") == 2
    holder.execute("ROLLBACK")
    holder.close()
    assert FitIndex(index(cell)).recall("before") == ()


def an_entry_of_the_index_that_is_cut_is_passed_over_and_written_again(cell):
    launch(cell)
    with closing(sqlite3.connect(index(cell))) as base, base:
        base.execute("""UPDATE fits SET path = '["halve_mi'""")
    launch(cell, "--runs", "again")
    assert cell.codes == [0, 0], cell.said
    assert "an entry of the history database" in cell.said
    launch(cell, "--runs", "once more")
    assert "starting with the requested config, which fit before" in cell.said


def a_resumed_run_teaches_the_index_of_fits(cell):
    cell.env = {"OOM_ABOVE": "4", "OOM_AT": "5"}
    launch(cell, at="exited", do="kill")
    assert cell.resume() == 0, cell.said
    launch(cell, "--runs", "again")
    assert "starting with expandable_segments, halve_micro_batch, which fit" in cell.said
    assert cell.codes[-1] == 0


SCENARIOS = (
    who_does_not_listen_is_not_waited_for_after_ctrl_c,
    *map(broken, BROKEN),
    an_index_of_fits_that_another_holds_stops_neither_launch_nor_resume,
    an_entry_of_the_index_that_is_cut_is_passed_over_and_written_again,
    a_resumed_run_teaches_the_index_of_fits,
)
played, test_accidents = scenarios(*SCENARIOS)

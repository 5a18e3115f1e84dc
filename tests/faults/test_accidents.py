"""Accidents around a run that are no fault of its job: a full disk, a port, a broken index."""

from __future__ import annotations

import os
import signal
import sys

from faults.cells import Cell, scenarios


def script(cell: Cell, code: str) -> tuple[str, ...]:
    (cell.folder / "job.py").write_text("import os, signal, sys, time\n" + code)
    return (sys.executable, str(cell.folder / "job.py"), "--per_device_train_batch_size", "8")


def who_does_not_listen_is_not_waited_for_after_ctrl_c(cell):
    cell.env = {"LEFTOVERS_S": "3600"}
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


SCENARIOS = (who_does_not_listen_is_not_waited_for_after_ctrl_c,)
played, test_accidents = scenarios(*SCENARIOS)

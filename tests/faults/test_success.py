"""A job that has trained counts as trained, and one that is still training is left alone."""

from __future__ import annotations

import os
import signal
import sys

from faults.cells import Cell, scenarios
from oomguard.run.attempt import StopReason
from oomguard.run.events import LeftRunning
from shell.launches import REPORT, TORCH_OOM

FLAGS = ("--per_device_train_batch_size", "4")
STEPS = "for n in range(3): print({'loss': 1.0, 'step': n + 1}, flush=True)\n"
SAVED = "open('finished', 'a').write('x')\n"


def script(cell: Cell, code: str) -> tuple[str, ...]:
    (cell.folder / "job.py").write_text("import os, subprocess, sys, time\n" + code)
    return (sys.executable, str(cell.folder / "job.py"), *FLAGS)


def is_trained_once(cell: Cell) -> None:
    assert cell.codes == [0], cell.said
    assert cell.kinds == ["ok"]
    assert (cell.folder / "finished").read_text() == "x"


def the_last_line_quotes_an_oom(cell):
    text = 'sample answer: "RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB"'
    cell.launch(job=script(cell, STEPS + f"print({text!r})\n" + SAVED))
    is_trained_once(cell)
    assert "note: it survived an OOM: sample answer" in cell.said


def a_destructor_raises_an_oom(cell):
    code = f"class X:\n    def __del__(self): raise {TORCH_OOM.partition(':')[0]}({TORCH_OOM!r})\n"
    cell.launch(job=script(cell, STEPS + SAVED + code + "x = X(); del x\n"))
    is_trained_once(cell)


def an_exit_handler_raises_an_oom(cell):
    code = f"import atexit\ndef late(): raise RuntimeError({TORCH_OOM!r})\natexit.register(late)\n"
    cell.launch(job=script(cell, code + STEPS + SAVED))
    is_trained_once(cell)


def a_traceback_of_an_oom_is_printed(cell):
    code = (
        f"try: raise RuntimeError({TORCH_OOM!r})\n"
        "except RuntimeError:\n    import traceback; traceback.print_exc()\n"
    )
    cell.launch(job=script(cell, STEPS + SAVED + code))
    is_trained_once(cell)


def an_oom_in_each_step_is_survived(cell):
    code = f"for n in range(3):\n    print('caught', {TORCH_OOM!r})\n    print('step', n)\n"
    cell.launch(job=script(cell, code + SAVED))
    is_trained_once(cell)
    assert "survived an OOM" in cell.said


#: Reports as the monitor would, of a process of its own: see docs/monitor-protocol.md.
OOM_REPORT = REPORT + (
    "def run_out():\n    report('oom', phase='load', exception='RuntimeError', "
    f"message={TORCH_OOM!r}, uncaught=True, frames=[], memory=None, shapes=None, device='cpu', "
    "requested_bytes=1 << 40, capacity_bytes=None)\n"
)
RAN_OUT = (
    "import os, sys, time\n"
    + OOM_REPORT
    + "report('hello', argv0='-c', python='3', torch='2', ppid=os.getppid())\nrun_out()\n"
    + f"sys.exit({TORCH_OOM!r})\n"
)
HELPER = f"failed = subprocess.run([sys.executable, '-c', {RAN_OUT!r}]).returncode\n"


def a_helper_runs_out_and_the_job_goes_on(cell):
    cell.launch(job=script(cell, HELPER + STEPS + SAVED))
    is_trained_once(cell)


def a_helper_runs_out_and_the_job_ends_for_it(cell):
    cell.launch("--max-attempts", "1", job=script(cell, HELPER + "sys.exit(failed)\n"))
    assert cell.codes == [3], cell.said
    assert cell.kinds == ["host_oom"]


def a_helper_runs_out_behind_an_exit_with_zero(cell):
    cell.launch("--max-attempts", "1", job=script(cell, HELPER))
    assert cell.codes == [3], cell.said


def a_job_that_prints_an_oom_and_never_exits_is_stopped(cell):
    # The last step was taken before the error, though its report comes after it.
    cell.env = {"PATIENCE_S": "1"}
    code = REPORT + (
        f"if sys.argv[2] == '2': sys.exit()\nbefore = time.monotonic()\nprint({TORCH_OOM!r})\n"
        "time.sleep(0.3)\nstep(2, t=before)\ntime.sleep(600)\n"
    )
    cell.launch("--ladder", "halve_micro_batch", job=script(cell, code))
    assert cell.codes == [0], cell.said
    assert [one.stopped for one in cell.record.attempts] == [StopReason.OUT_OF_MEMORY, None]


def a_job_without_the_monitor_that_prints_an_oom_and_never_exits_is_stopped(cell):
    cell.env = {"PATIENCE_S": "1"}
    code = f"if sys.argv[2] == '2': sys.exit()\nprint({TORCH_OOM!r})\ntime.sleep(600)\n"
    cell.launch("--ladder", "halve_micro_batch", "--no-monitor", job=script(cell, code))
    assert cell.codes == [0], cell.said
    assert [one.stopped for one in cell.record.attempts] == [StopReason.OUT_OF_MEMORY, None]


def a_launcher_leaves_the_training_in_the_background(cell):
    code = "time.sleep(1)\n" + STEPS + SAVED
    job = f"subprocess.Popen([sys.executable, '-c', {'import time;' + code!r}])\n"
    cell.env = {"IDLE_S": "60"}
    cell.launch(job=script(cell, job))
    is_trained_once(cell)
    assert "the command has exited, 1 process of it still running: waiting" in cell.said
    assert "'step': 3" in cell.said
    assert cell.left() == []


def training_in_the_background_that_fails_is_a_failure(cell):
    code = "import time; time.sleep(1); raise KeyError('labels')"
    cell.launch(job=script(cell, f"subprocess.Popen([sys.executable, '-c', {code!r}])\n"))
    assert cell.codes == [1], cell.said
    assert "KeyError: 'labels'" in cell.report["reason"]
    assert cell.report["attempts"][0]["returncode"] == 1


def training_in_the_background_that_runs_out_is_launched_again(cell):
    code = f"import time; time.sleep(1); raise RuntimeError({TORCH_OOM!r})"
    cell.launch(
        "--max-attempts", "2", "--ladder", "halve_micro_batch",
        job=script(cell, f"subprocess.Popen([sys.executable, '-c', {code!r}])\n"),
    )  # fmt: skip
    assert cell.kinds == ["host_oom", "host_oom"], cell.said


def what_idles_in_the_background_is_ended(cell):
    cell.env = {"IDLE_S": "1"}
    code = "import time; time.sleep(600)"
    cell.launch(job=script(cell, f"subprocess.Popen([sys.executable, '-c', {code!r}])\n"))
    assert cell.codes == [0], cell.said
    assert cell.left() == []


def training_in_the_background_ends_at_a_signal(cell):
    code = "import time; open('held', 'w').close(); time.sleep(600)"
    with cell.launched(
        job=script(cell, f"subprocess.Popen([sys.executable, '-c', {code!r}])\n")
    ) as pid:
        cell.wait_held()
        os.kill(pid, signal.SIGTERM)
    assert cell.codes == [130], cell.said
    assert cell.left() == []


def training_in_the_background_is_launched_again_after_a_kill(cell):
    code = "import time; time.sleep(600)"
    job = script(
        cell,
        "if os.path.exists('again'): "
        + SAVED.strip()
        + "; sys.exit()\nopen('again', 'w').close()\n"
        f"subprocess.Popen([sys.executable, '-c', {code!r}])\n",
    )
    cell.launch(at="left_running", do="kill", job=job)
    assert isinstance(cell.events[-1], LeftRunning)
    assert cell.resume() == 0, cell.said
    assert cell.kinds == ["interrupted", "ok"]
    assert (cell.folder / "finished").exists()


SCENARIOS = (
    the_last_line_quotes_an_oom,
    a_destructor_raises_an_oom,
    an_exit_handler_raises_an_oom,
    a_traceback_of_an_oom_is_printed,
    an_oom_in_each_step_is_survived,
    a_helper_runs_out_and_the_job_goes_on,
    a_helper_runs_out_and_the_job_ends_for_it,
    a_helper_runs_out_behind_an_exit_with_zero,
    a_job_that_prints_an_oom_and_never_exits_is_stopped,
    a_job_without_the_monitor_that_prints_an_oom_and_never_exits_is_stopped,
    a_launcher_leaves_the_training_in_the_background,
    training_in_the_background_that_fails_is_a_failure,
    training_in_the_background_that_runs_out_is_launched_again,
    what_idles_in_the_background_is_ended,
    training_in_the_background_ends_at_a_signal,
    training_in_the_background_is_launched_again_after_a_kill,
)
played, test_success = scenarios(*SCENARIOS)

"""`oomguard resume` after a fault: what it goes on with, what it leaves alone, what it says."""

from __future__ import annotations

import json
import os
import signal
import sys

from faults.cells import JOB, Cell, scenarios
from shell.launches import wait_until

OOM_AT_5 = {"OOM_ABOVE": "4", "OOM_AT": "5"}
#: Does not listen to SIGTERM, holds, then does what CODE says, when nobody looks any more.
UNSEEN = """
import os, json, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open("starts", "a").write("x")
if len(open("starts").read()) > 1: sys.exit(0)
def report(kind, **fields):
    line = dict(v=1, type=kind, pid=os.getpid(), rank=None, local_rank=None, world=None,
                t=time.monotonic(), phase="forward", step=3, memory=None, **fields)
    path = os.path.join(os.environ["OOMGUARD_BUFFER"], str(os.getpid()) + ".jsonl")
    open(path, "a").write(json.dumps(line) + "\\n")
print("{'train_runtime': 1.0}" if DONE else "{'loss': 1.0, 'step': 3}", flush=True)
open("held", "w")
while not os.path.exists("go"): time.sleep(0.01)
"""
SHORT = """report("oom", exception="torch.OutOfMemoryError", message="CUDA out of memory.",
    frames=[],
    uncaught=True, shapes=None, device="cuda", requested_bytes=2**31, capacity_bytes=None)
sys.exit(1)"""


def ended_unseen(cell: Cell, code: str, *, done: bool) -> list[dict]:
    """Kill oomguard and its guard, let the job come to its end, resume; give the attempts."""
    program = cell.folder / "job.py"
    program.write_text(f"DONE = {done}\n" + UNSEEN + code)
    flags = ("--per_device_train_batch_size", "8")
    with cell.launched(job=(sys.executable, str(program), *flags)):
        cell.wait_held()
        cell.kill_with_guard()
    (cell.folder / "go").touch()
    wait_until(lambda: cell.left() == [])
    assert cell.resume() == 0, cell.said
    return cell.report["attempts"]


def out_of_memory_while_nobody_looked_is_judged_and_climbs(cell):
    first, second = ended_unseen(cell, SHORT, done=False)
    assert first["verdict"]["kind"] == "device_oom"
    assert first["verdict"]["requested_bytes"] == 2 << 30
    assert first["returncode"] is None
    assert second["plan"]["micro_batch"] == 4


def trained_to_the_end_while_nobody_looked_is_not_repeated(cell):
    (only,) = ended_unseen(cell, "report('bye')", done=True)
    assert only["verdict"]["kind"] == "ok"
    assert (cell.run / "final" / "command.txt").exists()


def an_end_that_may_not_have_been_saved_is_repeated(cell):
    first, second = ended_unseen(cell, "os.kill(os.getpid(), 9)", done=True)
    assert first["verdict"]["kind"] == "interrupted"
    assert second["verdict"]["kind"] == "ok"


def an_exit_that_was_seen_and_not_recorded_counts(cell):
    assert cell.launch(at="exited", do="kill-before") == -signal.SIGKILL
    before = cell.ledger()
    assert cell.resume() == 0, cell.said
    assert cell.kinds == ["ok"]
    assert cell.ledger() == before


def a_failure_of_the_job_that_was_not_recorded_ends_the_run(cell):
    job = (sys.executable, str(cell.folder / "job.py"), "--max_steps", "8")
    (cell.folder / "job.py").write_text("raise ValueError('loss is nan')")
    cell.launch(at="exited", do="kill-before", job=job)
    assert cell.resume() == 1, cell.said
    assert cell.report["reason"] == "ValueError: loss is nan"


def what_ended_is_left_alone(cell):
    cell.env = {"OOM_ABOVE": "0"}
    assert cell.launch("--ladder", "halve_micro_batch", job=(*JOB, "--save_steps", "99")) == 3
    before = (cell.run / "events.jsonl").read_bytes()
    assert cell.resume() == 3
    assert "nothing to resume: exhausted" in cell.said
    assert (cell.run / "events.jsonl").read_bytes() == before


def a_report_that_was_not_written_is(cell):
    cell.launch(at="finished", do="kill")
    assert not (cell.run / "fit-report.json").exists()
    assert cell.resume() == 0
    assert cell.report["status"] == "fit"
    assert (cell.run / "final" / "command.txt").exists()


def killed_again_and_again_it_still_gets_there(cell):
    cell.env = OOM_AT_5
    cell.launch(at="run_started", do="kill")
    for event in ("planned", "resumed", "started", "exited", "device_free", "planned:2"):
        cell.resume(at=event, do="kill")
    assert cell.resume() == 0, cell.said
    assert cell.is_trained()
    assert cell.kinds.count("device_oom") == 1
    assert [a.number for a in cell.record.attempts] == [*range(1, len(cell.kinds) + 1)]


def a_checkpoint_written_in_the_grace_is_where_it_goes_on(cell):
    preempt(cell, "SIGTERM", signal.SIGTERM)


def usr1_reaches_the_process_that_waits_for_it(cell):
    cell.env["RANKS"] = "2"
    preempt(cell, "SIGUSR1", signal.SIGUSR1)


def preempt(cell: Cell, awaited: str, sent: int) -> None:
    cell.env |= {"HOLD_AT": "6", "SAVES_ON": awaited}
    with cell.launched(job=(*JOB, "--save_steps", "99")) as pid:
        cell.wait_held()
        os.kill(pid, sent)
    assert cell.codes == [130]
    assert f"oomguard resume {cell.run}" in cell.said
    assert cell.record.status == "interrupted"
    assert cell.resume() == 0, cell.said
    assert [row["step"] for row in cell.ledger()] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert cell.is_trained()


def a_warning_and_then_the_end_do_not_cut_the_grace(cell):
    cell.env = {"HOLD_AT": "6", "SAVES_ON": "SIGUSR1", "SAVE_SECONDS": "0.5"}
    with cell.launched(job=(*JOB, "--save_steps", "99")) as pid:
        cell.wait_held()
        os.kill(pid, signal.SIGUSR1)
        wait_until((cell.folder / "saving").exists)
        os.kill(pid, signal.SIGTERM)
    assert cell.codes == [130]
    assert (cell.folder / "out" / "checkpoint-5" / "trainer_state.json").exists()


def who_does_not_leave_in_the_grace_is_ended(cell):
    cell.env = {"HOLD_AT": "6", "SAVES_ON": "SIGTERM", "SAVE_SECONDS": "600"}
    with cell.launched("--grace", "0.2") as pid:
        cell.wait_held()
        os.kill(pid, signal.SIGTERM)
    assert cell.codes == [130]
    assert cell.left() == []
    assert cell.resume("--grace", "7") == 0
    assert cell.record.limits.grace_s == 7
    assert cell.is_trained()


def the_newest_whole_checkpoint_counts_and_no_stranger(cell):
    stale = cell.folder / "out" / "checkpoint-7"
    stale.mkdir(parents=True)
    for name in ("model.safetensors", "optimizer.bin", "trainer_state.json"):
        (stale / name).write_text('{"global_step": 7}')
    cell.env = {"HOLD_AT": "6"}
    with cell.launched() as pid:
        cell.wait_held()
        os.kill(pid, signal.SIGKILL)
    damaged = cell.folder / "out" / "checkpoint-4" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert cell.resume() == 0, cell.said
    assert [row["step"] for row in cell.ledger()] == [1, 2, 3, 4, 5, 3, 4, 5, 6, 7, 8]
    assert cell.is_trained()


def two_never_run_one_folder(cell):
    cell.env = {"HOLD_AT": "3"}
    with cell.launched():
        cell.wait_held()
        other = Cell(folder=cell.folder, zygote=type(cell.zygote)())
        code = other.resume()
        other.zygote.close()
        assert (code, "locked by another oomguard" in other.said) == (2, True)
        (cell.folder / "go").touch()
    assert cell.codes == [0]
    assert cell.launch() == 2
    assert f"oomguard resume {cell.run}" in cell.said


def the_json_document_is_that_of_launch(cell):
    with cell.launched(at="started", do="kill"):
        pass
    (cell.folder / "said.txt").unlink()
    assert cell.resume("--json") == 0
    text = cell.said
    document = json.loads(text[text.index("{\n") : text.rindex("}") + 1])
    assert document["status"] == "fit"
    assert [a["number"] for a in document["attempts"]] == [1, 2]


def secrets_come_back_though_they_are_not_in_the_record(cell):
    code = "import os, sys\nopen('argv', 'a').write(' '.join(sys.argv) + '\\n')\n"
    (cell.folder / "job.py").write_text(code)
    token = "hf_" + "a1B2" * 6
    job = (sys.executable, str(cell.folder / "job.py"), "--hub_token", token)
    cell.launch(at="started", do="kill", job=job)
    assert token not in (cell.run / "events.jsonl").read_text()
    assert cell.resume() == 0, cell.said
    assert token in (cell.folder / "argv").read_text().splitlines()[-1]


def a_folder_without_a_run_is_said_to_be_one(cell):
    assert cell.resume() == 2
    assert "there is no run in this folder" in cell.said


played, test_resume = scenarios(
    out_of_memory_while_nobody_looked_is_judged_and_climbs,
    trained_to_the_end_while_nobody_looked_is_not_repeated,
    an_end_that_may_not_have_been_saved_is_repeated,
    an_exit_that_was_seen_and_not_recorded_counts,
    a_failure_of_the_job_that_was_not_recorded_ends_the_run,
    what_ended_is_left_alone,
    a_report_that_was_not_written_is,
    killed_again_and_again_it_still_gets_there,
    a_checkpoint_written_in_the_grace_is_where_it_goes_on,
    usr1_reaches_the_process_that_waits_for_it,
    a_warning_and_then_the_end_do_not_cut_the_grace,
    who_does_not_leave_in_the_grace_is_ended,
    the_newest_whole_checkpoint_counts_and_no_stranger,
    two_never_run_one_folder,
    the_json_document_is_that_of_launch,
    secrets_come_back_though_they_are_not_in_the_record,
    a_folder_without_a_run_is_said_to_be_one,
)

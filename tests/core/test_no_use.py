"""What is known to be of no use is not tried, and a change without effect is reported at once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from generators import make_job
from oomguard.cli.console import Console
from oomguard.cli.plan_text import show_plan
from oomguard.evidence.verdict import Cause, Finding, Kind, Phase, Verdict, Witness
from oomguard.job.plan import Part, Plan, Precision
from oomguard.job.training_job import Device
from oomguard.run.decide import Finish, Launch
from oomguard.run.events import DeviceFree, Exited, Limits, Progress, RunStarted, Status
from oomguard.run.no_use import EACH_PROCESS, OF_BATCH
from told import Told

MIB = 1 << 20
ASKED = Plan(micro_batch=16, accumulation=1, sequence_length=512, loader_workers=4)
FAILED = Finding(
    witness=Witness.INSIDE,
    kind=Kind.HOST_OOM,
    text="DefaultCPUAllocator: can't allocate memory",
    phase=Phase.FORWARD,
    step=0,
    requested_bytes=512 * MIB,
    batch=(16, 256),
)


@dataclass(kw_only=True)
class Walked(Told):
    """A run on the CPU whose host memory is capped, and how each of its attempts ends."""

    capped_by: str | None = "rlimit"
    asked: Plan = ASKED
    device: Device = Device.CPU

    def begin(self) -> Launch:
        limits = Limits(
            ladder=(),
            allow=self.ladder.allow,
            max_attempts=20,
            host_memory_bytes=1 << 30,
            host_memory_by=self.capped_by,
        )
        job = make_job(self.asked, device=self.device)
        return self.happen(RunStarted(t=0, run="r", version="0", at="now", job=job, limits=limits))

    def ends(self, found: Finding, **verdict: object) -> Launch | Finish:
        """End the attempt that was decided last; return what follows."""
        number = len(self.record.attempts)
        why = Verdict(
            kind=found.kind,
            phase=found.phase,
            requested_bytes=found.requested_bytes,
            evidence=(found,),
            **verdict,
        )
        self.happen(Exited(t=2, attempt=number, returncode=1, verdict=why))
        return self.happen(DeviceFree(t=3, attempt=number, free=True, waited_s=0))


def steps(action: Launch) -> list[str]:
    return [step.strategy for step in action.spec.steps]


def test_fewer_workers_do_not_help_a_process_that_ran_into_its_own_limit():
    run = Walked()
    run.launch(run.begin())
    action = run.ends(FAILED)
    assert steps(action) == ["halve_micro_batch"]
    skipped = {skip.strategy: skip.reason for skip in action.spec.skipped}
    assert skipped["fewer_loader_workers"] == EACH_PROCESS


@pytest.mark.parametrize(
    ("capped_by", "witness"),
    [("cgroup", Witness.INSIDE), (None, Witness.INSIDE), ("rlimit", Witness.KERNEL)],
)
def test_fewer_workers_help_where_all_processes_count(capped_by, witness):
    run = Walked(capped_by=capped_by)
    run.launch(run.begin())
    assert steps(run.ends(replace(FAILED, witness=witness))) == ["fewer_loader_workers"]


def test_a_script_that_ignores_its_batch_size_is_named_after_one_more_attempt():
    run = Walked()
    run.launch(run.begin())
    run.launch(run.ends(FAILED))
    action = run.ends(FAILED)
    assert isinstance(action, Finish)
    assert action.status is Status.EXHAUSTED
    assert action.reason.startswith(
        "halve_micro_batch had no effect: with a micro batch of 8 as of 16, the same allocation of "
        "512.00 MiB failed on a batch of 16 x 256."
    )


@pytest.mark.parametrize(
    "changed",
    [
        {"batch": (8, 256)},
        {"batch": None},
        {"requested_bytes": 256 * MIB},
        {"phase": Phase.OPTIMIZER},
        {"step": 3},
        {"witness": Witness.LOG},
    ],
)
def test_another_failure_goes_on(changed):
    run = Walked()
    run.launch(run.begin())
    run.launch(run.ends(FAILED))
    action = run.ends(replace(FAILED, **changed))
    assert isinstance(action, Launch)
    assert action.spec.plan.micro_batch == 4


@dataclass(kw_only=True)
class OnCard(Walked):
    """The same on a GPU without a cap on host memory."""

    capped_by: str | None = None
    device: Device = Device.CUDA


UNSHAPED = replace(FAILED, batch=None, data_bytes=800 * MIB)
ON_CARD = replace(
    UNSHAPED, kind=Kind.DEVICE_OOM, text="CUDA out of memory", data_bytes=None,
    allocated_bytes=8 << 30,
)  # fmt: skip


@pytest.mark.parametrize(("walked", "failed"), [(Walked, UNSHAPED), (OnCard, ON_CARD)])
def test_a_change_that_leaves_the_same_allocation_failing_is_not_repeated(walked, failed):
    """As of a script that ignores its arguments, and whose batches are not seen."""
    run, taken = walked(), []
    action = run.begin()
    while isinstance(action, Launch):
        taken += steps(action)
        run.launch(action)
        action = run.ends(failed)
    assert len(taken) == len(set(taken)), "each strategy at most once"
    assert "halve_micro_batch" in taken
    assert not {"cut_cutoff_len", "gradient_checkpointing"} & set(taken)
    skipped = {skip.strategy: skip.reason for skip in action.skipped}
    assert skipped["cut_cutoff_len"] == OF_BATCH
    assert "failed at the same allocation of 512.00 MiB" in skipped["halve_micro_batch"]


def test_a_run_in_which_no_change_had_an_effect_says_so():
    run = Walked(asked=replace(ASKED, precision=Precision.FP32))
    action = run.begin()
    while isinstance(action, Launch):
        run.launch(action)
        action = run.ends(UNSHAPED)
    changes = len(run.record.attempts) - 1
    assert changes > 1
    assert action.reason.startswith(
        f"none of {changes} changes had an effect on the allocation of 512.00 MiB that fails"
    )


def test_a_change_without_effect_is_printed(capfd):
    run = Walked()
    run.launch(run.begin())
    run.launch(run.ends(UNSHAPED))
    run.ends(UNSHAPED)
    exited = next(event for event in reversed(run.events) if isinstance(event, Exited))
    Console(quiet_stdout=True).event(exited, run.record)
    assert (
        "halve_micro_batch had no effect: attempts 1 and 2 failed at the same allocation of "
        "512.00 MiB, with 800.00 MiB in use"
    ) in " ".join(capfd.readouterr().err.split())


@pytest.mark.parametrize(
    "changed",
    [
        {"data_bytes": 700 * MIB},  # a later layer's allocation of that size
        {"data_bytes": None},
        {"requested_bytes": None},
        {"requested_bytes": 256 * MIB},
        {"step": 1},
        {"phase": Phase.BACKWARD},
    ],
)
def test_a_change_that_may_have_had_an_effect_is_repeated(changed):
    run = Walked()
    run.launch(run.begin())
    run.launch(run.ends(UNSHAPED))
    assert steps(run.ends(replace(UNSHAPED, **changed))) == ["halve_micro_batch"]


def test_what_had_no_effect_on_one_allocation_may_have_one_on_the_next():
    run = Walked(asked=replace(ASKED, precision=Precision.FP32))
    run.launch(run.begin())
    run.launch(run.ends(UNSHAPED))
    other = run.ends(UNSHAPED)
    assert steps(other) != ["halve_micro_batch"]
    run.launch(other)
    further = replace(UNSHAPED, phase=Phase.BACKWARD, requested_bytes=64 * MIB)
    assert steps(run.ends(further)) == ["halve_micro_batch"]


def test_growing_memory_is_not_answered_by_cutting_the_data():
    run = Walked(asked=Plan(micro_batch=1, accumulation=1, sequence_length=512))
    run.launch(run.begin())
    action = run.ends(FAILED, cause=Cause.GROWTH)
    taken = []
    while isinstance(action, Launch):
        taken += steps(action)
        assert action.spec.plan.sequence_length == 512
        run.launch(action)
        action = run.ends(replace(FAILED, step=len(taken)), cause=Cause.GROWTH)
    reasons = {skip.strategy: skip.reason for skip in action.skipped}
    assert reasons["cut_cutoff_len"].startswith("memory grows from step to step")


def test_the_line_of_an_attempt_names_every_field_that_was_changed():
    asked = Plan(micro_batch=4, accumulation=2, image_pixels=1 << 20, optimizer="adamw_torch")
    changed = replace(
        asked, image_pixels=1 << 18, optimizer="adamw_8bit", frozen=frozenset({Part.VISION_TOWER})
    )
    assert show_plan(asked, asked) == "micro batch 4, accumulation 2"
    assert show_plan(changed, asked) == (
        "micro batch 4, accumulation 2, image_pixels 262144, frozen vision_tower, "
        "optimizer adamw_8bit"
    )


@pytest.mark.parametrize(
    ("capped_by", "shown"),
    [
        ("rlimit", "peak private data of a process 900.00 MiB (limit 1.00 GiB)"),
        ("cgroup", "peak host memory 500.00 MiB"),
    ],
)
def test_a_peak_is_shown_in_the_measure_of_its_cap(capfd, capped_by, shown):
    run = Walked(capped_by=capped_by)
    run.launch(run.begin())
    run.happen(
        Progress(
            t=1, attempt=1, pid=7, rank=None, step=1, phase=Phase.OPTIMIZER,
            host_bytes=500 * MIB, data_bytes=900 * MIB,
        )
    )  # fmt: skip
    ended = Exited(t=2, attempt=1, returncode=0, verdict=Verdict(kind=Kind.OK))
    run.happen(ended)
    Console(quiet_stdout=True).event(ended, run.record)
    assert shown in capfd.readouterr().err

"""An exhausted run says how much memory was missing, and what would help beyond its ladder."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from generators import make_job, make_ladder
from oomguard.cli.run_lines import shortfall_lines
from oomguard.evidence.figures import read_figures
from oomguard.evidence.verdict import Cause, Finding, Kind, Phase, Verdict, Witness
from oomguard.job.plan import Plan, Quantization, Sharding, Tuning
from oomguard.job.training_job import Device, Job
from oomguard.ladder.climb import Ladder
from oomguard.ladder.load import load_strategies
from oomguard.run.decide import Finish, Launch
from oomguard.run.events import (
    DeviceFree,
    Exited,
    Finished,
    Limits,
    Predicted,
    Progress,
    RunStarted,
    Status,
    event_from_json,
    event_to_json,
)
from oomguard.run.shortfall import Bound, Shortfall, shortfall
from oomguard.run.state import replay
from oomguard.strategy import NEW_RECIPE, SAME_MATH, Fidelity
from told import Told

GIB, MIB = 1 << 30, 1 << 20
ASKED = Plan(micro_batch=2, accumulation=1, tuning=Tuning.LORA, quantization=Quantization.NONE)
TORCH = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total "
    "capacity of 23.69 GiB of which 512.00 MiB is free. Including non-PyTorch memory, this process "
    "has 23.00 GiB memory in use. "
)
SPENT = "Of the allocated memory 22.00 GiB is allocated by PyTorch, and 512.00 MiB is reserved by "
SPENT += "PyTorch but unallocated."


def oom(text: str = TORCH + SPENT, **fields: object) -> Verdict:
    values = {
        "kind": Kind.DEVICE_OOM,
        "phase": Phase.FORWARD,
        "requested_bytes": 2 * GIB,
        "capacity_bytes": int(23.69 * GIB),
        **fields,
    }
    shared = {name: values[name] for name in ("kind", "phase", "requested_bytes", "capacity_bytes")}
    found = Finding(witness=Witness.INSIDE, text=text, **shared)
    return Verdict(**values, root=text, evidence=(found,))


@dataclass(kw_only=True)
class Exhausted(Told):
    """A run in which every attempt ends with the same verdict."""

    why: Verdict = field(default_factory=oom)
    job: Job = field(default_factory=lambda: make_job(ASKED))
    limits: Limits = field(
        default_factory=lambda: Limits(ladder=(), allow=NEW_RECIPE, max_attempts=40)
    )
    predicted: tuple[Predicted, ...] = ()
    data_bytes: int | None = None

    def end(self) -> Shortfall:
        action = self.happen(
            RunStarted(
                t=0,
                run="r",
                version="0",
                at="now",
                job=self.job,
                limits=self.limits,
                predicted=self.predicted,
            )
        )
        while isinstance(action, Launch):
            self.launch(action)
            number = len(self.record.attempts)
            if self.data_bytes is not None:
                phase = Phase.FORWARD
                self.happen(
                    Progress(
                        t=2,
                        attempt=number,
                        pid=7,
                        rank=None,
                        step=0,
                        phase=phase,
                        data_bytes=self.data_bytes,
                    )
                )
            self.happen(Exited(t=2, attempt=number, returncode=1, verdict=self.why))
            action = self.happen(DeviceFree(t=3, attempt=number, free=True, waited_s=0))
        assert isinstance(action, Finish)
        assert action.status is Status.EXHAUSTED
        self.happen(
            Finished(
                t=4,
                status=action.status,
                reason=action.reason,
                skipped=action.skipped,
                untried=action.untried,
            )
        )
        found = shortfall(self.record)
        assert found is not None
        written = [event_from_json(event_to_json(event)) for event in self.events]
        assert shortfall(replay(written)) == found
        return found


def ladder(ids: str | None = "halve_micro_batch", allow: Fidelity = NEW_RECIPE) -> Ladder:
    return replace(make_ladder(allow, ids), known=tuple(load_strategies()))


def run(ids: str | None = "halve_micro_batch", **fields: object) -> Exhausted:
    return Exhausted(ladder=ladder(ids), **fields)


# --- How many bytes ---


def test_what_the_failed_allocation_lacked_is_the_least_that_is_missing():
    found = run().end()
    assert (found.attempt, found.bound) == (2, Bound.AT_LEAST)
    assert found.missing_bytes == 2 * GIB - 512 * MIB
    assert found.how.startswith("2.00 GiB was requested with 512.00 MiB free")
    assert "a GPU with more than 25.19 GiB, such as RTX 5090 (31.36 GiB usable)" in found.helps


OLDER = (
    "CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0; 4.00 GiB total capacity; 3.36 GiB "
    "already allocated; 0 bytes free; 3.48 GiB reserved in total by PyTorch)"
)
CONTAINED = (
    "CUDA out of memory. Tried to allocate 14.29 GiB. GPU 0 has a total capacity of 22.09 GiB of "
    "which 8.39 GiB is free. Including non-PyTorch memory, this process has 0 bytes memory in use."
)


@pytest.mark.parametrize(
    ("text", "missing_bytes"),
    [(OLDER, 20 * MIB), (CONTAINED, round(14.29 * GIB) - round(8.39 * GIB))],
)
def test_messages_of_other_versions_and_of_containers_are_read(text, missing_bytes):
    requested = read_figures(text).requested_bytes
    assert run(why=oom(text, requested_bytes=requested)).end().missing_bytes == missing_bytes


def test_under_a_cap_the_room_is_what_the_allocator_has_not_reserved():
    limits = Limits(ladder=(), allow=NEW_RECIPE, max_attempts=40, gpu_memory_bytes=23 * GIB)
    found = run(limits=limits).end()
    assert found.missing_bytes == int(22.5 * GIB) + 2 * GIB - 23 * GIB
    assert found.helps[0] == "--gpu-memory of more than 24.50 GiB"


def test_a_predicted_peak_says_about_how_much_is_missing():
    plan = replace(ASKED, micro_batch=1, accumulation=2)
    peak = Predicted(
        plan=plan,
        allocated_bytes=28 * GIB,
        reserved_bytes=29 * GIB,
        expected_bytes=30 * GIB,
        method="trace",
    )
    found = run(predicted=(peak,)).end()
    assert (found.bound, found.missing_bytes) == (Bound.ABOUT, 30 * GIB - int(23.69 * GIB))
    assert found.helps[0] == "a GPU with about 30.00 GiB, such as RTX 5090 (31.36 GiB usable)"
    # A prediction that is below what was seen is wrong, and is not used.
    low = replace(peak, expected_bytes=20 * GIB)
    assert run(predicted=(low,)).end().bound is Bound.AT_LEAST


@pytest.mark.parametrize(
    ("verdict", "reason"),
    [
        (oom("CUDA error: out of memory", requested_bytes=None), "does not state the size"),
        (oom("Tried to allocate 2.00 GiB"), "what was free then is not stated"),
        (oom(cause=Cause.FRAGMENTATION), "not in one piece"),
        (oom("killed", kind=Kind.HOST_OOM, requested_bytes=None), "states how much"),
        (oom("x", kind=Kind.SHM_OOM), "does not report how much was free"),
    ],
)
def test_where_it_cannot_be_known_it_says_why(verdict, reason):
    found = run(why=verdict).end()
    assert (found.bound, found.missing_bytes) == (Bound.UNKNOWN, None)
    assert reason in found.how
    assert next(iter(shortfall_lines(found))) == (
        f"how much memory is missing is not known: {found.how}"
    )
    assert found.helps


def test_on_the_host_a_limit_on_each_process_tells_about_how_much():
    limits = Limits(
        ladder=(),
        allow=NEW_RECIPE,
        max_attempts=40,
        host_memory_bytes=4 * GIB,
        host_memory_by="rlimit",
    )
    why = oom("can't allocate memory", kind=Kind.HOST_OOM, requested_bytes=GIB)
    job = make_job(ASKED, device=Device.CPU)
    found = run(job=job, why=why, limits=limits, data_bytes=int(3.5 * GIB)).end()
    assert (found.bound, found.missing_bytes) == (Bound.ABOUT, GIB // 2)
    assert found.helps == ("--host-memory of about 4.50 GiB",)


def test_a_run_that_ended_otherwise_has_none():
    finished = run()
    finished.end()
    events = [*finished.events[:-1], replace(finished.events[-1], status=Status.INTERRUPTED)]
    assert shortfall(replay(events)) is None


# --- What was not tried ---


def test_each_option_that_rules_a_step_out_is_named_with_the_step():
    same = ladder("halve_micro_batch,enable_qlora", SAME_MATH)
    job = make_job(replace(ASKED, checkpointing=False))
    limits = Limits(ladder=(), allow=SAME_MATH, max_attempts=40)
    found = Exhausted(ladder=same, limits=limits, job=job).end()
    assert {one.needs: one.step.strategy for one in found.untried} == {
        "--allow new_recipe": "enable_qlora",
        "a launch without --ladder": "gradient_checkpointing",
    }


def test_a_missing_package_is_named_with_the_line_that_installs_it():
    job = make_job(ASKED, packages=frozenset(), python="/venv/bin/python")
    framework = replace(
        ladder().framework,
        required_packages=lambda _job, plan: frozenset(
            {"bitsandbytes"} if plan.quantization is not Quantization.NONE else ()
        ),
    )
    only = make_ladder(NEW_RECIPE, "halve_micro_batch,enable_qlora")
    found = Exhausted(ladder=replace(only, framework=framework), job=job).end()
    (one,) = found.untried
    assert one.needs == "/venv/bin/python -m pip install bitsandbytes"
    assert one.step.strategy == "enable_qlora"
    # What needs two options at once is found too.
    same = replace(only, framework=framework, allow=SAME_MATH)
    (one,) = Exhausted(ladder=same, job=job).end().untried
    assert one.needs == "/venv/bin/python -m pip install bitsandbytes and --allow new_recipe"


def test_where_attempts_ran_out_the_next_step_is_named():
    limits = Limits(ladder=(), allow=NEW_RECIPE, max_attempts=1)
    (one,) = run(limits=limits).end().untried
    assert (one.needs, one.step.strategy) == ("--max-attempts above 1", "halve_micro_batch")
    assert "not tried: halve_micro_batch (micro_batch 2 -> 1, accumulation 1 -> 2, same math)" in (
        " ".join(shortfall_lines(run(limits=limits).end()))
    )


def test_sharding_is_suggested_where_the_framework_has_it():
    alone = run(job=make_job(replace(ASKED, sharding=Sharding.NONE))).end()
    assert any(line.startswith("several GPUs") for line in alone.helps)
    assert not any("GPUs:" in line for line in run().end().helps)

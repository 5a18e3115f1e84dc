"""Growing memory explains how an attempt ended where its last witness does not, and only there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from generators import make_job
from oomguard.evidence.verdict import Cause, Confidence, Finding, Kind, Phase, Verdict, Witness
from oomguard.job.plan import Plan
from oomguard.job.training_job import Device
from oomguard.run.attempt import AttemptSpec
from oomguard.run.decide import Finish
from oomguard.run.events import DeviceFree, Exited, Growing, Limits, RunStarted, Status
from oomguard.run.leak import Growth
from oomguard.run.state import Attempt
from oomguard.units import GIB, MIB
from told import Told

GREW = Growth(
    step=11, bytes_per_step=64 * MIB, used_bytes=GIB, limit_bytes=2 * GIB, forecast_step=12
)
TRIED = Attempt(
    number=1,
    spec=AttemptSpec(plan=Plan(micro_batch=1, accumulation=1)),
    kernel_watched=True,
    steps_done=12,
    data_peak_bytes=2 * GIB - MIB,
)


def found(witness, kind=Kind.HOST_OOM, **fields):
    return Finding(witness=witness, kind=kind, text="x", phase=Phase.FORWARD, **fields)


@pytest.mark.parametrize(
    ("witness", "cause"),
    [
        (Witness.KERNEL, Cause.GROWTH),
        (Witness.LOG, Cause.GROWTH),
        (Witness.INSIDE, Cause.UNKNOWN),  # it has seen the batch that ran out, and judged by it
    ],
)
def test_an_oom_that_only_the_kernel_or_the_log_shows_is_put_down_to_growth(witness, cause):
    attempt = replace(TRIED, findings=(found(witness),), growth=GREW)
    assert attempt.concluded(137).cause is cause
    assert replace(attempt, growth=None).concluded(137).cause is Cause.UNKNOWN


@pytest.mark.parametrize("code", [-11, 139, -6])
def test_a_crash_where_growing_memory_was_to_run_out_is_an_oom(code):
    verdict = replace(TRIED, growth=GREW).concluded(code)
    assert (verdict.kind, verdict.cause) == (Kind.HOST_OOM, Cause.GROWTH)
    assert verdict.confidence is Confidence.MEDIUM
    assert "when growing memory had reached 2.00 GiB" in verdict.root


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"growth": None}, -11),
        ({"steps_done": 6}, -11),
        ({"data_peak_bytes": GIB}, -11),
        ({"data_peak_bytes": None}, -11),
        ({"growth": replace(GREW, limit_bytes=None, forecast_step=None)}, -11),
        ({"findings": (found(Witness.INSIDE, Kind.NOT_OOM, signature="ValueError"),)}, 1),
        ({"findings": (found(Witness.INSIDE, Kind.NOT_OOM, signature="ValueError"),)}, -11),
    ],
)
def test_another_end_stays_the_jobs_own_failure(changed, code):
    attempt = replace(TRIED, **{"growth": GREW, **changed})
    assert attempt.concluded(code).kind is Kind.NOT_OOM


@pytest.mark.parametrize(
    ("device", "per_shape", "grows", "of_kernels"),
    [
        (Device.CPU, 8 * MIB, "memory grows by 8.00 MiB with each new batch shape: ", True),
        (Device.CPU, None, "memory grows by 64.00 MiB per step: ", True),
        (Device.CUDA, None, "memory grows by 64.00 MiB per step: ", False),
    ],
)
def test_a_run_that_cannot_fit_for_growth_names_it_and_cuts_no_data(
    device, per_shape, grows, of_kernels
):
    run = Told()
    job = make_job(Plan(micro_batch=1, accumulation=1, sequence_length=512), device=device)
    limits = Limits(ladder=(), allow=run.ladder.allow, max_attempts=1000)
    action = run.happen(RunStarted(t=0, run="r", version="0", at="now", job=job, limits=limits))
    while not isinstance(action, Finish):
        run.launch(action)
        number = len(run.record.attempts)
        growth = replace(GREW, per_shape_bytes=per_shape)
        run.happen(Growing(t=1, attempt=number, rank=None, growth=growth))
        kind = Kind.HOST_OOM if device is Device.CPU else Kind.DEVICE_OOM
        verdict = Verdict(kind=kind, phase=Phase.FORWARD, cause=Cause.GROWTH)
        run.happen(Exited(t=2, attempt=number, returncode=1, verdict=verdict))
        action = run.happen(DeviceFree(t=3, attempt=number, free=True, waited_s=0))
    assert {one.spec.plan.sequence_length for one in run.record.attempts} == {512}
    assert action.status is Status.EXHAUSTED
    assert action.reason.startswith(f"{grows}the data is not the cause")
    assert ("ONEDNN_PRIMITIVE_CACHE_CAPACITY" in action.reason) is of_kernels

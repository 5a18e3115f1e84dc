"""Move the predictions of an evaluation to host memory step by step, not all at its end."""

from oomguard.strategy import SAME_MATH, Device, Job, Kind, Phase, Plan, Remedy, Strategy, replace


def change(job: Job, plan: Plan) -> Plan | str:
    """Move them after each step; on a CPU job they lie in host memory anyway."""
    if plan.eval_accumulation is None:
        return "the framework has no such setting"
    if job.device is Device.CPU:
        return "they are in host memory already: the job runs on the CPU"
    if plan.eval_accumulation == 1:
        return "they are moved already"
    return replace(plan, eval_accumulation=1)


STRATEGY = Strategy(
    summary="move predictions to the host after each evaluation step",
    fidelity=SAME_MATH,
    remedies=frozenset({Remedy(kind=Kind.DEVICE_OOM, phases=frozenset({Phase.EVAL}))}),
    change=change,
    otherwise="they are moved already, the host is the device, or the framework has no such choice",
)

"""Load the checkpoint without a second copy of the weights in host memory."""

from oomguard.strategy import SAME_MATH, Job, Kind, Phase, Plan, Remedy, Strategy, replace


def change(_job: Job, plan: Plan) -> Plan | str:
    """Set low_cpu_mem_usage where the framework has it and it is off."""
    if plan.low_cpu_mem_usage is None:
        return "the framework does not have it"
    return "it is on already" if plan.low_cpu_mem_usage else replace(plan, low_cpu_mem_usage=True)


STRATEGY = Strategy(
    summary="load the weights without a second copy (low_cpu_mem_usage)",
    fidelity=SAME_MATH,
    remedies=frozenset(
        {Remedy(kind=Kind.HOST_OOM, phases=frozenset({Phase.LAUNCH, Phase.LOAD, Phase.UNKNOWN}))}
    ),
    change=change,
    otherwise="it is on already, or the framework does not have it",
)

"""Tokenize the data set with fewer processes at once."""

from oomguard.strategy import SAME_MATH, Job, Kind, Phase, Plan, Remedy, Strategy, replace


def change(_job: Job, plan: Plan) -> Plan | str:
    """Halve the processes, down to one."""
    if plan.preprocess_workers is None:
        return "the framework does not say how many there are"
    if plan.preprocess_workers <= 1:
        return "there is only one"
    return replace(plan, preprocess_workers=plan.preprocess_workers // 2)


STRATEGY = Strategy(
    summary="halve the processes that tokenize the data set",
    fidelity=SAME_MATH,
    remedies=frozenset({Remedy(kind=Kind.HOST_OOM, phases=frozenset({Phase.PREPROCESS}))}),
    change=change,
    otherwise="there is one only, or the framework does not say",
    repeat=True,
    fewer_processes=True,
)

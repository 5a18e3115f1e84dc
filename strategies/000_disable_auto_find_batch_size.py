"""Turn off the framework's own batch search, which shrinks the global batch without a word."""

from oomguard.strategy import SAME_MATH, Job, Plan, Strategy, replace


def change(_job: Job, plan: Plan) -> Plan | str:
    """Turn `auto_find_batch_size` off; nothing to do where it is off or unknown."""
    if not plan.auto_find_batch_size:
        return "auto_find_batch_size is not on"
    return replace(plan, auto_find_batch_size=False)


STRATEGY = Strategy(
    summary="turn off auto_find_batch_size, which would change the global batch",
    fidelity=SAME_MATH,
    remedies=frozenset(),
    change=change,
    otherwise="auto_find_batch_size is not on",
    preflight=True,
)

"""Halve the longest completion that is generated; longer ones are cut off."""

from oomguard.strategy import NEW_RECIPE, TRAINING, Job, Kind, Plan, Remedy, Strategy, replace

#: Fewer tokens are too few to reason in.
SHORTEST = 64


def change(_job: Job, plan: Plan) -> Plan | str:
    """Halve it, down to 64 tokens."""
    if plan.completion_length is None:
        return "nothing is generated, or completions have no limit"
    if plan.completion_length <= SHORTEST:
        return f"completions have at most {plan.completion_length} tokens"
    return replace(plan, completion_length=max(SHORTEST, plan.completion_length // 2))


STRATEGY = Strategy(
    summary="halve the longest completion (max_completion_length)",
    fidelity=NEW_RECIPE,
    remedies=frozenset({Remedy(kind=Kind.DEVICE_OOM, phases=TRAINING)}),
    change=change,
    otherwise="nothing is generated, completions have no limit, or they are 64 tokens or less",
    repeat=True,
)

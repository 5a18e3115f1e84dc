"""Initialize the adapter by LoftQ in stages: the base in 4-bit first, then one tensor at a time."""

from oomguard.strategy import NEW_RECIPE, Job, Kind, Loftq, Phase, Plan, Remedy, Strategy, replace


def change(_job: Job, plan: Plan) -> Plan | str:
    """Stage a LoftQ that was asked for all at once.

    Staged it is 4 bits and one iteration, over a base that stays in 4-bit: with 8 bits, 2 bits or
    more iterations another start, hence a new recipe. Asked with 4 bits and one, it is the same.
    """
    if plan.loftq is None:
        return "the adapter does not start from LoftQ"
    return (
        replace(plan, loftq=Loftq.STAGED) if plan.loftq is Loftq.AT_ONCE else "it is staged already"
    )


STRATEGY = Strategy(
    summary="initialize the adapter with LoftQ in stages, on a 4-bit base",
    fidelity=NEW_RECIPE,
    # At once takes copies of whole weights in host memory, before the first step.
    remedies=frozenset(
        {Remedy(kind=Kind.HOST_OOM, phases=frozenset({Phase.LAUNCH, Phase.LOAD, Phase.UNKNOWN}))}
    ),
    change=change,
    otherwise="LoftQ does not start the adapter, or is staged already",
    needs=("bitsandbytes",),
)

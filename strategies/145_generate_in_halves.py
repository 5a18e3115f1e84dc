"""Generate the completions of a step in two halves, each of whole groups."""

from oomguard.strategy import (
    SAME_RECIPE,
    TRAINING,
    Job,
    Kind,
    Plan,
    Remedy,
    Strategy,
    replace,
)


def change(job: Job, plan: Plan) -> Plan | str:
    """Halve what is generated at once, as far as all completions of a prompt stay together."""
    if plan.generation_batch is None or job.group is None:
        return "nothing is generated"
    half = plan.generation_batch // 2
    if not half or plan.generation_batch % 2 or half % plan.micro_batch:
        return f"half of {plan.generation_batch} completions would split a micro batch"
    if half * job.world.size % job.group:
        return f"half of {plan.generation_batch} completions would split those of a prompt"
    return replace(plan, generation_batch=half)


STRATEGY = Strategy(
    summary="generate half as many completions at once (other samples are drawn)",
    fidelity=SAME_RECIPE,
    remedies=frozenset({Remedy(kind=Kind.DEVICE_OOM, phases=TRAINING)}),
    change=change,
    otherwise="nothing is generated, or half of a batch would split the completions of a prompt "
    "or a micro batch",
    repeat=True,
)

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


def change(job: Job, plan: Plan) -> Plan | None:
    """Halve what is generated at once, as far as all completions of a prompt stay together."""
    if plan.generation_batch is None or job.group is None:
        return None
    half = plan.generation_batch // 2
    odd = plan.generation_batch % 2 or half % plan.micro_batch
    if not half or odd or half * job.world.size % job.group:
        return None
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

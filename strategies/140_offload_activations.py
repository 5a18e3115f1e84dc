"""Keep activations in host memory between the forward and the backward pass."""

from oomguard.strategy import (
    SAME_MATH,
    Device,
    Job,
    Kind,
    Offload,
    Phase,
    Plan,
    Remedy,
    Strategy,
    replace,
)

PHASES = frozenset({Phase.FORWARD, Phase.BACKWARD, Phase.UNKNOWN})


def change(job: Job, plan: Plan) -> Plan | str:
    """Offload the activations, where the framework can (TRL, torchtune)."""
    if job.device is Device.CPU:
        return "there is no GPU"
    if plan.offload is None:
        return "the framework has no such setting"
    if Offload.ACTIVATIONS in plan.offload:
        return "they are in host memory already"
    return replace(plan, offload=plan.offload | {Offload.ACTIVATIONS})


STRATEGY = Strategy(
    summary="keep activations in host memory until the backward pass",
    fidelity=SAME_MATH,
    remedies=frozenset({Remedy(kind=Kind.DEVICE_OOM, phases=PHASES)}),
    change=change,
    otherwise="there is no GPU, they are offloaded already, or the framework has no such setting",
)

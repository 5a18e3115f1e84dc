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


def change(job: Job, plan: Plan) -> Plan | None:
    """Offload the activations, where the framework can (TRL, torchtune)."""
    if job.device is Device.CPU or plan.offload is None or Offload.ACTIVATIONS in plan.offload:
        return None
    return replace(plan, offload=plan.offload | {Offload.ACTIVATIONS})


STRATEGY = Strategy(
    summary="keep activations in host memory until the backward pass",
    fidelity=SAME_MATH,
    remedies=frozenset({Remedy(kind=Kind.DEVICE_OOM, phases=PHASES)}),
    change=change,
    otherwise="there is no GPU, they are offloaded already, or the framework has no such setting",
)

"""Compute the loss over the vocabulary in chunks, so that the logits never stand whole."""

from oomguard.strategy import (
    SAME_MATH,
    Cause,
    Device,
    Job,
    Kind,
    LossKernel,
    Phase,
    Plan,
    Remedy,
    Strategy,
    replace,
)

#: The logits stand from the end of the forward pass to the start of the backward pass.
PHASES = frozenset({Phase.FORWARD, Phase.BACKWARD, Phase.UNKNOWN})


def change(job: Job, plan: Plan) -> Plan | str:
    """Use the fused kernel, which is written for GPUs."""
    if plan.loss_kernel is None:
        return "the framework has no such kernel"
    if plan.loss_kernel is not LossKernel.EAGER:
        return "the loss is fused already"
    if job.device is Device.CPU:
        return "the kernel needs a GPU"
    return replace(plan, loss_kernel=LossKernel.FUSED)


STRATEGY = Strategy(
    summary="compute the loss in chunks, by a fused kernel",
    fidelity=SAME_MATH,
    remedies=frozenset({Remedy(kind=Kind.DEVICE_OOM, phases=PHASES)}),
    change=change,
    worth_a_restart=frozenset({Cause.CAPACITY, Cause.FRAGMENTATION, Cause.OUTLIER, Cause.UNKNOWN}),
    otherwise="it is fused already, the framework has no such kernel, or there is no GPU for it",
    needs=("liger_kernel",),
)

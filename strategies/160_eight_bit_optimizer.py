"""Keep the optimizer's state in 8 bits, as bitsandbytes does."""

from oomguard.strategy import (
    SAME_RECIPE,
    TRAINING,
    Job,
    Kind,
    Offload,
    Plan,
    Remedy,
    Strategy,
    replace,
    trains_much,
)

#: Each AdamW in the frameworks' own words, and its 8-bit twin.
TWINS = {
    "adamw_torch": "adamw_bnb_8bit",
    "adamw_torch_fused": "adamw_bnb_8bit",
    "adamw_hf": "adamw_bnb_8bit",
    "AdamW": "bitsandbytes.optim.AdamW8bit",
    "torch.optim.AdamW": "bitsandbytes.optim.AdamW8bit",
}


def change(job: Job, plan: Plan) -> Plan | str:
    """Use 8-bit AdamW: 2 bytes of state for each weight instead of 8."""
    if plan.optimizer not in TWINS:
        return f"{plan.optimizer or 'this optimizer'} has no 8-bit version here"
    if plan.offload is not None and Offload.OPTIMIZER in plan.offload:
        return "its state is in host memory"
    if not trains_much(job, plan):
        return "only an adapter is trained, whose optimizer state is small"
    return replace(plan, optimizer=TWINS[plan.optimizer])


STRATEGY = Strategy(
    summary="keep the optimizer's state in 8 bits",
    fidelity=SAME_RECIPE,
    remedies=frozenset({Remedy(kind=Kind.DEVICE_OOM, phases=TRAINING)}),
    change=change,
    otherwise="the optimizer has no 8-bit version, its state is in host memory, or only an adapter"
    " is trained",
    needs=("bitsandbytes",),
)

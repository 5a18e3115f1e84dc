"""Page the 8-bit optimizer's state to host memory when the device is full."""

from oomguard.strategy import (
    SAME_RECIPE,
    TRAINING,
    Device,
    Job,
    Kind,
    Plan,
    Remedy,
    Strategy,
    replace,
)

#: Each 8-bit AdamW in the frameworks' own words, and its paged twin.
TWINS = {
    "adamw_8bit": "paged_adamw_8bit",
    "adamw_bnb_8bit": "paged_adamw_8bit",
    "bitsandbytes.optim.AdamW8bit": "bitsandbytes.optim.PagedAdamW8bit",
}


def change(job: Job, plan: Plan) -> Plan | str:
    """Use the paged version; CUDA's unified memory moves the pages."""
    if plan.optimizer not in TWINS:
        return "the optimizer is not an 8-bit AdamW"
    if job.device is Device.CPU:
        return "there is no GPU"
    return replace(plan, optimizer=TWINS[plan.optimizer])


STRATEGY = Strategy(
    summary="let the optimizer's state move to host memory where the device is full",
    fidelity=SAME_RECIPE,
    remedies=frozenset({Remedy(kind=Kind.DEVICE_OOM, phases=TRAINING)}),
    change=change,
    otherwise="the optimizer is not an 8-bit AdamW, or there is no GPU",
    needs=("bitsandbytes",),
)

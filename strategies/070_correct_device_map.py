"""Load each rank's copy of the model straight onto that rank's own device."""

from oomguard.strategy import (
    SAME_MATH,
    TRAINING,
    Device,
    DeviceMap,
    Job,
    Kind,
    Phase,
    Plan,
    Remedy,
    Strategy,
    replace,
)


def change(job: Job, plan: Plan) -> Plan | str:
    """Correct a device map that loads into host memory, or every copy onto the same devices.

    With one rank, a map that spreads the model over the devices is how it fits at all.
    """
    if plan.device_map is None:
        return (
            "the job's settings name no device_map; a script can pass device_map={'': LOCAL_RANK}"
        )
    if job.device is Device.CPU:
        return "there is no GPU"
    crowded = plan.device_map is DeviceMap.SHARED and job.world.size > 1
    if not (crowded or plan.device_map is DeviceMap.HOST):
        return "each rank loads onto its own device already"
    return replace(plan, device_map=DeviceMap.OWN)


STRATEGY = Strategy(
    summary="load each rank's copy of the model straight onto its own device (device_map)",
    fidelity=SAME_MATH,
    # Each rank holds a whole copy in host memory otherwise, or all of them fill one device.
    remedies=frozenset(
        {
            Remedy(kind=Kind.HOST_OOM, phases=frozenset({Phase.LAUNCH, Phase.LOAD, Phase.UNKNOWN})),
            Remedy(kind=Kind.DEVICE_OOM, phases=TRAINING | {Phase.LOAD}),
        }
    ),
    change=change,
    otherwise="it is so already, there is no GPU, or the job's settings name no device_map (a "
    "script that loads without one: pass device_map={'': LOCAL_RANK} to from_pretrained)",
)

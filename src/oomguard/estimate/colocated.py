"""What an inference engine needs of a GPU that it shares with the training."""

from __future__ import annotations

import math
from dataclasses import replace

from oomguard.estimate.architecture import Architecture
from oomguard.job.training_job import Job
from oomguard.units import GIB

_HALF = 2
#: Beside the weights: its activations, and a cache for a few completions. Assumed, not measured.
_AT_WORK_BYTES = 2 * GIB


def with_engine(job: Job, model: Architecture, gpu_bytes: int) -> Job:
    """Return the job with the least share of a GPU that holds its model in 16 bits.

    In whole hundredths; unchanged where no engine shares the GPUs, or their size is not known.
    """
    if job.asked.engine_share is None or not gpu_bytes:
        return job
    least = model.parameters * _HALF + _AT_WORK_BYTES
    return replace(job, engine_least=math.ceil(100 * least / gpu_bytes) / 100)

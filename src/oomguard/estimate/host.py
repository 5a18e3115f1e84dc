"""The host-side peak of one node while the weights are loaded, and what stays there after."""

from __future__ import annotations

from oomguard.estimate import constants, sharding
from oomguard.estimate.analytic import EstimateInput
from oomguard.estimate.architecture import Architecture
from oomguard.estimate.counts import targeted
from oomguard.estimate.formats import PACKED_BYTES
from oomguard.job.memory_settings import LoftqStart
from oomguard.job.plan import Loftq, Offload, Plan, Quantization, Sharding

_FP32 = 4
#: LoftQ keeps the difference to every level and its absolute value at once (peft/utils/loftq_utils,
#: NFQuantizer.quantize_block).
_LOFTQ_COPIES = 2
_BITSANDBYTES_BITS = 4


def host_peak(problem: EstimateInput) -> dict[str, int]:
    """Return the terms of the peak in bytes, summed over the ranks of one node."""
    ranks = problem.ranks_of_node
    terms = {
        "processes": ranks * constants.PROCESS_BYTES,
        "checkpoint_on_load": ranks * _on_load(problem),
        "offloaded": sharding.offloaded(
            problem.plan,
            ranks,
            problem.ranks,
            weights=problem.model.parameters,
            trained=problem.counts.trained,
        ),
        "offloaded_activations": ranks * _activations(problem),
        "loftq": _loftq(problem),
    }
    return {name: size for name, size in terms.items() if size}


def _on_load(problem: EstimateInput) -> int:
    """Return what one rank holds of the checkpoint beside what goes to the GPU."""
    plan, stored = problem.plan, problem.formats
    whole = problem.model.parameters * stored.base_bytes
    # The files are mapped: what is read into the page cache can be given back at any time.
    mapped = constants.TENSORS_IN_FLIGHT * _largest(problem.model) * stored.base_bytes
    if plan.loftq is not None:
        return mapped if plan.loftq is Loftq.STAGED else whole
    if problem.recipe.code.maps_checkpoint:
        return mapped if _is_single(plan) else whole  # FSDP reads all of it
    if plan.low_cpu_mem_usage is False and plan.sharding is not Sharding.ZERO3:
        return 2 * whole  # the model as initialised, and the checkpoint beside it
    return mapped if _goes_to_gpu(plan) else whole


def _activations(problem: EstimateInput) -> int:
    return problem.step.kept if Offload.ACTIVATIONS in (problem.plan.offload or ()) else 0


def _is_single(plan: Plan) -> bool:
    return plan.sharding in (None, Sharding.NONE)


def _goes_to_gpu(plan: Plan) -> bool:
    """Return whether the framework places weights on the GPU as they are read (a device_map)."""
    quantized = plan.is_quantized
    return quantized or (plan.low_cpu_mem_usage is True and plan.sharding is not Sharding.ZERO3)


def _loftq(problem: EstimateInput) -> int:
    if problem.plan.loftq is None:
        return 0
    matrices = targeted(problem.model, problem.recipe.lora) or problem.model.linears
    largest = max(matrix.inputs * matrix.outputs for matrix in matrices)
    if problem.plan.loftq is Loftq.STAGED:  # one matrix: fp32, its residual, and what it unpacks to
        return 3 * largest * _FP32
    start = problem.recipe.loftq or LoftqStart()
    return _levels(start, largest) + 4 * largest * _FP32


def _largest(model: Architecture) -> int:
    return max(model.embedding, *(matrix.inputs * matrix.outputs for matrix in model.linears))


def _levels(start: LoftqStart, numbers: int) -> int:
    """Return the bytes of a matrix's distance to each level of the format, for every number."""
    if start.bits == _BITSANDBYTES_BITS:  # bitsandbytes quantizes in place
        return int(numbers * PACKED_BYTES[Quantization.NF4])
    return _LOFTQ_COPIES * numbers * (1 << start.bits) * _FP32

"""What no formula gives: contexts, workspaces and buffers, each with its source."""

from __future__ import annotations

from dataclasses import dataclass

from oomguard.units import GIB, MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaOverhead:
    """What CUDA's libraries take on a GPU beside a job's own tensors.

    `context_bytes` is the CUDA context with the loaded kernels of PyTorch, cuBLAS and cuDNN,
    outside PyTorch's allocator. `workspace_bytes` is one cuBLAS workspace, inside it: the forward
    and the backward have one each. `nccl_bytes` is one NCCL communicator.
    """

    context_bytes: int
    workspace_bytes: int
    nccl_bytes: int


#: Context: out-of-memory messages of single processes ("Including non-PyTorch memory, this process
#: has ..."), from 0.25 GiB (Ampere, lazy loading) up. Workspace: `:4096:2:16:8` is 8.125 MiB
#: (torch docs, notes/cuda.rst, CUBLAS_WORKSPACE_CONFIG). NCCL: channels x NCCL_BUFFSIZE (4 MiB)
#: for each of the protocols (NCCL user guide, environment variables).
CUDA = CudaOverhead(
    context_bytes=450 * MIB, workspace_bytes=8 * MIB + 128 * 1024, nccl_bytes=256 * MIB
)
#: On Hopper PyTorch's cuBLAS workspace is 32 MiB. All three measured on an H100, driver 580, CUDA
#: 13.0, torch 2.11 (benchmarks/prediction/gpu/results): 742 to 762 MiB of context over 46 jobs,
#: one communicator of one rank.
CUDA_ON_HOPPER = CudaOverhead(
    context_bytes=758 * MIB, workspace_bytes=32 * MIB, nccl_bytes=564 * MIB
)
#: By how much a context differs between drivers and versions, both ways.
CUDA_CONTEXT_SPREAD_BYTES = 200 * MIB
#: ZeRO-3 prefetches while fewer parameters than this are gathered, and keeps those that are used
#: again within as many (stage3_max_live_parameters, stage3_max_reuse_distance;
#: deepspeed/runtime/zero/config.py, partitioned_param_coordinator.py).
MAX_LIVE_PARAMETERS = 1_000_000_000
#: ZeRO-3 updates this many of a rank's parameters at once (sub_group_size).
SUB_GROUP = 1_000_000_000
#: PyTorch's DDP copies gradients into buckets of their full size
#: (torch/nn/parallel/distributed.py, gradient_as_bucket_view=False).
DDP_GRADIENT_COPIES = 1
#: Reserved and not allocated, where no trace says it: a share of what is allocated, and copies of
#: the fp32 logits, the largest tensors of a step, whose freed blocks are split and not reused.
#: From replays of traced steps: Llama-2-7B QLoRA, 32,768 tokens: 24.06 GiB allocated, 32.14
#: reserved, 27.38 with expandable segments.
SLACK = {False: 0.02, True: 0.01}
SLACK_LOGITS = {False: 1.0, True: 0.4}

#: A Python process with torch and transformers imported and a CUDA context, in host memory.
PROCESS_BYTES = 2 * GIB + 512 * MIB
#: Tensors that a loader which maps its files holds in host memory at once.
TENSORS_IN_FLIGHT = 2

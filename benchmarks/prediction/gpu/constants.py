"""Print what CUDA and cuBLAS take on the card at hand beside a job's own tensors, as JSON.

python benchmarks/prediction/gpu/constants.py cuda
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from nvml import driver, of_this_process


def on_the_card() -> dict[str, Any]:
    """Measure the context, cuBLAS's workspaces and one NCCL communicator, in bytes."""
    card = torch.cuda.get_device_properties(0)
    found: dict[str, Any] = {
        "card": card.name, "total_bytes": card.total_memory, "driver": driver(),
        "capability": f"{card.major}.{card.minor}", "cuda": torch.version.cuda,
    }  # fmt: skip
    torch.zeros(1, device="cuda")
    found["context_bytes"] = _beside_the_allocator()
    matrix = torch.zeros(1024, 1024, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    before = torch.cuda.memory_allocated()
    product = matrix @ matrix
    found["workspace_forward_bytes"] = torch.cuda.memory_allocated() - before - product.nbytes
    linear = torch.nn.functional.linear(matrix, matrix, matrix[0])
    torch.cuda.synchronize()
    left = torch.cuda.memory_allocated() - before - product.nbytes - linear.nbytes
    found["workspace_linear_bytes"] = left
    before = torch.cuda.memory_allocated()
    product.sum().backward()  # in a thread of its own, which has a handle of its own
    found["workspace_backward_bytes"] = torch.cuda.memory_allocated() - before - matrix.nbytes
    found["context_with_cublas_bytes"] = _beside_the_allocator()
    found["nccl_bytes"] = _nccl()
    return found


def _beside_the_allocator() -> int | None:
    """Return what this process holds on the card and PyTorch's allocator does not."""
    torch.cuda.synchronize()
    held = of_this_process()
    return None if held is None else held - torch.cuda.memory_reserved()


def _nccl() -> int | None:
    """Return what a communicator of one rank adds once it has reduced a tensor."""
    before = _beside_the_allocator()
    torch.distributed.init_process_group(
        "nccl", init_method="tcp://127.0.0.1:29517", rank=0, world_size=1
    )
    torch.distributed.all_reduce(torch.zeros(1 << 20, device="cuda"))
    after = _beside_the_allocator()
    torch.distributed.destroy_process_group()
    return None if before is None or after is None else after - before


def main() -> None:
    """Print the figures of the device that is named."""
    cpu = {"card": "cpu", "total_bytes": None}
    print(json.dumps(cpu if sys.argv[1] == "cpu" else on_the_card()))


if __name__ == "__main__":
    main()

"""What a torchtune layer keeps for its backward pass: as PyTorch's partitioner and as traced.

Run in torchtune's environment. Prints one JSON list of {"name", "traced_bytes", "real_bytes"}.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from oomguard_traced_models.compiled import compile_layers
from torch.autograd.graph import saved_tensors_hooks
from torchtune.models.llama3_2 import llama3_2, lora_llama3_2
from torchtune.modules.peft import get_adapter_params, set_trainable_params

SHAPE = {"vocab_size": 64, "num_layers": 1, "num_heads": 12, "num_kv_heads": 4, "embed_dim": 768,
         "max_seq_len": 512, "intermediate_dim": 2048}  # fmt: skip
LORA = {"lora_attn_modules": ["q_proj", "v_proj"], "apply_lora_to_mlp": True, "lora_rank": 8,
        "lora_alpha": 16}  # fmt: skip
TOKENS = 256


def kept_bytes(layer: Callable[[torch.Tensor], torch.Tensor], owned: set[int]) -> int:
    """Sum the storages that autograd saves, those of the model itself left out."""
    found: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    value = torch.randn(2, TOKENS, SHAPE["embed_dim"], dtype=torch.bfloat16, requires_grad=True)
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = layer(value * 1.0)
    del kept
    return sum(found.values())


def measured(name: str, build: Callable[..., Any], **arguments: Any) -> dict[str, Any]:
    """Measure one layer both ways."""
    torch.set_default_dtype(torch.bfloat16)
    model = build(**SHAPE, **arguments)
    torch.set_default_dtype(torch.float32)
    if arguments:
        set_trainable_params(model, get_adapter_params(model))
    changed = copy.deepcopy(model)
    compile_layers(changed.layers)
    real = torch.compile(model.layers[0], backend="aot_eager_decomp_partition")
    return {
        "name": name,
        "traced_bytes": kept_bytes(changed.layers[0], _owned(changed)),
        "real_bytes": kept_bytes(real, _owned(model)),
    }


def _owned(model: torch.nn.Module) -> set[int]:
    tensors = [*model.parameters(), *model.buffers()]
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


def main() -> None:
    found = [measured("full", llama3_2), measured("lora", lora_llama3_2, **LORA)]
    print(found, file=sys.stderr)
    print(f"\n{json.dumps(found)}")


if __name__ == "__main__":
    main()

"""The bytes of states that optimizers keep on a tiny model, made as LLaMA-Factory makes them.

Prints one JSON object of names to bytes. Without a name all but Muon, which is LLaMA-Factory's own
and runs in its environment.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from tiny_models import LLAMA

RANK = 16
PROJECTED = {"rank": RANK, "update_proj_gap": 200, "scale": 0.25, "proj_type": "std"}
APOLLO = PROJECTED | {"proj": "random", "scale_type": "channel", "scale": 1.0}


def model() -> Any:
    """Return the model, its weights in bf16 as pure_bf16 loads them."""
    config = {k: v for k, v in LLAMA.items() if k not in ("model_type", "architectures")}
    made = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
    return made.to(torch.bfloat16)


def matrices(of: Any) -> list[torch.nn.Parameter]:
    """Return what LLaMA-Factory projects: the matrices of all linear layers but the head."""
    return [
        module.weight
        for name, module in of.named_modules()
        if isinstance(module, torch.nn.Linear) and "lm_head" not in name
    ]


def grouped(of: Any, options: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the parameters that are projected, and the others."""
    chosen = matrices(of)
    known = {id(one) for one in chosen}
    rest = [one for one in of.parameters() if id(one) not in known]
    return [{"params": rest}, {"params": chosen, **options}]


def make(name: str, of: Any) -> torch.optim.Optimizer:
    """Make one optimizer."""
    if name == "galore":
        from galore_torch import GaLoreAdamW  # noqa: PLC0415

        return GaLoreAdamW(grouped(of, PROJECTED), lr=1e-4)
    if name == "apollo":
        from apollo_torch import APOLLOAdamW  # noqa: PLC0415

        return APOLLOAdamW(grouped(of, APOLLO), lr=1e-4)
    if name == "adam_mini":
        from adam_mini import Adam_mini  # noqa: PLC0415

        return Adam_mini(
            named_parameters=of.named_parameters(), lr=1e-4, dim=of.config.hidden_size,
            n_heads=of.config.num_attention_heads, n_kv_heads=of.config.num_key_value_heads,
        )  # fmt: skip
    from llamafactory.third_party.muon import Muon  # noqa: PLC0415

    wide = [
        parameter
        for name, parameter in of.named_parameters()
        if parameter.ndim == 2 and "embed" not in name and "lm_head" not in name
    ]
    known = {id(one) for one in wide}
    rest = [one for one in of.parameters() if id(one) not in known]
    return Muon(lr=1e-4, wd=0.0, muon_params=wide, adamw_params=rest)


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors of a state, those of a projector too."""
    if torch.is_tensor(value):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from tensors(one)
    elif type(value).__name__.endswith("Projector"):
        yield from tensors(vars(value))


def kept(name: str) -> int:
    """Step twice and return the bytes of all states."""
    torch.manual_seed(0)
    trained = model()
    optimizer = make(name, trained)
    for _ in range(2):
        for parameter in trained.parameters():
            parameter.grad = torch.randn_like(parameter) * 0.01
        optimizer.step()
    return sum(
        one.numel() * one.element_size()
        for state in optimizer.state.values()
        for one in tensors(state)
    )


def main() -> None:
    """Count for each optimizer."""
    torch.set_num_threads(1)
    names = sys.argv[1:] or ["galore", "apollo", "adam_mini"]
    print("\n" + json.dumps({name: kept(name) for name in names}))


if __name__ == "__main__":
    main()

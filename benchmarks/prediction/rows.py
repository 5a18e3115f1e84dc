"""Turn each published row into a request of the dry run, and say how its figure is compared."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
GIB = 2**30
#: Architecture facts, from the models' own config.json files.
LLAMA_2_7B = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32000,
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "tie_word_embeddings": False,
}  # fmt: skip
LLAMA_31_8B = LLAMA_2_7B | {
    "vocab_size": 128256, "intermediate_size": 14336, "num_key_value_heads": 8,
}  # fmt: skip
GPT2 = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 50257}
CONFIGS: dict[str, dict[str, Any]] = {
    "Llama-2-7b": LLAMA_2_7B,
    "Llama-3.1-8B": LLAMA_31_8B,
    "distilgpt2": GPT2 | {"n_layer": 6, "n_head": 12, "n_embd": 768, "n_positions": 1024},
    "cerebras-gpt-111m": GPT2
    | {"n_layer": 10, "n_head": 12, "n_embd": 768, "n_positions": 2048, "n_inner": 3072,
       "activation_function": "gelu", "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
    "gpt-neo-125m": {
        "model_type": "gpt_neo", "architectures": ["GPTNeoForCausalLM"], "vocab_size": 50257,
        "hidden_size": 768, "num_layers": 12, "num_heads": 12, "intermediate_size": 3072,
        "attention_types": [[["global", "local"], 6]], "max_position_embeddings": 2048,
    },
}  # fmt: skip
#: transformers 4.51.3 computes these with eager attention, whatever it is asked for.
WITHOUT_SDPA = ("gpt-neo-125m",)
TORCHTUNE = {
    "Llama-3.1-8B": "torchtune.models.llama3_1.llama3_1_8b",
    "Llama-3.2-3B": "torchtune.models.llama3_2.llama3_2_3b",
}
QUANTIZATION = {None: "none", "bnb.nf4": "nf4", "bnb.nf4-dq": "nf4-double"}
#: LitGPT's first iteration takes the longest sample; the others of Alpaca are far shorter.
TYPICAL_TOKENS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A published figure: what was measured, and the request that should give it."""

    name: str
    source: str
    environment: str
    request: dict[str, Any]
    measured_bytes: int | None
    capacity_bytes: int | None
    oom: bool
    compared: str  # "allocated": torch's peak; "device": reserved and the context, as NVML sees
    rounding_bytes: int  # half of the last published digit


#: How LLaMA-Factory trains: reentrant checkpointing, and trained weights in fp32.
FACTORY = {
    "loop": "trainer", "use_reentrant": True, "checkpoints_trained_layers": True,
    "weights_dtype": "bf16", "trainable_dtype": "fp32",
}  # fmt: skip


def rows() -> list[Row]:
    """Give every published row, in the order of the file."""
    published = json.loads((HERE / "published_peaks.json").read_text())
    makers = {
        "litgpt": _litgpt,
        "llamafactory": _llamafactory,
        "hf-trainer-loop": xmem,
        "torchtune": _torchtune,
    }
    return [makers[item["framework"]](item) for item in published]


def _request(family: str, config: dict[str, Any], plan: dict[str, Any], recipe: dict[str, Any],
             capacity_bytes: int | None) -> dict[str, Any]:  # fmt: skip
    return {
        "v": 1,
        "model": {"family": family, "config": config},
        "variants": [{"id": "asked", "plan": plan, "recipe": recipe}],
        "capacity_bytes": capacity_bytes,
    }


def _litgpt(item: dict[str, Any]) -> Row:
    batch, tokens = item["micro_batch_size"], item["max_seq_length"]
    quantization = QUANTIZATION[item["quantize"]]
    plan = {
        "micro_batch": batch, "accumulation": 128 // batch, "sequence_length": tokens,
        "precision": "bf16-true", "quantization": quantization, "tuning": "lora",
        "checkpointing": False, "optimizer": "adamw_torch" if quantization == "none" else
        "paged_adamw",
    }  # fmt: skip
    recipe = {
        "loop": "keeps-logits",
        "lora": {"rank": 8, "alpha": 16, "dropout": 0.05, "targets": ["query", "value"]},
        "bitsandbytes_keeps_input": True,  # 0.41.1
        "lengths": [[tokens] * batch, [TYPICAL_TOKENS] * batch],
    }
    capacity = int(item["capacity_gib"] * GIB)
    peak = item["peak_gb"]
    return Row(
        name=f"{item['model']} {quantization} x{batch}", source="LitGPT 2023-10",
        environment="litgpt", capacity_bytes=capacity, oom=item["oom"], compared="allocated",
        request=_request("litgpt", {"name": item["model"]}, plan, recipe, capacity),
        measured_bytes=None if peak is None else int(peak * 1e9), rounding_bytes=5_000_000,
    )  # fmt: skip


def _llamafactory(item: dict[str, Any]) -> Row:
    tokens = item["cutoff_len"]
    plan = {
        "micro_batch": 1, "accumulation": 4, "sequence_length": tokens,
        "precision": "bf16-mixed", "quantization": "nf4-double", "tuning": "lora",
        "checkpointing": True,
    }  # fmt: skip
    recipe = FACTORY | {"lora": {"rank": 8, "alpha": 16, "targets": "all"}}
    capacity = int(item["capacity_gib"] * GIB)
    peak = item["peak_gb"]
    return Row(
        name=f"Llama-2-7b qlora {tokens}", source="LLaMA-Factory wiki",
        environment="llamafactory", capacity_bytes=capacity, oom=item["oom"], compared="device",
        request=_request("hf", CONFIGS[item["model"]], plan, recipe, capacity),
        measured_bytes=None if peak is None else peak * GIB, rounding_bytes=GIB // 2,
    )  # fmt: skip


def xmem(item: dict[str, Any]) -> Row:
    """Follow xMem's loop; of its batches one row is shorter, since most lines of WikiText are."""
    batch, tokens = item["micro_batch_size"], item["max_seq_length"]
    optimizer = {"AdamW": "adamw_torch", "Adam": "adamw_torch", "SGD": "sgd"}[item["optimizer"]]
    plan = {
        "micro_batch": batch, "accumulation": 1, "sequence_length": tokens, "precision": "fp32",
        "tuning": "full", "checkpointing": False, "optimizer": optimizer,
    }  # fmt: skip
    recipe = {
        "loop": "script", "max_grad_norm": 0, "use_cache": True,
        "attention": "eager" if item["model"] in WITHOUT_SDPA else "sdpa",
        "lengths": [[tokens] * (batch - 1) + [tokens // 2]],
    }  # fmt: skip
    return Row(
        name=f"{item['model']} {item['optimizer']} x{batch}", source="xMem artifact",
        environment="xmem", capacity_bytes=None, oom=item["oom"], compared="device",
        request=_request("hf", CONFIGS[item["model"]], plan, recipe, None),
        measured_bytes=item["peak_bytes"], rounding_bytes=1 << 20,
    )  # fmt: skip


def _torchtune(item: dict[str, Any]) -> Row:
    """Follow the flags that its README states; it logs PyTorch's own counters, no context."""
    lora, method = item["lora"], item["method"]
    builder, tokens = TORCHTUNE[item["model"]], item["max_seq_length"]
    path, name = builder.rsplit(".", 1)
    component = {"_component_": f"{path}.lora_{name}", **lora} if lora else {"_component_": builder}
    plan = {
        "micro_batch": item["micro_batch_size"], "accumulation": 1, "sequence_length": tokens,
        "precision": "bf16-true", "tuning": "lora" if lora else "full",
        "quantization": "nf4-double" if method == "qlora" else "none",
        "checkpointing": item["checkpointing"], "optimizer": item["optimizer"],
        "loss_kernel": "fused" if item["chunked_loss"] else "eager",
        "offload": ["activations"] if item["offload_activations"] else [],
    }  # fmt: skip
    recipe = {
        "loop": "sums-losses", "max_grad_norm": 0.0, "fused": True,
        "step_in_backward": item["step_in_backward"], "compiled": item["compile"],
        "lora": {"rank": lora["lora_rank"], "alpha": lora["lora_alpha"], "targets": [
            *("o_proj" if one == "output_proj" else one for one in lora["lora_attn_modules"]),
            *(("gate_proj", "up_proj", "down_proj") if lora["apply_lora_to_mlp"] else ()),
        ]} if lora else None,
    }  # fmt: skip
    flags = ("compile", "chunked_loss", "checkpointing", "step_in_backward", "offload_activations")
    said = [flag.replace("_", " ") for flag in flags if item[flag]]
    capacity = int(item["capacity_gib"] * GIB)
    return Row(
        name=f"{item['model']} {method}, {', '.join([*said, item['optimizer'].rsplit('.')[-1]])}",
        source="torchtune README", environment="torchtune", capacity_bytes=capacity,
        oom=item["oom"], compared="allocated",
        request=_request("torchtune", component, plan, recipe, capacity),
        measured_bytes=int(item["peak_gib"] * GIB), rounding_bytes=GIB // 20,
    )  # fmt: skip

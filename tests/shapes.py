"""Model shapes, recipes and problems that the tests of the estimate share."""

from __future__ import annotations

from dataclasses import replace

from oomguard.adapters import litgpt_memory, llamafactory_memory
from oomguard.catalogue.shipped import transformers_config
from oomguard.estimate.analytic import EstimateInput
from oomguard.estimate.architecture import Architecture, from_config
from oomguard.job.memory_settings import ALL_LINEAR, Family, Format, Lora, MemorySettings
from oomguard.job.plan import Plan, Precision, Quantization, Tuning


def model(name: str) -> Architecture:
    found = transformers_config(name)
    assert found is not None, name
    return from_config(found.config)


LLAMA3 = model("meta-llama/Meta-Llama-3-8B")
LORA = Plan(
    micro_batch=1,
    accumulation=8,
    sequence_length=2048,
    checkpointing=True,
    precision=Precision.BF16_MIXED,
    quantization=Quantization.NONE,
    tuning=Tuning.LORA,
    lora_rank=8,
    optimizer="adamw_torch",
)
FACTORY = MemorySettings(
    code=llamafactory_memory.CODE,
    base=Format.BF16,
    lora=Lora(rank=8, alpha=16, targets=(ALL_LINEAR,)),
)
LITGPT = MemorySettings(
    code=litgpt_memory.CODE,
    family=Family.LITGPT,
    trained_fp32=False,
    lora=Lora(rank=8, alpha=16, targets=("query", "value"), dropout=0.05),
    loss_chunk=128,
    max_grad_norm=None,
)
#: config.json files of a 1B and a 7B model.
LLAMA_1B: dict[str, object] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
LLAMA_7B = LLAMA_1B | {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
}
#: A config of LLaMA-Factory with a model of the catalogue.
LLAMA_YAML = """
model_name_or_path: meta-llama/Meta-Llama-3-8B
stage: sft
finetuning_type: lora
lora_target: all
dataset: alpaca
template: llama3
cutoff_len: 2048
per_device_train_batch_size: 8
gradient_accumulation_steps: 2
bf16: true
output_dir: out
"""


def problem(
    plan: Plan = LORA,
    recipe: MemorySettings = FACTORY,
    model: Architecture = LLAMA3,
    *,
    ranks: int = 1,
    **changes: object,
) -> EstimateInput:
    return EstimateInput(
        model=model,
        plan=replace(plan, **changes),  # type: ignore[arg-type]
        recipe=recipe,
        ranks=ranks,
        ranks_of_node=ranks,
    )

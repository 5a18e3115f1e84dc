"""Jobs of each framework that the tests of what is read change in one place."""

from __future__ import annotations

LF = """
model_name_or_path: Qwen/Qwen2.5-0.5B
do_train: true
finetuning_type: lora
lora_target: all
dataset: mine
template: qwen
cutoff_len: 512
per_device_train_batch_size: 1
bf16: true
output_dir: out
"""

AXOLOTL = """
base_model: Qwen/Qwen2.5-0.5B
adapter: lora
lora_r: 8
lora_target_modules: [q_proj, v_proj]
lora_mlp_kernel: false
datasets: [{path: mine, type: alpaca}]
sequence_len: 512
micro_batch_size: 1
bf16: true
output_dir: out
"""

TORCHTUNE = """
tokenizer: {_component_: torchtune.models.llama3.llama3_tokenizer, max_seq_len: 512}
model:
  _component_: torchtune.models.llama3_2.lora_llama3_2_1b
  lora_attn_modules: [q_proj, v_proj]
  lora_rank: 8
checkpointer: {checkpoint_dir: /data/Llama-3.2-1B}
batch_size: 1
dtype: bf16
output_dir: out
"""

ADAMW = "optimizer: {_component_: torch.optim.AdamW}\n"

TRL = """
model_name_or_path: Qwen/Qwen2.5-0.5B
dataset_name: mine
max_length: 512
bf16: true
output_dir: out
"""

SWIFT = "swift sft --model Qwen/Qwen2.5-0.5B --tuner_type lora --torch_dtype bfloat16 --dataset d"

RLHF = SWIFT.replace("swift sft", "swift rlhf")

TRL_COMMAND = "{} --model_name_or_path Qwen/Qwen2.5-0.5B --dataset_name d --output_dir o"

SCRIPT = (
    "python {} --model_name_or_path Qwen/Qwen2.5-0.5B --per_device_train_batch_size 8 --bf16"
    " --max_length 512 --output_dir o"
)

#: Described, but for what these settings do.
UNMEASURED = {("ms_swift", "grpo"): ["rlhf_type", "dataset"]}

#: The methods whose step an adapter describes.
DESCRIBED = {
    "trl": ("dpo", "reward"),
    "llamafactory": ("dpo", "orpo", "simpo", "kto", "reward"),
    "axolotl": ("reward", "dpo", "kto", "orpo", "simpo"),
    "ms_swift": ("classification", "dpo", "kto", "orpo", "simpo", "cpo", "reward"),
    "hf_trainer": ("classification",),
    "torchtune": ("dpo",),
}

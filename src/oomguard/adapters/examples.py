"""A usual job of each framework: what shows how it spells a change, where the user's is not known.

Each is a command and, where the command names one, its config. Only settings that decide how a
change is written are in it.
"""

from __future__ import annotations

from oomguard.adapters.contract import Adapter, JobRequest
from oomguard.configfile.document import Source
from oomguard.job.training_job import Job

#: Samples of a micro batch, and micro batches of a step, in every example.
MICRO_BATCH, ACCUMULATION = 4, 4
_CWD, _CONFIG = "/job", "/job/train.yaml"
_GPUS = 2
_TORCHRUN = ("torchrun", "--nproc-per-node", str(_GPUS))
_TRAINER = f"""
per_device_train_batch_size: {MICRO_BATCH}
per_device_eval_batch_size: 8
gradient_accumulation_steps: {ACCUMULATION}
gradient_checkpointing: false
bf16: true
optim: adamw_torch
dataloader_num_workers: 4
output_dir: out
eval_strategy: steps
"""
_FLAGS = tuple(
    word
    for line in (*_TRAINER.strip().splitlines(), "model_name_or_path: model", "max_length: 2048")
    for word in (f"--{line.split(': ')[0]}", line.split(": ")[1])
)
_MODEL = "model: Qwen/Qwen2.5-7B-Instruct\n"
_QWEN = (
    *("--model_name_or_path", "Qwen/Qwen-7B-Chat", "--data_path", "data.json", "--bf16", "True"),
    *("--per_device_train_batch_size", str(MICRO_BATCH), "--model_max_length", "2048"),
    *("--gradient_accumulation_steps", str(ACCUMULATION), "--output_dir", "out", "--use_lora"),
)
#: framework -> (command, text of the config that it names)
_EXAMPLES: dict[str, tuple[tuple[str, ...], str | None]] = {
    "llamafactory": (
        ("llamafactory-cli", "train", _CONFIG),
        "model_name_or_path: Qwen/Qwen2.5-7B-Instruct\nstage: sft\ndo_train: true\n"
        "finetuning_type: lora\nlora_rank: 16\ndataset: alpaca_en_demo\ntemplate: qwen\n"
        "cutoff_len: 2048\npreprocessing_num_workers: 16\n" + _TRAINER,
    ),
    "litgpt": (
        ("litgpt", "finetune_lora", "--config", _CONFIG),
        (
            "checkpoint_dir: checkpoints/meta-llama/Meta-Llama-3-8B\nout_dir: out\n"
            f"precision: bf16-true\ndevices: {_GPUS}\nlora_r: 32\n"
            "data:\n  class_path: litgpt.data.Alpaca2k\n"
            f"train:\n  global_batch_size: {_GPUS * MICRO_BATCH * ACCUMULATION}\n"
            f"  micro_batch_size: {MICRO_BATCH}\n  max_seq_length: 2048\n"
        ),
    ),
    "hf_trainer": ((*_TORCHRUN, "train.py", *_FLAGS), None),
    "trl": (
        ("trl", "sft", "--config", _CONFIG),
        "model_name_or_path: Qwen/Qwen2.5-7B\ndataset_name: trl-lib/Capybara\nmax_length: 2048\n"
        "use_peft: true\nlora_r: 16\n" + _TRAINER,
    ),
    "qwen": ((*_TORCHRUN, "finetune.py", *_QWEN), None),
    "axolotl": (
        ("axolotl", "train", _CONFIG),
        (
            "base_model: NousResearch/Llama-3.2-1B\nadapter: lora\nlora_r: 16\nlora_alpha: 32\n"
            "lora_target_linear: true\nsequence_len: 2048\n"
            "datasets:\n  - path: data\n    type: alpaca\n"
            f"micro_batch_size: {MICRO_BATCH}\ngradient_accumulation_steps: {ACCUMULATION}\n"
            "eval_batch_size: 8\ngradient_checkpointing: false\nbf16: true\n"
            "optimizer: adamw_torch\n"
            "output_dir: out\ndataloader_num_workers: 4\ndataset_processes: 8\nval_set_size: 0.05\n"
        ),
    ),
    "torchtune": (
        ("tune", "run", "lora_finetune_single_device", "--config", _CONFIG),
        (
            "output_dir: out\nmodel:\n  _component_: torchtune.models.llama3_1.lora_llama3_1_8b\n"
            "  lora_attn_modules: [q_proj, v_proj]\n  lora_rank: 8\n  lora_alpha: 16\n"
            "tokenizer:\n  _component_: torchtune.models.llama3.llama3_tokenizer\n"
            "  path: tokenizer.model\n  max_seq_len: 2048\n"
            "dataset:\n  _component_: torchtune.datasets.alpaca_dataset\n"
            "optimizer:\n  _component_: torch.optim.AdamW\n  fused: true\n"
            "loss:\n  _component_: torchtune.modules.loss.LinearCrossEntropyLoss\n"
            f"batch_size: {MICRO_BATCH}\ngradient_accumulation_steps: {ACCUMULATION}\nepochs: 1\n"
            "device: cuda\ndtype: bf16\nenable_activation_checkpointing: false\n"
            "enable_activation_offloading: false\ncompile: false\n"
        ),
    ),
    "ms_swift": (
        ("swift", "sft", _CONFIG),
        _MODEL + "dataset: data\nmax_length: 2048\n" + _TRAINER.replace("bf16: true\n", ""),
    ),
}


def example_of(adapter: Adapter) -> Job | None:
    """Return a usual job of a framework; None where one could not stand for others."""
    if adapter.name not in _EXAMPLES:
        return None
    argv, text = _EXAMPLES[adapter.name]
    source = Source(path=_CONFIG, text=text) if text else None
    return adapter.read(JobRequest(argv=argv, cwd=_CWD, source=source, gpus=_GPUS))

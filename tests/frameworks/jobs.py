"""A small real job per framework, as a user would have it: 16 samples at once, one step each.

Each function writes a folder with model, data and config, and gives the command that starts
it by hand. The logits (tokens x vocabulary) outweigh all else, so memory follows the micro
batch, and `cap_bytes` lies between what a micro batch of 4 and one of 8 need.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import platformdirs
import yaml
from assets import QUICKSTART, RECIPES
from caps import peak_data_bytes
from environments import environment
from filelock import FileLock

GLOBAL_BATCH = 16

_LLAMAFACTORY = """\
# A LoRA fine-tune of a tiny Llama; these comments are the user's own.
model_name_or_path: model  # random weights
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all

# data
dataset: tiny
dataset_dir: data
template: default
cutoff_len: 256
preprocessing_num_workers: 1
dataloader_num_workers: 0

# what one optimizer step is made of
per_device_train_batch_size: 16  # all at once
gradient_accumulation_steps: 1
learning_rate: 1.0e-3
max_steps: 3

output_dir: out
overwrite_output_dir: true
logging_steps: 1
save_strategy: "no"
plot_loss: false
report_to: none
use_cpu: true
"""

#: LitGPT's recipe in the job's own folder, without what only LoRA has.
_LITGPT = (
    (RECIPES / "litgpt" / "tiny.yaml")
    .read_text()
    .replace("tiny/litgpt/", "")
    .replace("out/litgpt", "out")
    .replace("lora_r: 8\n", "")
)

_HF_FLAGS = """\
# What is trained, and on what.
model_name_or_path: model  # random weights
train_file: data/train.json
max_length: 256

# what one optimizer step is made of
per_device_train_batch_size: 16  # all at once
gradient_accumulation_steps: 1
learning_rate: 1.0e-3
max_steps: 3

output_dir: out
logging_steps: 1
save_strategy: "no"
report_to: none
use_cpu: true
"""

_TRL = """\
# What is trained, and on what.
model_name_or_path: model  # random weights
dataset_name: data/pairs
max_length: 256
gradient_checkpointing: false
bf16: false

# what one optimizer step is made of
per_device_train_batch_size: 16  # all at once
gradient_accumulation_steps: 1
max_steps: 3

output_dir: out
logging_steps: 1
save_strategy: "no"
report_to: none
use_cpu: true
"""

_SWIFT = """\
# A LoRA fine-tune of a tiny Llama; these comments are the user's own.
model: model  # random weights
model_type: llama
template: dummy
tuner_type: lora
lora_rank: 8
torch_dtype: float32
fp16: false
use_hf: true

# data
dataset: data/train.json
split_dataset_ratio: 0
max_length: 256
truncation_strategy: right
dataset_num_proc: 1
dataloader_num_workers: 0

# what one optimizer step is made of
per_device_train_batch_size: 16  # all at once
gradient_accumulation_steps: 1
gradient_checkpointing: false
learning_rate: 1.0e-3
max_steps: 3

output_dir: out
add_version: false
logging_steps: 1
save_steps: 3
report_to: none
use_cpu: true
"""
#: What `swift rlhf` is told besides: the names of the columns, and logits of every token.
_SWIFT_PAIRS = """\
dataset: data/pairs/train.jsonl
columns:
  prompt: query
  chosen: response
  rejected: rejected_response
rlhf_type: dpo
use_logits_to_keep: false
"""

_AXOLOTL = """\
# A LoRA fine-tune of a tiny Llama; these comments are the user's own.
base_model: model  # random weights
adapter: lora
lora_r: 8
lora_alpha: 16
lora_target_linear: true
bf16: false
fp16: false
tf32: false
# Triton's, for GPUs: axolotl switches them on where nothing is said.
lora_mlp_kernel: false
lora_qkv_kernel: false
lora_o_kernel: false
lora_embedding_kernel: false

# data
datasets:
  - path: data/train.json
    ds_type: json
    type: alpaca
val_set_size: 0
sequence_len: 256
excess_length_strategy: truncate
sample_packing: false
dataset_num_proc: 1
dataloader_num_workers: 0

# what one optimizer step is made of
micro_batch_size: 16  # all at once
gradient_accumulation_steps: 1
learning_rate: 1.0e-3
lr_scheduler: constant
optimizer: adamw_torch
max_steps: 3

output_dir: out
logging_steps: 1
save_strategy: "no"
"""

#: What is generated from each prompt, and a reward that differs between the completions of one.
_GENERATED = """\
reward_funcs: [rewards.spread]
num_generations: 4
max_completion_length: 8
"""
_REWARD = """\
def spread(completion_ids, **_):
    return [float(sum(ids) % 7) for ids in completion_ids]
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyJob:
    """A job in `folder` (its working folder).

    `config` is the file for `oomguard launch`, `argv` the command by hand, `env` its whole
    environment, `smaller` gives the flags for a micro batch at the same global batch.
    """

    name: str
    folder: Path
    python: Path
    config: Path
    argv: tuple[str, ...]
    env: Mapping[str, str]
    smaller: Callable[[int], tuple[str, ...]]

    def by_hand(self, micro_batch: int) -> tuple[str, ...]:
        """Return the command with another micro batch and the accumulation that makes up for it."""
        return (*self.argv, *self.smaller(micro_batch))


def llamafactory_job(folder: Path, *assets: str) -> TinyJob:
    """Write a LLaMA-Factory LoRA job: `train.yaml` for `llamafactory-cli train`."""
    python = environment("llamafactory")
    _make_assets(python, "llama", folder, *assets)
    (folder / "data" / "dataset_info.json").write_text('{"tiny": {"file_name": "train.json"}}')
    return TinyJob(
        name="llamafactory",
        folder=folder,
        python=python,
        config=_written(folder / "train.yaml", _LLAMAFACTORY),
        argv=(str(python.with_name("llamafactory-cli")), "train", "train.yaml"),
        env=_environ(folder, python),
        smaller=lambda micro: (
            f"per_device_train_batch_size={micro}",
            f"gradient_accumulation_steps={GLOBAL_BATCH // micro}",
        ),
    )


def llamafactory_pairs_job(stage: str, folder: Path) -> TinyJob:
    """Write a LLaMA-Factory LoRA job of a preference stage, on pairs of 256 tokens and more."""
    job = llamafactory_job(folder, "--pairs")
    columns = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
    pairs = {"file_name": "pairs/train.jsonl", "ranking": True, "columns": columns}
    info = {"tiny": _tagged(folder / "data") if stage == "kto" else pairs}
    (folder / "data" / "dataset_info.json").write_text(json.dumps(info))
    text = job.config.read_text().replace("stage: sft", f"stage: {stage}")
    return replace(job, name=f"llamafactory-{stage}", config=_written(job.config, text))


def _tagged(data: Path) -> dict[str, object]:
    """Write each sample as a good answer or a bad one, in turn, and return how to read them."""
    rows = json.loads((data / "train.json").read_text())
    tagged = [row | {"good": number % 2 == 0} for number, row in enumerate(rows)]
    (data / "tagged.json").write_text(json.dumps(tagged))
    columns = {"prompt": "instruction", "query": "input", "response": "output", "kto_tag": "good"}
    return {"file_name": "tagged.json", "columns": columns}


def litgpt_job(folder: Path) -> TinyJob:
    """Write a LitGPT LoRA job: `train.yaml` for `litgpt finetune_lora`."""
    python = environment("litgpt")
    _make_assets(python, "litgpt", folder)
    litgpt = str(python.with_name("litgpt"))
    return TinyJob(
        name="litgpt",
        folder=folder,
        python=python,
        config=_written(folder / "train.yaml", _LITGPT),
        argv=(litgpt, "finetune_lora", "model", "--config", "train.yaml"),
        env=_environ(folder, python),
        smaller=lambda micro: ("--train.micro_batch_size", str(micro)),
    )


def hf_job(folder: Path) -> TinyJob:
    """Write a job for the quickstart's training script, its flags in `train.yaml`."""
    python = environment("hf")
    _make_assets(python, "llama", folder)
    script = str(QUICKSTART / "train.py")
    block = f"oomguard:\n  command: [{json.dumps(str(python))}, {json.dumps(script)}]\n\n"
    flags = yaml.safe_load(_HF_FLAGS).items()
    words = [word for key, value in flags for word in (f"--{key}", str(value))]
    return TinyJob(
        name="hf",
        folder=folder,
        python=python,
        config=_written(folder / "train.yaml", block + _HF_FLAGS),
        argv=(str(python), script, *words),
        env=_environ(folder, python),
        smaller=lambda micro: (
            *("--per_device_train_batch_size", str(micro)),
            *("--gradient_accumulation_steps", str(GLOBAL_BATCH // micro)),
        ),
    )


def swift_job(folder: Path) -> TinyJob:
    """Write an ms-swift LoRA job: `train.yaml` for `swift sft`."""
    return _swift_job("sft", folder, _SWIFT)


def swift_pairs_job(folder: Path) -> TinyJob:
    """Write an ms-swift LoRA job on pairs: `train.yaml` for `swift rlhf`."""
    text = _SWIFT.replace("dataset: data/train.json\n", _SWIFT_PAIRS)
    return _swift_job("rlhf", folder, text, "--pairs")


def _swift_job(command: str, folder: Path, text: str, *data: str) -> TinyJob:
    python = environment("swift")
    _make_assets(python, "llama", folder, "--vocabulary", "16384", *data)
    return TinyJob(
        name=f"swift-{command}",
        folder=folder,
        python=python,
        config=_written(folder / "train.yaml", text),
        argv=(str(python.with_name("swift")), command, "train.yaml"),
        env=_environ(folder, python),
        smaller=lambda micro: (
            *("--per_device_train_batch_size", str(micro)),
            *("--gradient_accumulation_steps", str(GLOBAL_BATCH // micro)),
        ),
    )


def axolotl_job(folder: Path) -> TinyJob:
    """Write an axolotl LoRA job: `train.yaml` for `axolotl train`."""
    python = environment("axolotl")
    _make_assets(python, "llama", folder, "--vocabulary", "16384")
    return TinyJob(
        name="axolotl",
        folder=folder,
        python=python,
        config=_written(folder / "train.yaml", _AXOLOTL),
        argv=(str(python.with_name("axolotl")), "train", "train.yaml", "--launcher", "python"),
        env={**_environ(folder, python), "AXOLOTL_DO_NOT_TRACK": "1"},
        smaller=lambda micro: (
            *("--micro-batch-size", str(micro)),
            *("--gradient-accumulation-steps", str(GLOBAL_BATCH // micro)),
        ),
    )


def trl_job(command: str, folder: Path, data: str = "--pairs") -> TinyJob:
    """Write a job for `trl COMMAND` on pairs, no answer of which is cut at 256 tokens.

    TRL computes the loss without the full logits: activations are what follows the micro batch.
    """
    python = environment("trl")
    shape = ("--hidden", "256", "--layers", "4", "--vocabulary", "1024", "--words", "236")
    _make_assets(python, "llama", folder, *shape, data)
    trl = str(python.with_name("trl"))
    return TinyJob(
        name=f"trl-{command}",
        folder=folder,
        python=python,
        config=_written(folder / "train.yaml", _TRL),
        argv=(trl, command, "--config", "train.yaml"),
        env=_environ(folder, python),
        smaller=lambda micro: (
            *("--per_device_train_batch_size", str(micro)),
            *("--gradient_accumulation_steps", str(GLOBAL_BATCH // micro)),
        ),
    )


def trl_generating_job(command: str, folder: Path) -> TinyJob:
    """Write a job for `trl COMMAND` that generates a few tokens after each prompt of 236 words."""
    job = trl_job(command, folder, "--prompts")
    _written(folder / "rewards.py", _REWARD)
    text = _TRL.replace("data/pairs", "data/prompts").replace("max_length: 256\n", _GENERATED)
    return replace(job, config=_written(job.config, text))


def cap_bytes(job: TinyJob) -> int:
    """Return the limit on data memory under which the job fits at 4 and not at 8.

    Measured once for each environment, config and machine, and kept beside the environments.
    """
    what = (job.argv[1:], job.config.read_text(), str(job.python), platform.uname(), os.cpu_count())
    digest = hashlib.sha256(repr(what).encode()).hexdigest()[:12]
    kept = platformdirs.user_cache_path("oomguard") / "caps" / f"{job.name}-{digest}.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{kept}.lock"):
        if not kept.exists():
            peaks = {micro: _peak(job, micro) for micro in (4, 8)}
            _written(kept, json.dumps(peaks))
    measured: dict[str, int] = json.loads(kept.read_text())
    return sum(measured.values()) // len(measured)


def _peak(job: TinyJob, micro_batch: int) -> int:
    return peak_data_bytes(job.by_hand(micro_batch), cwd=job.folder, env=job.env)


def _make_assets(python: Path, kind: str, folder: Path, *words: str) -> None:
    script = Path(__file__).with_name("assets.py")
    subprocess.run(
        [python, script, kind, folder, *words],
        env=_environ(folder, python),
        check=True,
        capture_output=True,
    )


def _environ(folder: Path, python: Path) -> dict[str, str]:
    """Return a job's environment: no hub, caches in its own folder, torchrun and the like first."""
    return {
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(folder),
        "HF_HOME": str(folder / "hf-home"),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "OMP_NUM_THREADS": "2",
    }


def _written(path: Path, text: str) -> Path:
    beside = path.with_suffix(".new")
    beside.write_text(text)
    return beside.replace(path)

"""What torchtune's settings say of memory beyond the plan.

Source: torchtune 0.6.1, recipes/{lora,full}_finetune_single_device.py, models/*/_model_builders.py.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from types import MappingProxyType

from oomguard.adapters import fields
from oomguard.configfile.layered import Settings
from oomguard.job.memory_settings import Family, Loop, Lora, MemorySettings, TrainingCode
from oomguard.job.plan import Tuning
from oomguard.job.training_job import Job

#: Models of one size have a builder of their own; the folder of weights may be called anything.
_MODELS = {
    "llama2_7b": "meta-llama/Llama-2-7b-hf",
    "llama2_13b": "meta-llama/Llama-2-13b-hf",
    "llama2_70b": "meta-llama/Llama-2-70b-hf",
    "code_llama2_7b": "codellama/CodeLlama-7b-hf",
    "code_llama2_13b": "codellama/CodeLlama-13b-hf",
    "llama3_8b": "meta-llama/Meta-Llama-3-8B",
    "llama3_70b": "meta-llama/Meta-Llama-3-70B",
    "llama3_1_8b": "meta-llama/Llama-3.1-8B",
    "llama3_1_70b": "meta-llama/Llama-3.1-70B",
    "llama3_1_405b": "meta-llama/Llama-3.1-405B",
    "llama3_2_1b": "meta-llama/Llama-3.2-1B",
    "llama3_2_3b": "meta-llama/Llama-3.2-3B",
    "llama3_3_70b": "meta-llama/Llama-3.3-70B",
    "mistral_7b": "mistralai/Mistral-7B-v0.1",
    "gemma_2b": "google/gemma-2b",
    "gemma_7b": "google/gemma-7b",
    "gemma2_2b": "google/gemma-2-2b",
    "gemma2_9b": "google/gemma-2-9b",
    "gemma2_27b": "google/gemma-2-27b",
    "phi3_mini": "microsoft/Phi-3-mini-4k",
    "phi4_14b": "microsoft/phi-4",
    "qwen2_0_5b": "Qwen/Qwen2-0.5B",
    "qwen2_1_5b": "Qwen/Qwen2-1.5B",
    "qwen2_7b": "Qwen/Qwen2-7B",
    "qwen2_5_0_5b": "Qwen/Qwen2.5-0.5B",
    "qwen2_5_1_5b": "Qwen/Qwen2.5-1.5B",
    "qwen2_5_3b": "Qwen/Qwen2.5-3B",
    "qwen2_5_7b": "Qwen/Qwen2.5-7B",
    "qwen2_5_14b": "Qwen/Qwen2.5-14B",
    "qwen2_5_32b": "Qwen/Qwen2.5-32B",
    "qwen2_5_72b": "Qwen/Qwen2.5-72B",
}
_COMPONENT = "_component_"
LORA_RANK = fields.number("model.lora_rank", 8)
IN_BACKWARD = fields.flag("optimizer_in_bwd")
_MLP = ("gate_proj", "up_proj", "down_proj")


#: torchtune 0.6.1, recipes/*_finetune_single_device.py, modules/loss/ce_chunked_output_loss.py.
CODE = TrainingCode(
    loop=Loop.SUMS_LOSSES,
    fsdp_casts_parameters=False,
    dropout_per_matrix=False,
    chunked_loss=True,
    torchao_nf4=True,
)


def memory_settings_of(settings: Settings, job: Job) -> MemorySettings:
    """Read it; torchtune keeps every number in the format that `dtype` names."""
    component = _component(settings)
    packed = fields.flag("dataset.packed").of(settings)
    return MemorySettings(
        code=CODE,
        model=model_of(settings, "model", "checkpointer"),
        family=Family.TORCHTUNE,
        component=component,
        trained_fp32=False,
        lora=_lora(settings) if job.asked.tuning is Tuning.LORA else None,
        optimizer=job.asked.optimizer or "AdamW",
        fused=fields.flag("optimizer.fused").of(settings),
        max_grad_norm=fields.fraction("clip_grad_norm", 0.0).of(settings),
        step_in_backward=IN_BACKWARD.of(settings),
        compiled=fields.flag("compile").of(settings),
        packing=packed,
        padded=packed,
        data=_data(settings, job.cwd),
    )


def _component(settings: Settings) -> Mapping[str, object]:
    """Return the builder and its arguments, those of the command line among them."""
    stated = settings.get("model")
    names = tuple(stated) if isinstance(stated, dict) else ()
    return MappingProxyType({name: settings.get(f"model.{name}") for name in names})


def model_of(settings: Settings, key: str, checkpointer: str) -> str | None:
    """Return the model of a builder: by its name, else by the folder that its weights lie in."""
    builder = str(settings.get(f"{key}.{_COMPONENT}") or "").replace("_reward_", "_")
    bare = builder.rsplit(".", 1)[-1].removesuffix("_base").removesuffix("_instruct")
    bare = bare.removeprefix("qlora_").removeprefix("lora_")
    folder = settings.get(f"{checkpointer}.checkpoint_dir")
    if bare in _MODELS or not isinstance(folder, str):
        return _MODELS.get(bare)
    return posixpath.normpath(folder)


def _lora(settings: Settings) -> Lora:
    """Return the adapted matrices in transformers' words."""
    named = settings.get("model.lora_attn_modules")
    attention = [str(name) for name in named] if isinstance(named, list) else []
    targets = ["o_proj" if name == "output_proj" else name for name in attention]
    if fields.flag("model.apply_lora_to_mlp").of(settings):
        targets += _MLP
    if fields.flag("model.apply_lora_to_output").of(settings):
        targets.append("lm_head")
    return Lora(
        rank=LORA_RANK.of(settings),
        alpha=int(fields.fraction("model.lora_alpha", 16).of(settings)),
        targets=tuple(targets),
        dropout=fields.fraction("model.lora_dropout", 0.0).of(settings),
        dora=fields.flag("model.use_dora").of(settings),
    )


def _data(settings: Settings, cwd: str) -> tuple[str, ...]:
    files = settings.get("dataset.data_files")
    named = files if isinstance(files, list) else [files]
    return tuple(posixpath.join(cwd, file) for file in named if isinstance(file, str))

"""Every setting that is read decides the fields that its framework's table states."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from decided import Example, between, of_job, twice
from oomguard.adapters.axolotl import Axolotl
from oomguard.adapters.config_adapter import ConfigAdapter
from oomguard.adapters.effects import Effect
from oomguard.adapters.litgpt import LitGPT
from oomguard.adapters.llamafactory import LlamaFactory
from oomguard.adapters.ms_swift import MsSwift
from oomguard.adapters.peft_loftq import PeftLoftq
from oomguard.adapters.qwen import Qwen
from oomguard.adapters.registry import ADAPTERS
from oomguard.adapters.settings import litgpt_settings, script_settings, trl_settings
from oomguard.adapters.settings.groups import SettingGroups
from oomguard.adapters.settings.page import settings_tables
from oomguard.adapters.settings.swift_settings import SWIFT as SWIFT_SETTINGS
from oomguard.adapters.settings.swift_settings import SWIFT_RLHF as SWIFT_RLHF_SETTINGS
from oomguard.adapters.torchtune import Torchtune
from oomguard.adapters.trl import Trl
from oomguard.job.unmodelled import Direction, TrainingMethod

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"
VISION = "model_name_or_path: Qwen/Qwen2.5-VL-7B-Instruct\ntemplate: qwen2_vl\n"
#: Settings at another value than in the job of a case; several where one does not show all that
#: they decide.
TRAINER = {
    "per_device_train_batch_size": [Example("2")],
    "gradient_accumulation_steps": [Example("2")],
    "per_device_eval_batch_size": [Example("2")],
    "eval_accumulation_steps": [Example("2")],
    "prediction_loss_only": [Example("true")],
    "auto_find_batch_size": [Example("true")],
    "optim": [Example("adafactor")],
    "dataloader_num_workers": [Example("2")],
    "dataloader_pin_memory": [Example("false")],
    "bf16": [Example("true")],
    "fp16": [Example("true")],
    "deepspeed": [
        Example(
            "{zero_optimization: {stage: 3, overlap_comm: true, reduce_bucket_size: 9, "
            "offload_optimizer: {device: cpu}}, optimizer: {type: Lion}}"
        )
    ],
    "fsdp": [Example("full_shard")],
    "use_cpu": [Example("true")],
    "output_dir": [Example("other")],
}
LLAMAFACTORY = {
    **TRAINER,
    "finetuning_type": [Example("freeze")],
    "stage": [Example("rm", "enable_liger_kernel: true\nlora_dropout: 0.1\n"), Example("pt"),
              Example("dpo", "lora_dropout: 0.1\n"), Example("kto", "lora_dropout: 0.1\n")],
    "pref_loss": [Example("orpo", "stage: dpo\n")],
    "ref_model": [Example("other", "stage: dpo\n")],
    "ref_model_quantization_bit": [Example("8", "stage: dpo\nref_model: m\n")],
    "model_name_or_path": [Example("Qwen/Qwen2.5-VL-7B-Instruct")],
    "template": [Example("qwen2_vl")],
    "media_dir": [Example("images")],
    "image_max_pixels": [Example("99")],
    "image_min_pixels": [Example("99")],
    "video_max_pixels": [Example("99")],
    "video_fps": [Example("1.0")],
    "freeze_vision_tower": [Example("false", VISION)],
    "freeze_multi_modal_projector": [Example("false", VISION)],
    "freeze_language_model": [Example("true", VISION)],
    "cutoff_len": [Example("99")],
    "tokenized_path": [Example("saved")],
    "packing": [Example("true"), Example("false", "stage: pt\n")],
    "neat_packing": [Example("true")],
    "pure_bf16": [Example("true")],
    "quantization_bit": [Example("4")],
    "quantization_method": [Example("hqq", "quantization_bit: 4\n")],
    "quantization_type": [Example("fp4", "quantization_bit: 4\n")],
    "double_quantization": [Example("false", "quantization_bit: 4\n")],
    "disable_gradient_checkpointing": [Example("true")],
    "use_reentrant_gc": [Example("false")],
    "lora_rank": [Example("4")],
    "lora_alpha": [Example("99")],
    "lora_target": [Example("q_proj")],
    "lora_dropout": [Example("0.5")],
    "use_dora": [Example("true")],
    "additional_target": [Example("embed_tokens")],
    "resize_vocab": [Example("true")],
    "add_tokens": [Example("<a>,<b>")],
    "add_special_tokens": [Example("<a>,<b>")],
    "use_galore": [Example("true")],
    "use_apollo": [Example("true")],
    "use_adam_mini": [Example("true")],
    "use_muon": [Example("true")],
    **{
        f"{name}_{key}": [Example(value, f"use_{name}: true\n")]
        for name in ("galore", "apollo")
        for key, value in (
            ("rank", "4"), ("target", "q_proj"), ("proj_type", "left"), ("layerwise", "true"),
        )
    },
    "freeze_trainable_layers": [Example("-3", "finetuning_type: freeze\n")],
    "flash_attn": [Example("disabled")],
    "enable_liger_kernel": [Example("true")],
    "use_dft_loss": [Example("true", "enable_liger_kernel: true\n")],
    "use_eaft_loss": [Example("true", "enable_liger_kernel: true\n")],
    "low_cpu_mem_usage": [Example("false")],
    "preprocessing_num_workers": [Example("2")],
    "dataset": [Example("other")],
    "dataset_dir": [Example("folder", "dataset: mine\n")],
}  # fmt: skip

#: Keys that the commands without generated rows alone have.
_UNGENERATED = ("max_length", "activation_offloading", "dataset_num_proc")
PEFT = "use_peft: true\n"
TRL = {
    **TRAINER,
    "bf16": [Example("false")],
    "optim": [Example("adamw_torch_fused"), Example("adafactor")],
    "gradient_checkpointing": [Example("false")],
    "gradient_checkpointing_kwargs": [Example("{use_reentrant: true}")],
    "model_name_or_path": [Example("other")],
    "load_in_4bit": [Example("true")],
    "load_in_8bit": [Example("true")],
    "bnb_4bit_quant_type": [Example("fp4", "load_in_4bit: true\n")],
    "use_bnb_nested_quant": [Example("true", "load_in_4bit: true\n")],
    "dtype": [Example("bfloat16")],
    "attn_implementation": [Example("eager")],
    "use_peft": [Example("true")],
    "lora_r": [Example("4", PEFT)],
    "lora_alpha": [Example("4", PEFT)],
    "lora_target_modules": [Example("q_proj", PEFT)],
    "lora_dropout": [Example("0.5", PEFT)],
    "use_dora": [Example("true", PEFT)],
    "lora_modules_to_save": [Example("lm_head", PEFT)],
    "max_length": [Example("99")],
    "activation_offloading": [Example("true")],
    "dataset_num_proc": [Example("2")],
    "dataset_name": [Example("other")],
}
SFT = {
    **TRL,
    "label_smoothing_factor": [Example("0.1")],
    "loss_type": [Example("dft", "label_smoothing_factor: 0.1\n")],
    "packing": [Example("true"), Example("true", "packing_strategy: wrapped\n")],
    "packing_strategy": [Example("wrapped", "packing: true\n")],
}
REWARD = {
    **TRL,
    "lora_dropout": [Example("0.5", f"{PEFT}disable_dropout: false\n")],
    "disable_dropout": [Example("false", PEFT)],
}
DPO = {**REWARD, "precompute_ref_log_probs": [Example("true")]}
KTO = {**DPO, "loss_type": [Example("apo_zero_unpaired")]}
ONLINE = {
    **{key: examples for key, examples in TRL.items() if key not in _UNGENERATED},
    "lora_dropout": [Example("0.5", PEFT)],
    "disable_dropout": [Example("true", PEFT)],
    "max_completion_length": [Example("99")],
    "generation_batch_size": [Example("32")],
    "steps_per_generation": [Example("3")],
    "num_generations": [Example("4")],
    "beta": [Example("0.5")],
    "num_iterations": [Example("2")],
    "use_vllm": [Example("true")],
    "vllm_mode": [Example("server", "use_vllm: true\n")],
    "vllm_gpu_memory_utilization": [Example("0.5", "use_vllm: true\n")],
    "vllm_enable_sleep_mode": [Example("true", "use_vllm: true\n")],
    "ds3_gather_for_generation": [Example("false")],
    "temperature": [Example("0.7")],
    "repetition_penalty": [Example("1.1")],
    "top_p": [Example("0.9")],
    "top_k": [Example("50")],
    "min_p": [Example("0.1")],
}
GRPO = {
    **ONLINE,
    "loss_type": [Example("bnpo")],
    "top_entropy_quantile": [Example("0.2")],
    "entropy_coef": [Example("0.1")],
    "use_adaptive_entropy": [Example("true")],
}
SWIFT = {
    **TRAINER,
    "bf16": [Example("false")],
    "optim": [Example("adamw_torch_fused"), Example("adafactor")],
    "gradient_checkpointing": [Example("false")],
    "use_liger_kernel": [Example("true")],
    "model": [Example("Qwen/Qwen2.5-VL-7B-Instruct")],
    "max_pixels": [Example("99")],
    "attn_impl": [Example("eager")],
    "gradient_checkpointing_kwargs": [Example("{use_reentrant: true}")],
    "vit_gradient_checkpointing": [Example("true")],
    "freeze_vit": [Example("false", "model: Qwen/Qwen2.5-VL-7B-Instruct\n")],
    "freeze_aligner": [Example("false", "model: Qwen/Qwen2.5-VL-7B-Instruct\n")],
    "freeze_llm": [Example("true", "model: Qwen/Qwen2.5-VL-7B-Instruct\n")],
    "max_length": [Example("99")],
    "truncation_strategy": [Example("right")],
    "packing": [Example("true")],
    "device_map": [Example("auto")],
    "dataset_num_proc": [Example("2")],
    "torch_dtype": [Example("float32"), Example("float16")],
    "quant_bits": [Example("8", "quant_method: bnb\n")],
    "quant_method": [Example("bnb", "quant_bits: 4\n")],
    "bnb_4bit_quant_type": [Example("fp4", "quant_method: bnb\nquant_bits: 4\n")],
    "bnb_4bit_use_double_quant": [Example("false", "quant_method: bnb\nquant_bits: 4\n")],
    "tuner_type": [Example("full")],
    "train_type": [Example("full")],
    "lora_rank": [Example("4")],
    "lora_alpha": [Example("4")],
    "lora_dropout": [Example("0.5")],
    "use_dora": [Example("true")],
    "target_modules": [Example("q_proj")],
    "modules_to_save": [Example("lm_head")],
    "task_type": [Example("embedding")],
    "num_labels": [Example("3")],
}
_GRPO = "rlhf_type: grpo\n"
SWIFT_RLHF = {
    **{
        key: examples
        for key, examples in SWIFT.items()
        if key not in ("use_liger_kernel", "packing", "lora_dropout", "task_type", "num_labels")
    },
    "rlhf_type": [Example("orpo"), Example("grpo", "max_length: 64\n"), Example("kto")],
    "loss_type": [
        Example("simpo", "rlhf_type: cpo\n"),
        Example("apo_zero_unpaired", "rlhf_type: kto\n"),
    ],
    "cpo_alpha": [Example("0", "rlhf_type: simpo\n")],
    "ref_model": [Example("other", "tuner_type: full\n")],
    "per_device_train_batch_size": [Example("2", _GRPO), Example("2")],
    "gradient_accumulation_steps": [Example("2", _GRPO)],
    "num_generations": [Example("4", _GRPO)],
    "max_completion_length": [Example("99", _GRPO)],
    "generation_batch_size": [Example("32", _GRPO)],
    "steps_per_generation": [Example("3", _GRPO)],
    "num_iterations": [Example("2", _GRPO)],
    "use_vllm": [Example("true", _GRPO)],
    "vllm_mode": [Example("server", f"{_GRPO}use_vllm: true\n")],
    "vllm_gpu_memory_utilization": [Example("0.5", f"{_GRPO}use_vllm: true\n")],
    "sleep_level": [Example("1", f"{_GRPO}use_vllm: true\n")],
}
_GRPO_RL = "rl: grpo\n"
PLUGGED = "plugins: [axolotl.integrations.%s.Plugin]\n"
AXOLOTL = {
    **{
        key: TRAINER[key]
        for key in (
            *("gradient_accumulation_steps", "auto_find_batch_size", "dataloader_num_workers"),
            *("dataloader_pin_memory", "deepspeed", "fsdp", "output_dir"),
        )
    },
    "fp16": [Example("true", "bf16: false\n")],
    "micro_batch_size": [Example("2")],
    "batch_size": [Example("8")],
    "eval_batch_size": [Example("2")],
    "sequence_len": [Example("99")],
    "excess_length_strategy": [Example("truncate")],
    "gradient_checkpointing": [Example("true")],
    "bf16": [Example("false")],
    "bfloat16": [Example("true", "bf16: false\n")],
    "float16": [Example("true", "bf16: false\n")],
    "base_model": [Example("other")],
    "load_in_4bit": [Example("true")],
    "load_in_8bit": [Example("true"), Example("true", "bf16: false\n")],
    "bnb_config_kwargs": [Example("{bnb_4bit_quant_type: fp4}")],
    "gptq": [Example("true")],
    "adapter": [Example("lora")],
    "lora_r": [Example("4", "adapter: lora\n")],
    "lora_alpha": [Example("4", "adapter: lora\n")],
    "lora_dropout": [Example("0.5", "adapter: lora\n")],
    "peft_use_dora": [Example("true", "adapter: lora\n")],
    "lora_target_modules": [Example("q_proj", "adapter: lora\n")],
    "lora_modules_to_save": [Example("lm_head", "adapter: lora\n")],
    "lora_target_linear": [Example("true", "adapter: lora\n")],
    **{
        f"lora_{part}_kernel": [Example("false", "adapter: lora\n")]
        for part in ("mlp", "qkv", "o", "embedding")
    },
    "trust_remote_code": [Example("true", "adapter: lora\n")],
    "optimizer": [Example("adafactor")],
    "plugins": [
        Example("[axolotl.integrations.liger.LigerPlugin]",
                "liger_fused_linear_cross_entropy: true\n"),
        Example("[axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin]"),
    ],
    "liger_fused_linear_cross_entropy": [Example("true", PLUGGED % "liger")],
    "cut_cross_entropy": [Example("false", PLUGGED % "cut_cross_entropy")],
    "low_cpu_mem_usage": [Example("false")],
    "attn_implementation": [Example("eager"), Example("flash_attention_2")],
    "flash_attention": [Example("true")],
    "fsdp_config": [
        Example("{offload_params: false}"),
        Example("{fsdp_version: 2}"),
        Example("{activation_checkpointing: true}"),
    ],
    "fsdp_version": [Example("2", "fsdp_config: {reshard_after_forward: true}\n")],
    "gradient_checkpointing_kwargs": [Example("{use_reentrant: false}")],
    "unfrozen_parameters": [Example("[model.layers]")],
    "rl": [Example("dpo", "adapter: lora\nlora_dropout: 0.1\n"), Example("kto")],
    "trl": [
        Example("{use_vllm: true, vllm_mode: colocate, vllm_enable_sleep_mode: true}", _GRPO_RL)
    ],
    "vllm": [
        Example(
            "{gpu_memory_utilization: 0.5}",
            f"{_GRPO_RL}trl: {{use_vllm: true, vllm_mode: colocate}}\n",
        )
    ],
    "cpo_alpha": [Example("0", "rl: simpo\n")],
    "reward_model": [Example("true")],
    "process_reward_model": [Example("true")],
    "model_type": [Example("AutoModelForSequenceClassification")],
    "num_labels": [Example("3", "process_reward_model: true\n")],
}  # fmt: skip
JSON = "{class_path: JSON, init_args: {json_path: a.json, num_workers: 2}}"
FULL = {
    "checkpoint_dir": [Example("other")],
    "out_dir": [Example("other")],
    "precision": [Example("32-true")],
    "devices": [Example("2")],
    "num_nodes": [Example("2")],
    "train.global_batch_size": [Example("32")],
    "train.micro_batch_size": [Example("2")],
    "train.max_seq_length": [Example("99")],
    "optimizer": [Example("SGD")],
    "data": [Example(JSON)],
}
ADAPTER = {**FULL, "quantize": [Example("bnb.nf4")]}
LITGPT_LORA = {
    **ADAPTER,
    "lora_r": [Example("4")],
    "lora_alpha": [Example("4")],
    "lora_dropout": [Example("0.5")],
    "lora_query": [Example("false")],
    "lora_key": [Example("true")],
    "lora_value": [Example("false")],
    "lora_projection": [Example("true")],
    "lora_mlp": [Example("true")],
    "lora_head": [Example("true")],
}
TORCHTUNE = {
    "batch_size": [Example("4")],
    "gradient_accumulation_steps": [Example("2")],
    "tokenizer": [Example("{max_seq_len: 99}")],
    "enable_activation_checkpointing": [Example("true")],
    "enable_activation_offloading": [Example("true")],
    "fsdp_cpu_offload": [Example("true")],
    "dtype": [Example("fp32")],
    "model": [Example("{_component_: torchtune.models.llama2.qlora_llama2_7b, lora_rank: 4}")],
    "checkpointer": [Example("{checkpoint_dir: other}", "model: {_component_: own.builder}\n")],
    "optimizer": [Example("{_component_: torch.optim.AdamW, fused: true}")],
    "optimizer_in_bwd": [Example("true")],
    "loss": [Example("{_component_: torchtune.modules.loss.CEWithChunkedOutputLoss}")],
    "clip_grad_norm": [Example("1.0")],
    "compile": [Example("true")],
    "dataset": [Example("{data_files: a.json, packed: true}")],
    "output_dir": [Example("other")],
    "device": [Example("cpu")],
}

SCRIPT = {
    **TRAINER,
    "deepspeed": [
        Example(
            '{"zero_optimization":{"stage":3,"overlap_comm":true,"reduce_bucket_size":9,'
            '"offload_optimizer":{"device":"cpu"}},"optimizer":{"type":"Lion"}}'
        )
    ],
    "optim": [Example("adamw_torch_fused"), Example("adafactor")],
    "gradient_checkpointing": [Example("true")],
    "gradient_checkpointing_kwargs": [Example('{"use_reentrant":false}'),
                                      Example('{"use_reentrant":true}')],
    "model_name_or_path": [Example("other"), Example("other-chat")],
    "lora_r": [Example("4")],
    "lora_alpha": [Example("4")],
}  # fmt: skip
QWEN = {
    **SCRIPT,
    "model_max_length": [Example("99")],
    "use_lora": [Example("true")],
    "lora_dropout": [Example("0.5")],
    "lora_target_modules": [Example("c_attn")],
    "q_lora": [Example("true")],
    "data_path": [Example("other.json")],
}
LOFTQ = {
    **SCRIPT,
    "use_liger_kernel": [Example("true")],
    "train_file": [Example("other.json")],
    "max_length": [Example("99")],
    "init_lora_weights": [Example("loftq")],
    "loftq_bits": [Example("2")],
    "staged": [Example("true")],
}


@dataclass(frozen=True)
class Case:
    """A framework's settings: a job, and an example of each setting that is read."""

    adapter: Any
    argv: str
    base: str
    examples: Mapping[str, list[Example]]
    groups: SettingGroups


CASES = [
    Case(
        LlamaFactory(),
        "llamafactory-cli train train.yaml",
        "model_name_or_path: m\ndo_train: true\n",
        LLAMAFACTORY,
        LlamaFactory.groups,
    ),
    Case(
        Axolotl(),
        "axolotl train train.yaml",
        "base_model: m\noutput_dir: o\n",
        AXOLOTL,
        Axolotl.groups,
    ),
    *(
        Case(
            LitGPT(),
            f"litgpt {command} --config train.yaml",
            "checkpoint_dir: m\nseed: 1\n",
            examples,
            litgpt_settings.LITGPT[command],
        )
        for command, examples in (
            ("finetune_full", FULL),
            ("finetune_lora", LITGPT_LORA),
            ("finetune_adapter", ADAPTER),
            ("finetune_adapter_v2", ADAPTER),
        )
    ),
    Case(
        Torchtune(),
        "tune run lora_finetune_single_device --config train.yaml",
        "model: {_component_: torchtune.models.llama3.lora_llama3_8b, lora_rank: 8}\n"
        "batch_size: 2\nloss: {_component_: torch.nn.CrossEntropyLoss}\n",
        TORCHTUNE,
        Torchtune.groups,
    ),
    Case(MsSwift(), "swift sft train.yaml", "model: m\ndataset: d\n", SWIFT, SWIFT_SETTINGS),
    Case(
        MsSwift(),
        "swift rlhf train.yaml",
        "model: m\ndataset: d\n",
        SWIFT_RLHF,
        SWIFT_RLHF_SETTINGS,
    ),
    Case(
        Qwen(),
        "torchrun finetune.py",
        "lazy_preprocess: true\ndata_path: d.json\nmodel_name_or_path: m\nuse_lora: true\n",
        QWEN,
        script_settings.QWEN,
    ),
    Case(
        PeftLoftq(),
        "python train.py",
        "model_name_or_path: m\ninit_lora_weights: loftq\n",
        LOFTQ,
        script_settings.LOFTQ,
    ),
    *(
        Case(
            Trl(),
            f"trl {method.value} --config train.yaml",
            "model_name_or_path: m\ndataset_name: mine\n",
            examples,
            trl_settings.TRL[method],
        )
        for method, examples in (
            (TrainingMethod.SFT, SFT),
            (TrainingMethod.DPO, DPO),
            (TrainingMethod.REWARD, REWARD),
            (TrainingMethod.KTO, KTO),
            (TrainingMethod.GRPO, GRPO),
            (TrainingMethod.RLOO, {**ONLINE, "beta": [Example("0.0")]}),
        )
    ),
]


@pytest.mark.parametrize(
    ("case", "key"),
    [
        pytest.param(case, key, id=f"{case.argv.partition(' --')[0]}-{key}")
        for case in CASES
        for key in sorted(case.groups.read)
    ],
)
def test_a_setting_that_is_read_decides_the_stated_fields(
    bench: Callable[..., Any], case: Case, key: str
) -> None:
    table, decided = bench(case.adapter), set()
    for example in case.examples[key]:
        text = without(case.base + example.given, key)
        jobs = (_job(table, case, text + more) for more in ("", line(key, example.value)))
        decided |= between(*(of_job(case.adapter, job) for job in jobs))
    assert decided == set(case.groups.read[key].split())


def _job(table: Any, case: Case, text: str) -> Any:
    """Return the job of a case: its settings are a config, or flags where a script has them."""
    if not case.argv.endswith(".py"):
        return table.job(case.argv, text)
    words = (row.partition(": ") for row in text.splitlines())
    return table.job(" ".join((case.argv, *(f"--{key} {value}" for key, _, value in words))))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.argv.partition(" --")[0])
def test_every_example_is_of_a_setting_that_is_read(case: Case) -> None:
    assert case.examples.keys() == case.groups.read.keys()


TABLES = {
    title: groups
    for adapter in ADAPTERS
    if isinstance(adapter, ConfigAdapter)
    for title, groups in adapter.tables().items()
}


@pytest.mark.parametrize("groups", TABLES.values(), ids=TABLES)
def test_each_setting_is_in_one_group(groups: SettingGroups) -> None:
    assert twice(groups) == []
    unmodelled = {one.key for one in groups.unmodelled}
    assert {one.key.partition(".")[0] for one in groups.partly} <= groups.read.keys()
    assert groups.details.keys() <= groups.read.keys() | unmodelled


def test_a_setting_in_two_groups_is_found() -> None:
    one = SettingGroups(read={"a": "micro_batch"}, no_effect={"a reason": "b c"})
    other = SettingGroups(unmodelled=(Effect(key="c", effect="grows"),), details={"c": "d"})
    assert (twice(one), twice(one | other)) == ([], ["c"])
    assert (one | other).without(["c"]).names == {"a", "b", "d"}


def test_the_page_is_current() -> None:
    written = PAGE.read_text().split("do not edit below -->\n")[1]
    assert written == settings_tables() + "\n", "run: make settings-table"


def test_an_effect_holds_under_the_settings_that_it_needs(bench: Callable[..., Any]) -> None:
    table, argv = bench(LlamaFactory()), "llamafactory-cli train train.yaml"
    text = "model_name_or_path: m\nper_device_train_batch_size: 8\neval_strategy: steps\n"
    found = {
        batch: table.adapter.unmodelled(
            table.job(argv, f"{text}per_device_eval_batch_size: {batch}\n")
        )
        for batch in (8, 16)
    }
    assert found[8] == ()
    assert [(one.key, one.direction, one.line) for one in found[16]] == [
        ("eval_strategy", Direction.MORE, 3)
    ]


def line(key: str, value: str) -> str:
    """Return the line of a config that sets a key, which may be in a mapping."""
    outer, _, inner = key.partition(".")
    return f"{outer}: {{{inner}: {value}}}\n" if inner else f"{key}: {value}\n"


def without(text: str, key: str) -> str:
    """Return a config with the last line of each key, and none of `key`."""
    lines = {line.split(":")[0]: line for line in text.splitlines()}
    return "".join(f"{line}\n" for name, line in lines.items() if name != key)

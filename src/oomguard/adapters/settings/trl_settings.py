"""The settings of TRL's commands.

Source: trl 1.16.0, trainer/{base,sft,dpo,reward,kto,grpo,rloo,model}_config.py and
{sft,dpo,reward,kto,grpo,rloo}_trainer.py, scripts/{utils,grpo,rloo}.py.
"""

from __future__ import annotations

from dataclasses import replace

from oomguard.adapters import effects
from oomguard.adapters.effects import Effect
from oomguard.adapters.settings import trainer_settings as trainer
from oomguard.adapters.settings.groups import SettingGroups, fields_of
from oomguard.adapters.trl_methods import is_tiled
from oomguard.configfile.values import is_true
from oomguard.job.unmodelled import Direction, Memory, TrainingMethod

_BUILT = ("eager", "sdpa", "flash_attention_2")
_LORA = "use_peft lora_r lora_alpha lora_target_modules lora_dropout lora_modules_to_save use_dora"

_MODEL = SettingGroups(
    read=fields_of(
        {
            "model": "model_name_or_path",
            "quantization": "load_in_4bit load_in_8bit bnb_4bit_quant_type use_bnb_nested_quant",
            "precision": "dtype",
            "base": "dtype",
            "attention": "attn_implementation",
            "tuning": "use_peft",
            "trained_fp32": "use_peft",
            "lora": _LORA,
            "lora_rank": "use_peft lora_r",
            "embedding_rows": "lora_modules_to_save",
            "trained_embeddings": "lora_modules_to_save",
            "sequence_length": "max_length",
            "offload": "activation_offloading",
            "preprocess_workers": "dataset_num_proc",
            "data": "dataset_name",
            "fused": "optim",
        }
    ),
    partly=(
        effects.on_host("dataset_num_proc", "each process's own host memory is not included"),
        Effect(
            key="attn_implementation",
            effect="this attention is counted as torch's own",
            direction=Direction.EITHER,
            when=lambda value: value is not None and value not in _BUILT,
        ),
    ),
    unmodelled=(
        Effect(
            key="model_init_kwargs",
            effect="what the model is built with besides is not read",
            direction=Direction.EITHER,
        ),
        Effect(
            key="lora_target_parameters",
            effect="adapters of single parameters, such as experts, are not counted",
        ),
        Effect(key="pad_to_multiple_of", effect="padding beyond the longest sample is not counted"),
    ),
    no_effect={
        trainer.PLACES: "dataset_config dataset_test_split dataset_train_split datasets"
        " model_revision trust_remote_code",
        trainer.SAMPLES: "dataset_streaming pad_token streaming test_split_size",
        trainer.RUNNING: "ignore_bias_buffers",
        trainer.RATES: "bnb_4bit_quant_storage lora_task_type use_rslora",
    },
)

_CAUSAL = SettingGroups(
    read=fields_of({"loss_kernel": "loss_type"}),
    unmodelled=(
        Effect(
            key="router_aux_loss_coef",
            effect="the router's logits of every layer are kept for a loss of their own",
        ),
    ),
    no_effect={trainer.SAMPLES: "truncation_mode"},
)

#: Liger's switch is the Trainer's own; TRL's losses have their own tiles.
_CHECKPOINTING = trainer.CHECKPOINTING.without(("use_liger_kernel", "liger_kernel_config"))
_LIGER = SettingGroups(
    unmodelled=(
        effects.switch("use_liger_kernel", "Liger's kernels are not modelled", Direction.EITHER),
    ),
    details={"use_liger_kernel": "liger_kernel_config"},
)
_COMMON = trainer.TRAINER | _CHECKPOINTING | _LIGER | _MODEL
_OTHERS = SettingGroups(
    read=fields_of({"lora": "disable_dropout"}),
    no_effect={trainer.OVERWRITTEN: "label_smoothing_factor"},
)
_SMOOTHED = tuple(
    replace(one, given=lambda settings: not is_tiled(settings))
    for one in _COMMON.unmodelled
    if one.key == "label_smoothing_factor"
)
_UNSMOOTHED = _COMMON.without(("label_smoothing_factor",))

_SFT = (
    _UNSMOOTHED
    | _CAUSAL
    | SettingGroups(
        read=fields_of(
            {
                "loss_kernel": "label_smoothing_factor loss_type",
                "objective": "label_smoothing_factor loss_type",
                "packing": "packing",
                "overlong": "packing packing_strategy",
            }
        ),
        partly=_SMOOTHED,
        unmodelled=(
            effects.switch("padding_free", "a batch is counted with its padding", Direction.EITHER),
            Effect(
                key="dataset_kwargs",
                effect="samples that TRL does not prepare are not cut",
                when=lambda value: "skip_prepare_dataset" in str(value),
            ),
        ),
        no_effect={
            trainer.SAMPLES: "assistant_only_loss chat_template_path completion_only_loss"
            " dataset_text_field eos_token eval_packing shuffle_dataset",
        },
    )
)
_REFERENCE = SettingGroups(
    read=fields_of({"precompute_reference": "precompute_ref_log_probs"}),
    unmodelled=(
        Effect(
            key="precompute_ref_batch_size",
            effect="the reference's larger batch before training is not included",
            given=lambda settings: bool(settings.get("precompute_ref_log_probs")),
        ),
    ),
    no_effect={
        trainer.RATES: "beta ref_model_mixup_alpha ref_model_sync_steps sync_ref_model",
    },
)
_DPO = (
    _UNSMOOTHED
    | _CAUSAL.without(("loss_type",))
    | _OTHERS
    | _REFERENCE
    | SettingGroups(
        no_effect={
            trainer.RATES: "discopop_tau f_alpha_divergence_coef f_divergence_type"
            " label_smoothing ld_alpha loss_type loss_weights use_weighting",
            trainer.OVERWRITTEN: "padding_free",
        },
    )
)
#: The samples with each other's answers take less than the step after them, and go by the order.
_KTO = (
    _UNSMOOTHED.without(("pad_token",))
    | _CAUSAL.without(("loss_type", "truncation_mode"))
    | _OTHERS
    | _REFERENCE
    | SettingGroups(
        read=fields_of({"compares_samples": "loss_type"}),
        no_effect={trainer.RATES: "desirable_weight undesirable_weight"},
    )
)
_REWARD = (
    _UNSMOOTHED
    | _OTHERS
    | SettingGroups(
        no_effect={
            trainer.RATES: "center_rewards_coefficient",
            trainer.SAMPLES: "chat_template_path eos_token",
        },
    )
)
#: What is generated from prompts, and rewarded.
_GENERATED = SettingGroups(
    read=fields_of(
        {
            "completion_length": "max_completion_length",
            "generation_batch": "generation_batch_size steps_per_generation"
            " per_device_train_batch_size gradient_accumulation_steps",
            "group": "num_generations",
            "objective": "beta",
            "engine_share": "use_vllm vllm_mode vllm_gpu_memory_utilization",
            "engine_sleeps": "use_vllm vllm_mode vllm_enable_sleep_mode",
            "generation": "use_vllm vllm_mode num_iterations ds3_gather_for_generation temperature"
            " top_p top_k min_p repetition_penalty",
        }
    ),
    partly=(
        Effect(
            key="use_vllm",
            effect="vLLM is counted as the share of each GPU that it claims; its CUDA graphs come"
            " on top of that",
            when=is_true,
            given=lambda settings: settings.get("vllm_mode") != "server",
        ),
        Effect(
            key="max_completion_length",
            effect="completions of any length may be generated",
            when=lambda value: value is None,
        ),
    ),
    unmodelled=(
        Effect(
            key="reward_model_name_or_path",
            effect="the reward model stands beside the trained one, and is not counted",
        ),
        Effect(
            key="reward_funcs",
            effect="what reward functions of your own take is not included",
            memory=Memory.HOST,
            when=lambda value: "." in str(value),
        ),
        *(
            effects.switch(key, "the cache takes half of the memory that is free")
            for key in ("use_transformers_continuous_batching", "use_transformers_paged")
        ),
        Effect(
            key="cache_implementation",
            effect="a cache of another kind is counted as one that grows",
            direction=Direction.EITHER,
            when=lambda value: value not in (None, "dynamic"),
        ),
        Effect(
            key="generation_kwargs",
            effect="what generates besides is not read, such as beams",
            direction=Direction.EITHER,
        ),
    ),
    details={
        "use_vllm": "vllm_model_impl vllm_structured_outputs_regex vllm_server_base_url"
        " vllm_server_host vllm_server_port vllm_server_timeout vllm_group_port"
        " vllm_max_model_length vllm_tensor_parallel_size",
        "use_transformers_continuous_batching": "transformers_continuous_batching_config",
    },
    no_effect={
        trainer.RATES: "epsilon epsilon_high reward_weights mask_truncated_completions"
        " sync_ref_model ref_model_mixup_alpha ref_model_sync_steps",
        trainer.SAMPLES: "shuffle_dataset chat_template_kwargs num_generations_eval",
        trainer.SAVED: "log_completions log_multimodal num_completions_to_print log_unique_prompts",
    },
)
_ONLINE = (
    _UNSMOOTHED.without(("max_length", "pad_token", "dataset_num_proc", "activation_offloading"))
    | _CAUSAL.without(("loss_type", "truncation_mode"))
    | _OTHERS
    | _GENERATED
)
_GRPO = _ONLINE | SettingGroups(
    read=fields_of(
        {"compares_samples": "loss_type top_entropy_quantile entropy_coef use_adaptive_entropy"}
    ),
    unmodelled=(
        effects.switch("cast_lm_head_to_fp32", "the output head and its products are in fp32"),
    ),
    details={
        "use_vllm": "vllm_importance_sampling_correction vllm_importance_sampling_mode"
        " vllm_importance_sampling_clip_max vllm_importance_sampling_clip_min"
        " vllm_importance_sampling_cap",
    },
    no_effect={
        trainer.RATES: "delta sapo_temperature_neg sapo_temperature_pos vespo_k_pos"
        " vespo_lambda_pos vespo_k_neg vespo_lambda_neg importance_sampling_level"
        " multi_objective_aggregation scale_rewards entropy_coef_min entropy_coef_max"
        " entropy_coef_delta entropy_target off_policy_mask_threshold use_bias_correction_kl",
        trainer.SAMPLES: "max_tool_calling_iterations",
        trainer.SAVED: "log_completions_hub_repo",
    },
)
_RLOO = _ONLINE | SettingGroups(no_effect={trainer.RATES: "normalize_advantages reward_clip_range"})
TRL = {
    TrainingMethod.SFT: _SFT,
    TrainingMethod.DPO: _DPO,
    TrainingMethod.REWARD: _REWARD,
    TrainingMethod.KTO: _KTO,
    TrainingMethod.GRPO: _GRPO,
    TrainingMethod.RLOO: _RLOO,
}

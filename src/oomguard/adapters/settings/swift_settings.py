"""The settings of ms-swift's `swift sft`, `swift pt` and `swift rlhf`.

Source: ms-swift 4.6.0, arguments/{sft_args,rlhf_args,tuner_args}.py, arguments/base_args/,
rlhf_trainers/args_mixin.py, trainers/arguments.py, callbacks/mapping.py.
"""

from __future__ import annotations

from oomguard.adapters import effects
from oomguard.adapters.effects import Effect, differs, on_host, switch
from oomguard.adapters.fields import Key, flag, number
from oomguard.adapters.settings import trainer_settings as trainer
from oomguard.adapters.settings.groups import SettingGroups, fields_of
from oomguard.configfile.layered import Settings
from oomguard.configfile.values import is_true
from oomguard.job.memory_settings import Attention
from oomguard.job.unmodelled import Direction

MICRO_BATCH: Key[int] = number("per_device_train_batch_size", 1)
EVAL_BATCH: Key[int] = number("per_device_eval_batch_size", 1)
CHECKPOINTING: Key[bool] = flag("gradient_checkpointing", default=True)
FREEZES_TOWER: Key[bool] = flag("freeze_vit", default=True)
#: model/utils.py: `flash_attn` is flash_attention_2; none of that package's versions keeps scores.
ATTENTIONS = {
    "eager": Attention.EAGER,
    "sdpa": Attention.SDPA,
    **dict.fromkeys(("flash_attn", "flash_attention_2"), Attention.FLASH),
    **dict.fromkeys(("flash_attention_3", "flash_attention_4"), Attention.FLASH),
}
#: Names of settings in version 3.
FORMER = ("train_type",)
_DECOMPOSING = (*trainer.DECOMPOSING, "loftq")


def _evaluates_more(settings: Settings) -> bool:
    return EVAL_BATCH.of(settings) > MICRO_BATCH.of(settings)


def _trains_tower_otherwise(settings: Settings) -> bool:
    """Return whether a vision tower with gradients is checkpointed unlike the rest.

    A frozen one keeps nothing for the backward pass either way.
    """
    own = is_true(settings.get("vit_gradient_checkpointing"))
    return not FREEZES_TOWER.of(settings) and own is not CHECKPOINTING.of(settings)


_READ = fields_of(
    {
        "micro_batch": "per_device_train_batch_size",
        "accumulation": "per_device_train_batch_size",
        "model": "model",
        "multimodal": "model max_pixels vit_gradient_checkpointing",
        "frozen": "model max_pixels vit_gradient_checkpointing freeze_vit freeze_aligner"
        " freeze_llm",
        "attention": "attn_impl",
        "image_pixels": "max_pixels",
        "fused": "optim",
        "sequence_length": "max_length",
        "overlong": "truncation_strategy",
        "packing": "packing",
        "device_map": "device_map",
        "preprocess_workers": "dataset_num_proc",
        "precision": "torch_dtype",
        "base": "torch_dtype",
        "quantization": "quant_bits quant_method bnb_4bit_quant_type bnb_4bit_use_double_quant",
        "tuning": "tuner_type train_type",
        "trained_fp32": "tuner_type train_type",
        "lora": "tuner_type train_type lora_rank lora_alpha lora_dropout target_modules"
        " modules_to_save use_dora",
        "lora_rank": "tuner_type train_type lora_rank",
        "embedding_rows": "modules_to_save",
        "trained_embeddings": "modules_to_save",
        "method": "task_type num_labels",
        "objective": "task_type num_labels",
    }
)
_TRAINED = (
    switch("use_galore", effects.OTHER_STATES, Direction.LESS),
    Effect(
        key="optimizer",  # of these, only the learning rates differ
        effect=effects.OTHER_STATES,
        direction=Direction.EITHER,
        when=lambda value: value not in (None, "default", "lorap", "multimodal"),
    ),
    Effect(
        key="lisa_activated_layers",
        effect="all layers count as trained",
        direction=Direction.LESS,
    ),
    Effect(
        key="init_weights",
        effect="LoRA-GA starts from a gradient of the whole model, which is not included",
        when=lambda value: str(value) == "lora-ga",
    ),
    Effect(
        key="init_weights",
        effect=trainer.DECOMPOSED,
        when=lambda value: str(value).startswith(_DECOMPOSING),
    ),
    Effect(
        key="adapters",
        effect="the rank and the targets of this adapter are not known",
        direction=Direction.EITHER,
    ),
    *(
        Effect(key=key, effect="all weights count as trained", direction=Direction.LESS)
        for key in ("freeze_parameters", "freeze_parameters_ratio", "freeze_parameters_regex")
    ),
    *(
        Effect(key=key, effect="parameters that are trained besides are not counted")
        for key in ("trainable_parameters", "trainable_parameters_regex")
    ),
    Effect(
        key="target_parameters",
        effect="adapters of single parameters, such as experts, are not counted",
    ),
    Effect(
        key="target_regex",
        effect="adapters are counted on the layers of `target_modules`",
        direction=Direction.EITHER,
    ),
    differs("lora_bias", "none", "trained biases are not counted", Direction.MORE),
    Effect(key="lora_dtype", effect="adapters are counted in fp32", direction=Direction.LESS),
    Effect(key="new_special_tokens", effect="the added tokens are not counted"),
    differs("tuner_backend", "peft", "this tuner is counted as PEFT's", Direction.EITHER),
    switch("use_swift_lora", "ms-swift's own LoRA is counted as PEFT's", Direction.EITHER),
)
_MODEL = (
    Effect(
        key="bnb_4bit_compute_dtype",
        effect="matrices are counted as unpacked to 16 bits",
        when=lambda value: "float32" in str(value),
    ),
    Effect(
        key="model_kwargs",
        effect="what the model is built with besides is not read",
        direction=Direction.EITHER,
    ),
    Effect(
        key="experts_impl",
        effect="this way of computing experts is not modelled",
        direction=Direction.EITHER,
    ),
    Effect(
        key="router_aux_loss_coef",
        effect="the router's logits of every layer are kept for a loss of their own",
    ),
    Effect(
        key="sequence_parallel_size",
        effect="sequence parallelism is not modelled: every GPU counts the whole sequence",
        direction=Direction.LESS,
    ),
    Effect(
        key="deepspeed_autotp_size",
        effect="tensor parallelism is not modelled",
        direction=Direction.LESS,
    ),
    Effect(key="zero_hpz_partition_size", effect="ZeRO++ keeps a second share of the weights"),
    switch("use_ray", "the ranks that Ray starts are not counted", Direction.EITHER),
)
_LOSSES = (
    switch("enable_dft_loss", "the loss of DFT is not modelled", Direction.EITHER),
    switch("enable_channel_loss", "losses by channel are not modelled", Direction.EITHER),
    Effect(key="loss_type", effect="this loss is not modelled", direction=Direction.EITHER),
    differs("loss_scale", "default", "a weighted loss is not modelled", Direction.EITHER),
    switch("use_logits_to_keep", "all logits are counted", Direction.LESS),
    Effect(
        key="padding_free",
        effect="a batch is counted with its padding",
        direction=Direction.EITHER,
        when=is_true,
        given=lambda settings: MICRO_BATCH.of(settings) > 1,
    ),
    Effect(
        key="packing_length",
        effect="packs are counted at `max_length`",
        direction=Direction.EITHER,
    ),
)
_RUN = (
    *trainer.evaluations(EVAL_BATCH, MICRO_BATCH),
    *(
        Effect(key=key, effect=trainer.EVALUATED, given=_evaluates_more)
        for key in ("val_dataset", "cached_val_dataset", "split_dataset_ratio")
    ),
    switch("eval_use_evalscope", "an evaluation with EvalScope generates: not included"),
    switch("load_args", "settings of a checkpoint's args.json are not read", Direction.EITHER),
    *(
        Effect(key=key, effect="code of one's own is not modelled", direction=Direction.EITHER)
        for key in ("callbacks", "external_plugins", "custom_register_path")
    ),
    on_host("streaming", "the buffer that streamed samples are shuffled in is not included"),
    on_host("packing_num_proc", "each process's own host memory is not included"),
    on_host("use_flash_ckpt", "checkpoints in shared memory are not included"),
)

_OWN = SettingGroups(
    read=_READ,
    partly=(
        effects.quantizer("quant_method"),
        Effect(
            key="device_map",
            effect="layers split over several GPUs are counted on one",
            direction=Direction.LESS,
        ),
        Effect(
            key="attn_impl",
            effect="attention is counted as torch's own",
            direction=Direction.EITHER,
            when=lambda value: value is not None and value not in ATTENTIONS,
        ),
        Effect(
            key="vit_gradient_checkpointing",
            effect="the vision tower is counted as the rest of the model",
            direction=Direction.EITHER,
            when=lambda value: value is not None,
            given=_trains_tower_otherwise,
        ),
        on_host("dataset_num_proc", "each process's own host memory is not included"),
    ),
    unmodelled=(*_TRAINED, *_MODEL, *_LOSSES, *_RUN),
    details={
        "use_galore": "galore_cos_threshold galore_gamma_proj galore_optim_per_parameter"
        " galore_proj_bits galore_proj_group_size galore_proj_quant galore_proj_type"
        " galore_quantization galore_queue_size galore_rank galore_scale galore_target_modules"
        " galore_update_proj_gap galore_with_embedding",
        "lisa_activated_layers": "lisa_step_interval",
        "init_weights": "lora_ga_batch_size lora_ga_direction lora_ga_iters lora_ga_max_length"
        " lora_ga_scale lora_ga_stable_gamma",
        "device_map": "max_memory",
        "streaming": "shuffle_buffer_size",
        "use_ray": "device_groups ray_exp_name",
        "eval_use_evalscope": "eval_dataset eval_dataset_args eval_generation_config eval_limit"
        " extra_eval_args",
        "predict_with_generate": "ds3_gather_for_generation logprobs max_new_tokens num_beams"
        " repetition_penalty stop_words stream structured_outputs_regex temperature top_k"
        " top_logprobs top_p",
        "tuner_type": "adalora_beta1 adalora_beta2 adalora_deltaT adalora_init_r"
        " adalora_orth_reg_weight adalora_target_r adalora_tfinal adalora_tinit adapter_act"
        " adapter_length boft_block_num boft_block_size boft_dropout boft_n_butterfly_factor"
        " fourier_n_frequency fourier_scaling llamapro_num_groups llamapro_num_new_blocks"
        " reft_args reft_intervention_type reft_layer_key reft_layers reft_rank vera_d_initial"
        " vera_dropout vera_projection_prng_key vera_rank",
        "task_type": "mrl_dims problem_type",
    },
    no_effect={
        trainer.SAVED: "acc_strategy add_version create_checkpoint_symlink early_stop_interval"
        " eval_metric logging_dir max_shard_size safe_serialization swanlab_email_language"
        " swanlab_exp_name swanlab_mode swanlab_notification_method swanlab_project"
        " swanlab_receiver_email swanlab_secret swanlab_sender_email swanlab_smtp_port"
        " swanlab_smtp_server swanlab_token swanlab_webhook_url swanlab_workspace",
        trainer.RATES: "aligner_lr bnb_4bit_quant_storage hqq_axis init_strategy"
        " is_binary_loss_scale lorap_lr_ratio max_model_len rope_scaling use_rslora vit_lr"
        " warmup_ratio",
        trainer.SAMPLES: "add_non_thinking_prefix agent_template cached_dataset columns"
        " custom_dataset_info dataset dataset_shuffle decision_drop_instructions"
        " decision_shuffle_fields decision_state_as_text decision_subsample_options"
        " disable_auto_column_mapping disable_ignore_empty_think enable_thinking group_by_length"
        " interleave_prob lazy_tokenize load_data_args norm_bbox packing_strategy padding_side"
        " preserve_thinking response_prefix stopping_strategy strict system template"
        " template_backend train_dataloader_shuffle use_chat_template val_dataset_shuffle",
        trainer.PLACES: "check_model download_mode load_from_cache_file local_repo_path"
        " model_author model_name model_revision model_type use_hf",
        trainer.RUNNING: "enable_npu_model_patch ignore_args_error max_epochs resume_only_model",
    },
)

SWIFT = trainer.TRAINER.without(trainer.EVALUATING) | trainer.SEQ2SEQ | trainer.CHECKPOINTING | _OWN

_GENERATED = (
    "advantage_estimator advantage_reweight async_generate completion_length_limit_scope"
    " cosine_max_len cosine_max_len_value_correct cosine_max_len_value_wrong"
    " cosine_min_len_value_correct cosine_min_len_value_wrong chord_enable_phi_function"
    " chord_mu_decay_steps chord_mu_peak chord_mu_valley chord_mu_warmup_steps"
    " chord_sft_dataset chord_sft_per_device_train_batch_size cliprange cliprange_value"
    " delta dynamic_sample enable_flattened_weight_sync epsilon epsilon_high"
    " fipo_clip_high_only fipo_clip_range fipo_decay_rate fipo_safety_threshold gamma"
    " gkd_logits_topk gym_env importance_sampling_level kl_coef kl_in_reward lam lmbda"
    " local_rollout_forward_batch_size log_completions log_entropy"
    " log_rollout_offpolicy_metrics max_resample_times max_turns min_p missing_eos_penalty"
    " move_model_batches multi_turn_scheduler num_generations_eval num_mini_batches"
    " num_ppo_epochs num_sample_generations off_policy_sequence_mask_delta"
    " offload_teacher_model overlong_filter real_tau ref_model_mixup_alpha"
    " ref_model_sync_steps repetition_max_penalty repetition_n_grams response_length"
    " reward_adapters reward_funcs reward_model_plugin reward_model_revision"
    " reward_model_type reward_template reward_weights rlsd_lambda rlsd_lambda_decay_steps"
    " rlsd_lambda_warmup_steps rlsd_negative_only rlsd_reweight_clip_range"
    " rollout_importance_sampling_mode rollout_importance_sampling_threshold scale_rewards"
    " sdar_gate_beta sdar_loss_coef seq_kd sft_alpha soft_cache_length soft_max_length"
    " sync_ref_model tau_neg tau_pos teacher_adapters teacher_deepspeed teacher_kl_coef"
    " teacher_model teacher_model_revision teacher_model_server teacher_model_type"
    " teacher_tag_key top_entropy_quantile use_gym_env vf_coef vllm_data_parallel_size"
    " vllm_disable_cascade_attn vllm_disable_custom_all_reduce vllm_enable_expert_parallel"
    " vllm_enable_lora vllm_enable_prefix_caching vllm_enforce_eager vllm_engine_kwargs"
    " vllm_limit_mm_per_prompt vllm_max_lora_rank vllm_max_model_len vllm_max_num_seqs"
    " vllm_mm_processor_cache_gb vllm_pipeline_parallel_size vllm_quantization"
    " vllm_reasoning_parser vllm_server_base_url vllm_server_group_port vllm_server_host"
    " vllm_server_pass_dataset vllm_server_port vllm_server_timeout vllm_speculative_config"
    " vllm_tensor_parallel_size vllm_use_async_engine wandb_log_unique_prompts"
    " whiten_rewards"
)
#: Settings of `swift sft` that mean something else in `swift rlhf`, or nothing.
_OTHERWISE = (
    *("packing", "packing_length", "packing_num_proc", "task_type", "num_labels"),
    *("use_liger_kernel", "liger_kernel_config", "loss_type", "loss_scale", "lora_dropout"),
    *("use_logits_to_keep", "label_smoothing_factor", "enable_dft_loss"),
    "enable_channel_loss",
)
#: Packs of pairs (dataset/packing.py) hold `max_length` tokens, or one pair that is longer: two
#: samples of `max_length` each, as pairs are counted.
SWIFT_RLHF = SWIFT.without(_OTHERWISE) | SettingGroups(
    read=fields_of(
        {
            "method": "rlhf_type loss_type",
            "objective": "rlhf_type loss_type ref_model cpo_alpha",
            "compares_samples": "rlhf_type loss_type",
            "accumulation": "rlhf_type",
            "lora": "rlhf_type",
            "sequence_length": "rlhf_type",
            "overlong": "rlhf_type",
            "group": "rlhf_type num_generations",
            "completion_length": "rlhf_type max_completion_length",
            "generation_batch": "rlhf_type generation_batch_size steps_per_generation"
            " per_device_train_batch_size gradient_accumulation_steps",
            "generation": "rlhf_type num_iterations use_vllm vllm_mode",
            "engine_share": "use_vllm vllm_mode vllm_gpu_memory_utilization",
            "engine_sleeps": "use_vllm vllm_mode sleep_level",
        }
    ),
    unmodelled=(
        Effect(
            key="task_type",
            effect="another head than the method's own is not modelled",
            direction=Direction.EITHER,
            when=lambda value: value not in (None, "causal_lm"),
        ),
        switch("use_liger_kernel", "Liger's kernels are not modelled", Direction.EITHER),
        Effect(
            key="packing",
            effect="packed samples of this method are not modelled",
            direction=Direction.EITHER,
            when=is_true,
            given=lambda settings: settings.get("rlhf_type") not in (None, "dpo"),
        ),
        Effect(key="ref_adapters", effect="the reference's own adapter is not counted"),
        Effect(key="reward_model", effect="reward models beside the trained one are not counted"),
        *(
            switch(key, "what is offloaded while vLLM generates is counted", Direction.LESS)
            for key in ("offload_model", "offload_optimizer")
        ),
    ),
    details={
        "task_type": "num_labels",
        "use_liger_kernel": "liger_kernel_config",
        "packing": "packing_length packing_num_proc",
        "rlhf_type": _GENERATED,
    },
    no_effect={
        trainer.RATES: "beta center_rewards_coefficient desirable_weight discopop_tau"
        " label_smoothing ld_alpha loss_scale loss_weights simpo_gamma undesirable_weight",
        trainer.OVERWRITTEN: "enable_channel_loss enable_dft_loss label_smoothing_factor"
        " lora_dropout",
        trainer.SAMPLES: "use_logits_to_keep",
        # dpo_trainer.py (concatenated_forward): the mean of log-probabilities that are there.
        "the loss of words comes from the log-probabilities of the pairs": "rpo_alpha",
        trainer.PLACES: "ref_model_revision ref_model_type",
    },
)

"""The settings of axolotl, with those of its plugins.

Source: axolotl 0.19.0, utils/schemas/*.py, integrations/*/args.py.
"""

from __future__ import annotations

import re

from oomguard.adapters import effects, fields
from oomguard.adapters.effects import Effect, differs, on_host, switch
from oomguard.adapters.settings import trainer_settings as trainer
from oomguard.adapters.settings.groups import SettingGroups, fields_of
from oomguard.configfile.layered import Settings
from oomguard.job.memory_settings import Attention
from oomguard.job.unmodelled import Direction, Memory

_MICRO, _EVAL = fields.number("micro_batch_size", 1), fields.maybe_number("eval_batch_size")
_LENGTH, _EVAL_LENGTH = (
    fields.number("sequence_len", 512),
    fields.maybe_number("eval_sequence_len"),
)
#: Settings that the Trainer's arguments have under the same name.
_TRAINERS = """
accelerator_config adam_beta1 adam_beta2 adam_epsilon auto_find_batch_size dataloader_drop_last
dataloader_num_workers dataloader_pin_memory dataloader_prefetch_factor ddp_broadcast_buffers
ddp_bucket_cap_mb ddp_find_unused_parameters ddp_timeout deepspeed fp16 fsdp
gradient_accumulation_steps greater_is_better hub_model_id hub_revision hub_strategy learning_rate
load_best_model_at_end local_rank logging_steps lr_scheduler_kwargs max_grad_norm max_steps
metric_for_best_model neftune_noise_alpha optim_args optim_target_modules output_dir
remove_unused_columns resume_from_checkpoint save_only_model save_steps save_strategy
save_total_limit seed tf32 torch_compile torch_compile_backend torch_compile_mode
torch_empty_cache_steps trackio_space_id warmup_steps weight_decay
"""


def _evaluates_more(settings: Settings) -> bool:
    micro, length = _MICRO.of(settings), _LENGTH.of(settings)
    return (_EVAL.of(settings) or micro) > micro or (_EVAL_LENGTH.of(settings) or length) > length


_READ = fields_of(
    {
        "micro_batch": "micro_batch_size",
        "accumulation": "batch_size",
        "eval_batch": "eval_batch_size",
        "sequence_length": "sequence_len",
        "overlong": "excess_length_strategy",
        "checkpointing": "gradient_checkpointing fsdp_config",
        "code": "gradient_checkpointing_kwargs rl unfrozen_parameters",
        "precision": "bf16 bfloat16 float16 load_in_8bit",
        "autocasts": "bf16 bfloat16 fp16",
        "model": "base_model",
        "quantization": "load_in_4bit load_in_8bit bnb_config_kwargs gptq",
        "tuning": "adapter",
        "trained_fp32": "adapter",
        "lora": "adapter lora_r lora_alpha lora_dropout lora_target_modules lora_modules_to_save"
        " lora_target_linear peft_use_dora rl lora_mlp_kernel lora_qkv_kernel lora_o_kernel"
        " lora_embedding_kernel trust_remote_code",
        "lora_rank": "lora_r",
        "embedding_rows": "lora_modules_to_save",
        "trained_embeddings": "lora_modules_to_save",
        "optimizer": "optimizer",
        "loss_kernel": "plugins liger_fused_linear_cross_entropy cut_cross_entropy",
        "low_cpu_mem_usage": "low_cpu_mem_usage",
        "attention": "attn_implementation",
        "raised": "attn_implementation flash_attention plugins cut_cross_entropy rl",
        "sharding": "fsdp_config",
        "raises_shards": "fsdp_config fsdp_version",
        "method": "rl reward_model process_reward_model model_type",
        "objective": "rl reward_model process_reward_model model_type num_labels cpo_alpha",
        "compares_samples": "rl",
        "engine_share": "trl vllm",
        "engine_sleeps": "trl",
        "generation": "trl",
    }
)
#: A kernel of the hub is named by its repository: kernels-community/vllm-flash-attn3.
_FLASH = re.compile(r"flash[-_]att(?:n|ention)[-_]?\d*$")


def attention_named(value: object) -> Attention | None:
    """Return the attention of a name; None for one that is not known."""
    named = {"None": Attention.SDPA, "eager": Attention.EAGER, "sdpa": Attention.SDPA}
    return named.get(str(value)) or (Attention.FLASH if _FLASH.search(str(value)) else None)


def dequantizes(settings: Settings) -> bool:
    """Return whether a checkpoint in MXFP4 is unpacked to 16 bits while it loads."""
    how = settings.get("model_quantization_config_kwargs")
    named = settings.get("model_quantization_config") == "Mxfp4Config"
    return named and isinstance(how, dict) and how.get("dequantize") is True


_PARTLY = (
    Effect(
        key="unfrozen_parameters", effect="all weights count as trained", direction=Direction.LESS
    ),
    effects.optimizer("optimizer"),
    Effect(
        key="gptq",
        effect="unless the checkpoint's config or name states its format, it is counted in 16 bits",
        direction=Direction.LESS,
    ),
    Effect(
        key="bnb_config_kwargs",
        effect="the format that it asks for is not modelled: counted in 16 bits",
        direction=Direction.LESS,
    ),
    Effect(
        key="attn_implementation",
        effect="this attention is counted as torch's own",
        direction=Direction.EITHER,
        when=lambda value: attention_named(value) is None,
    ),
    Effect(
        key="gradient_checkpointing",
        effect="what checkpointing offloads is counted on the GPU",
        direction=Direction.LESS,
        when=lambda value: str(value).startswith("offload"),
    ),
)
_PARALLEL = (
    *(
        Effect(key=key, effect="this kind of parallelism is not modelled", direction=Direction.LESS)
        for key in (
            *("tensor_parallel_size", "context_parallel_size", "sequence_parallel_degree"),
            *("dp_shard_size", "dp_replicate_size", "expert_parallel_size"),
        )
    ),
    Effect(
        key="device_map",
        effect="layers split over several GPUs are counted on one",
        direction=Direction.LESS,
    ),
    switch("use_ray", "the ranks that Ray starts are not counted", Direction.EITHER),
)
_TRAINED = (
    switch("relora", "ReLoRA is not modelled"),
    Effect(
        key="qat", effect="the fake quantization of weights and activations is not included"
    ),
    Effect(
        key="lora_model_dir",
        effect="the rank and the targets of this adapter are not known",
        direction=Direction.EITHER,
    ),
    Effect(
        key="lora_target_parameters",
        effect="adapters of single parameters, such as experts, are not counted",
    ),
    *(
        Effect(key=key, effect="layers are counted with one rank", direction=Direction.EITHER)
        for key in ("lora_rank_pattern", "peft_layers_pattern", "peft_layers_to_transform")
    ),
    Effect(key="peft_layer_replication", effect="replicated layers are not counted"),
    Effect(
        key="peft_trainable_token_indices", effect="tokens that are trained alone are not counted"
    ),
    Effect(
        key="peft_init_lora_weights",
        effect="an adapter that starts from the weights decomposes them while it loads",
        when=lambda value: str(value).lower() not in ("none", "true", "false", "gaussian"),
    ),
    differs(
        "peft_autocast_adapter_dtype", True, "adapters are counted in fp32", Direction.LESS
    ),
    Effect(
        key="peft",
        effect="PEFT's own options, such as LoftQ, are not read",
        direction=Direction.EITHER,
    ),
    Effect(key="lisa_n_layers", effect="all layers count as trained", direction=Direction.LESS),
    Effect(
        key="spectrum_top_fraction",
        effect="all weights count as trained",
        direction=Direction.LESS,
    ),
    Effect(key="mora", effect="MoRA is counted as LoRA", direction=Direction.EITHER),
    Effect(key="hatchery", effect="training elsewhere is not modelled", direction=Direction.LESS),
    Effect(
        key="peft_ensure_weight_tying",
        effect="saved modules that share their weights are counted twice",
        direction=Direction.LESS,
    ),
    differs("freeze_mm_modules", False, "all parts count as trained", Direction.LESS),
    *(
        Effect(key=key, effect="added or removed rows of the vocabulary are not counted",
               direction=Direction.EITHER)
        for key in ("tokens", "shrink_embeddings")
    ),
)  # fmt: skip
LORA_KERNELS = ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel")
_KERNELS = (
    *(
        switch(key, "this kernel is not modelled", Direction.EITHER)
        for key in (
            *("liger_cross_entropy", "use_kernels"),
            *("flash_attn_cross_entropy", "flash_attn_fuse_mlp", "flash_attn_rms_norm"),
            *("fused_attn_kernel", "use_scattermoe", "use_sonicmoe", "use_dsv4_kernels"),
            *("use_glm_dsa_kernels", "use_onebitllms", "llama4_linearized_experts"),
            *("flash_optimum", "xformers_attention", "sage_attention", "s2_attention"),
            *("flex_attention", "flash_attn_d512", "sdpa_varlen", "deepcompile"),
            "scaling_softmax",
        )
    ),
    *(
        Effect(key=key, effect="this kernel is not modelled", direction=Direction.EITHER)
        for key in (
            *("expert_backend", "experts_implementation", "gemma4_hybrid_attn_impl"),
            *("large_head_attention", "nonexpert_quantization", "torch_compile_options"),
            *("gemma4_fp8_nonexpert", "gemma4_nf4_nonexpert", "moe_grouped_backend"),
        )
    ),
    switch("eager_attention", "attention with all scores at once is counted as torch's own"),
    switch("fp8", "matrices in FP8 and their scales are not modelled", Direction.EITHER),
    switch("dense_mixer", "a step computes all experts"),
    switch("chunked_cross_entropy", "all logits are counted", Direction.LESS),
    switch("tiled_mlp", "a tiled MLP is counted whole", Direction.LESS),
    switch("layer_offloading", "offloaded layers are counted on the GPU", Direction.LESS),
    switch("ple_cpu_offload", "offloaded parameters are counted on the GPU", Direction.LESS),
    switch("lora_on_cpu", "an adapter that is loaded on the host", Direction.EITHER),
    switch("embeddings_skip_upcast", "embeddings are counted as raised", Direction.LESS),
    switch("fp32_norms", "norms in fp32 are not included"),
    switch("float32", "weights in fp32 are not read here"),
    Effect(
        key="activation_offloading",
        effect="offloaded activations are counted on the GPU",
        direction=Direction.LESS,
    ),
    Effect(
        key="selective_checkpointing",
        effect="what is kept beside a layer's checkpoint is not included",
    ),
    *(
        Effect(
            key=key,
            effect="what the model is built with besides is not read",
            direction=Direction.EITHER,
        )
        for key in (
            *("overrides_of_model_config", "model_config", "overrides_of_model_kwargs"),
            *("model_kwargs", "base_model_config"),
        )
    ),
    Effect(
        key="model_quantization_config",
        effect="the format that it asks for is not read",
        direction=Direction.EITHER,
        given=lambda settings: not dequantizes(settings),
    ),
    switch("reinit_weights", "weights are created instead of read", Direction.EITHER),
)
_LOSSES = (
    *(
        Effect(key=key, effect="this method is planned as sft")
        for key in ("diffusion", "ebft", "kd_trainer", "llmcompressor", "nemo_gym_enabled")
    ),
    Effect(
        key="precompute_ref_log_probs",
        effect="the reference is counted in every step",
        direction=Direction.LESS,
    ),
    switch("dpo_use_liger_kernel", "Liger's kernels are not modelled", Direction.EITHER),
    switch("dpo_padding_free", "a batch is counted with its padding", Direction.EITHER),
    Effect(
        key="dpo_loss_type",
        effect="the loss of the better answers' words is not included",
        when=lambda value: "sft" in str(value),
    ),
    switch("dpo_use_weighting", "the weights of pairs are not included"),
    Effect(key="rpo_alpha", effect="the loss of the better answers' words is not included"),
    switch("use_eaft", "EAFT's loss over whole logits is not modelled"),
    Effect(
        key="trainer_cls",
        effect="a trainer of one's own is not modelled",
        direction=Direction.EITHER,
    ),
    Effect(key="grokfast_alpha", effect="an average of every gradient is not counted"),
    Effect(
        key="noisy_embedding_alpha", effect="the noise on the embedding's output is not included"
    ),
    switch("skip_prepare_dataset", "samples that axolotl does not prepare are not cut"),
    Effect(
        key="image_size",
        effect="the size of images is not read",
        direction=Direction.EITHER,
    ),
    Effect(key="pad_to_multiple_of", effect="padding beyond the longest sample is not counted"),
    Effect(
        key="batch_flattening",
        effect="a batch is counted with its padding",
        direction=Direction.EITHER,
    ),
)
_RUN = (
    *(
        Effect(
            key=key,
            effect="evaluation is not included, and its batches are larger",
            when=trainer.is_evaluating,
            given=_evaluates_more,
        )
        for key in ("eval_strategy", "evaluation_strategy", "evals_per_epoch", "eval_steps")
    ),
    *(
        Effect(
            key=key,
            effect="evaluation is not included, and its batches are larger",
            given=_evaluates_more,
        )
        for key in ("val_set_size", "test_datasets")
    ),
    *(
        switch(key, "an evaluation that generates is not included")
        for key in ("do_causal_lm_eval", "do_bench_eval", "generate_samples")
    ),
    Effect(key="eval_table_size", effect="an evaluation that generates is not included"),
    Effect(
        key="lm_eval_tasks",
        effect="an evaluation with lm-eval generates: not included",
        given=lambda settings: settings.get("lm_eval_post_train") is not False,
    ),
    on_host("dataset_keep_in_memory", "samples that are kept in memory are not included"),
    on_host("dataset_num_proc", "each process's own host memory is not included"),
    on_host("dataset_processes", "each process's own host memory is not included"),
    Effect(
        key="qlora_sharded_model_loading",
        effect="each rank is counted with the whole checkpoint while it loads",
        direction=Direction.LESS,
        memory=Memory.HOST,
    ),
    on_host("pretraining_dataset", "the buffer that samples are packed in is not included"),
    on_host("streaming", "the buffer that streamed samples are shuffled in is not included"),
    Effect(
        key="profiler_steps",
        effect="what the profiler records is not included",
        memory=Memory.HOST,
    ),
)

_DETAILS = {
    "model_quantization_config": "model_quantization_config_kwargs",
    "optimizer": "adam_beta3 adam_epsilon2 dion_lr dion_momentum dion_rank_fraction"
    " dion_rank_multiple_of qgalore_cos_threshold qgalore_gamma_proj qgalore_proj_bits"
    " qgalore_proj_group_size qgalore_proj_quant qgalore_proj_type qgalore_queue_size qgalore_rank"
    " qgalore_scale qgalore_update_proj_gap",
    "reward_model": "center_rewards_coefficient",
    "kd_trainer": "kd_alpha kd_beta kd_ce_alpha kd_normalize_topk kd_online_server"
    " kd_online_server_base_url kd_online_timeout kd_online_topk kd_temperature"
    " kd_temperature_min",
    "nemo_gym_enabled": "nemo_gym_auto_clone nemo_gym_auto_start nemo_gym_config_paths"
    " nemo_gym_datasets nemo_gym_dir nemo_gym_head_port nemo_gym_max_turns nemo_gym_model_name"
    " nemo_gym_multi_turn nemo_gym_run_timeout nemo_gym_server_timeout nemo_gym_verify_timeout",
    "use_dsv4_kernels": "dsv4_bf16_all dsv4_fp4_grouped_mode dsv4_fp8_lora_kernel"
    " dsv4_fp8_nonexpert_mode dsv4_shared_mlp_lora_kernel",
    "nonexpert_quantization": "nvfp4_merge_aware nvfp4_merge_aware_start_step",
    "expert_backend": "moe_bnb_fast moe_dequant_chunk_size",
    "expert_parallel_size": "expert_parallel_backend expert_parallel_fallback_on_unsupported"
    " expert_parallel_num_nvl_bytes expert_parallel_num_rdma_bytes"
    " expert_parallel_token_capacity",
    "context_parallel_size": "heads_k_stride ring_attn_func",
    "plugins": "liger_kernel_impl liger_use_token_scaling",
    "use_eaft": "eaft_alpha eaft_k",
    "chunked_cross_entropy": "chunked_cross_entropy_num_chunks",
    "flex_attention": "flex_attn_compile_kwargs",
    "scaling_softmax": "scaling_softmax_bias scaling_softmax_factor",
    "tiled_mlp": "tiled_mlp_num_shards tiled_mlp_use_original_mlp",
    "fp32_norms": "fp32_norm_classes",
    "fp8": "fp8_config fp8_enable_fsdp_float8_all_gather",
    "device_map": "gpu_memory_limit max_memory",
    "grokfast_alpha": "grokfast_lamb",
    "relora": "jagged_restart_anneal_steps jagged_restart_steps jagged_restart_warmup_steps"
    " relora_cpu_offload relora_prune_method relora_prune_ratio",
    "lisa_n_layers": "lisa_layers_attribute lisa_step_interval",
    "spectrum_top_fraction": "spectrum_model_name",
    "lm_eval_tasks": "lm_eval_batch_size lm_eval_model lm_eval_post_train",
    "do_causal_lm_eval": "eval_causal_lm_metrics eval_max_new_tokens",
    "do_bench_eval": "bench_dataset bench_split",
    "generate_samples": "generation_do_sample generation_max_new_tokens generation_prompt_ratio"
    " generation_temperature generation_top_k generation_top_p num_generation_samples",
    "val_set_size": "eval_sample_packing eval_sequence_len",
    "use_ray": "ray_num_workers ray_run_name resources_per_worker",
    "pretraining_dataset": "pretrain_multipack_attn pretrain_multipack_buffer_size"
    " pretraining_sample_concatenation",
    "streaming": "streaming_multipack_buffer_size",
    "image_size": "image_resize_algorithm processor_kwargs",
    "profiler_steps": "profiler_steps_start",
}
_NO_EFFECT = {
    trainer.SAVED: "fsdp_final_state_dict_type dpo_generate_during_eval"
    " comet_api_key comet_experiment_config comet_experiment_key comet_mode"
    " comet_online comet_project_name comet_workspace dynamic_checkpoint early_stopping_patience"
    " hf_mlflow_log_artifacts include_tkps include_tokens_per_second loss_watchdog_patience"
    " loss_watchdog_threshold mlflow_experiment_name mlflow_run_name mlflow_tracking_uri"
    " otel_metrics_host otel_metrics_port save_first_step save_safetensors saves_per_epoch"
    " swanlab_api_host swanlab_api_key swanlab_completion_log_interval"
    " swanlab_completion_max_buffer swanlab_description swanlab_experiment_name"
    " swanlab_lark_secret swanlab_lark_webhook_url swanlab_log_completions swanlab_log_model"
    " swanlab_mode swanlab_project swanlab_web_host swanlab_workspace total_num_tokens"
    " total_supervised_tokens trackio_project_name trackio_run_name use_comet use_mlflow"
    " use_otel_metrics use_swanlab use_tensorboard use_trackio use_wandb wandb_entity"
    " wandb_log_model wandb_mode wandb_name wandb_project wandb_run_id wandb_watch",
    trainer.RATES: "dpo_beta dpo_label_smoothing dpo_loss_weights dpo_norm_loss"
    " kto_desirable_weight kto_undesirable_weight orpo_alpha rl_beta simpo_gamma"
    " cosine_constant_lr_ratio cosine_min_lr_ratio embedding_lr embedding_lr_scale"
    " lora_alpha_pattern lora_fan_in_fan_out loraplus_lr_embedding loraplus_lr_ratio lr_div_factor"
    " lr_groups lr_quadratic_warmup lr_scheduler mean_resizing_embeddings peft_use_rslora"
    " rope_scaling warmup_ratio",
    trainer.SAMPLES: "dpo_use_logits_to_keep max_prompt_len"
    " chat_template chat_template_jinja chat_template_kwargs curriculum_sampling"
    " dataset_exact_deduplication dataset_prepared_path dataset_shard_idx dataset_shard_num"
    " datasets default_system_message eot_tokens group_by_length is_preprocess min_sample_len"
    " multipack_real_batches num_dataset_shards_to_save pad_to_sequence_len pose_max_context_len"
    " pose_num_chunks pose_split_on_token_ids preprocess_iterable role_boundaries sample_packing"
    " sample_packing_bin_size sample_packing_eff_est sample_packing_group_size"
    " sample_packing_mp_start_method sample_packing_sequentially shuffle_before_merging_datasets"
    " shuffle_merged_datasets train_on_inputs use_pose",
    trainer.PLACES: "axolotl_config_path cls_model_config hf_use_auth_token"
    " is_falcon_derived_model is_llama_derived_model is_mistral_derived_model"
    " is_qwen_derived_model model_revision processor_type push_dataset_to_hub"
    " revision_of_model tokenizer_config tokenizer_legacy tokenizer_save_jinja_files"
    " tokenizer_type tokenizer_use_fast tokenizer_use_mistral_common type_of_model",
    trainer.RUNNING: "auto_resume_from_checkpoints ddp device experimental_skip_move_to_device"
    " fix_untrained_tokens gc_collect_steps gc_steps num_epochs strict torchdistx_path world_size",
    trainer.INFERENCE: "gradio_max_new_tokens gradio_server_name gradio_server_port gradio_share"
    " gradio_temperature gradio_title merge_lora merge_method quantization",
    trainer.OVERWRITTEN: "max_packed_sequence_len",
    "a few rows of the vocabulary": "added_tokens_overrides resize_token_embeddings_to_32x"
    " special_tokens",
    # use_liger_kernel brings them elsewhere; only its fused loss changes what is counted.
    "kernels that keep no more than what is counted": "liger_glu_activation liger_layer_norm"
    " liger_rms_norm liger_rms_norm_gated liger_rope liger_swiglu",
    "experts in 4 bits, as all matrices of a model in 4 bits are counted": "quantize_moe_experts",
    "attention that keeps no scores, as the one that is counted": "sdp_attention",
}

_OWN = SettingGroups(
    read=_READ,
    partly=_PARTLY,
    unmodelled=(*_PARALLEL, *_TRAINED, *_KERNELS, *_LOSSES, *_RUN),
    details=_DETAILS,
    no_effect=_NO_EFFECT,
)

AXOLOTL = trainer.TRAINER.only(_TRAINERS.split()) | _OWN

"""The settings of LLaMA-Factory.

Source: llamafactory 0.9.5, hparams/, model/, train/tuner.py, train/trainer_utils.py.
"""

from __future__ import annotations

from oomguard.adapters import effects, fields
from oomguard.adapters.effects import Effect, differs, switch
from oomguard.adapters.llamafactory_optimizers import is_counted
from oomguard.adapters.settings import trainer_settings as trainer
from oomguard.adapters.settings.groups import SettingGroups, fields_of
from oomguard.configfile.layered import Settings
from oomguard.configfile.values import is_true
from oomguard.job.unmodelled import Direction, Memory

#: Settings of the TrainingArguments of later versions than LLaMA-Factory's.
_LATER = (
    *("activation_checkpointing", "activation_checkpointing_kwargs"),
    *("dataloader_in_order", "dataloader_multiprocessing_context"),
)
_CREATES = fields.flag("create_new_adapter")
_CHECKPOINTS_OFF = fields.flag("disable_gradient_checkpointing")
_FREEZES = "freeze"


def _resumes_adapter(settings: Settings) -> bool:
    return not _CREATES.of(settings)


def _trains_some(settings: Settings) -> bool:
    return settings.get("finetuning_type") == _FREEZES


_READ = fields_of(
    {
        "tuning": "finetuning_type",
        "method": "stage pref_loss",
        "objective": "stage pref_loss ref_model ref_model_quantization_bit",
        "compares_samples": "stage",
        "model": "model_name_or_path",
        "multimodal": "model_name_or_path template media_dir image_max_pixels image_min_pixels"
        " video_max_pixels video_fps",
        "images": "model_name_or_path template media_dir image_max_pixels image_min_pixels"
        " video_max_pixels video_fps",
        "image_pixels": "model_name_or_path template media_dir image_max_pixels image_min_pixels"
        " video_max_pixels video_fps",
        "video_pixels": "model_name_or_path template media_dir image_max_pixels image_min_pixels"
        " video_max_pixels video_fps",
        "frozen": "model_name_or_path template media_dir image_max_pixels image_min_pixels"
        " video_max_pixels video_fps freeze_vision_tower freeze_multi_modal_projector"
        " freeze_language_model",
        "sequence_length": "cutoff_len tokenized_path",
        "overlong": "stage packing tokenized_path",
        "packing": "stage packing neat_packing",
        "precision": "pure_bf16",
        "base": "fp16",
        "trained_fp32": "deepspeed",
        "quantization": "quantization_bit quantization_method"
        " quantization_type double_quantization",
        "checkpointing": "disable_gradient_checkpointing",
        "code": "use_reentrant_gc",
        "lora": "finetuning_type lora_rank lora_alpha lora_target lora_dropout additional_target"
        " resize_vocab add_tokens add_special_tokens stage use_dora",
        "lora_rank": "finetuning_type lora_rank",
        "embedding_rows": "additional_target resize_vocab add_tokens add_special_tokens",
        "trained_embeddings": "additional_target resize_vocab add_tokens add_special_tokens",
        "new_tokens": "add_tokens add_special_tokens",
        "trained_layers": "freeze_trainable_layers",
        "attention": "flash_attn",
        "loss_kernel": "enable_liger_kernel stage use_dft_loss use_eaft_loss",
        "low_cpu_mem_usage": "low_cpu_mem_usage",
        "preprocess_workers": "preprocessing_num_workers",
        "data": "dataset dataset_dir",
        "states": "use_galore galore_rank galore_target galore_proj_type use_apollo apollo_rank"
        " apollo_target apollo_proj_type use_adam_mini use_muon",
        "step_in_backward": "galore_layerwise apollo_layerwise",
    }
)

_OPTIMIZERS = (switch("use_badam", effects.OTHER_STATES, Direction.LESS),)
_PROJECTED = tuple(
    Effect(
        key=key,
        effect=effects.OTHER_STATES,
        direction=Direction.LESS,
        when=is_true,
        given=lambda settings: not is_counted(settings),
    )
    for key in ("use_galore", "use_apollo")
)

_MODEL = (
    switch("use_kt", "experts computed on the CPU are counted on the GPU", Direction.LESS),
    switch("use_unsloth", "Unsloth's kernels are not modelled", Direction.EITHER),
    switch("use_unsloth_gc", "activations offloaded by Unsloth count", Direction.LESS),
    switch("use_v1_kernels", "the kernels of LLaMA-Factory v1 are not modelled", Direction.EITHER),
    switch("use_llama_pro", "the added blocks are not counted"),
    switch("use_hyper_parallel", "training with HyperParallel is not modelled", Direction.EITHER),
    switch("shift_attn", "S^2 attention computes scores itself and copies shifted heads"),
    switch("upcast_layernorm", "norms and what they compute are in fp32"),
    switch("upcast_lmhead_output", "a copy of the logits in fp32 is not included"),
    switch("fp8", "matrices in FP8 and their scales are not modelled", Direction.EITHER),
    switch(
        "train_from_scratch",
        "weights are created instead of read, maybe in another format",
        Direction.EITHER,
    ),
    Effect(key="mixture_of_depths", effect="mixture of depths is not modelled"),
    Effect(
        key="moe_aux_loss_coef",
        effect="the router's logits of every layer are kept for a loss of their own",
    ),
    Effect(
        key="new_special_tokens_config", effect="the tokens that this file adds are not counted"
    ),
    Effect(
        key="adapter_name_or_path",
        effect="the rank and the targets of this adapter are not known",
        direction=Direction.EITHER,
        given=_resumes_adapter,
    ),
    switch(
        "use_liger_kernel",
        "the Trainer's own switch for Liger's kernels is not modelled",
        Direction.EITHER,
    ),
    Effect(
        key="gradient_checkpointing",
        effect="the Trainer switches checkpointing on again",
        direction=Direction.LESS,
        given=_CHECKPOINTS_OFF.of,
    ),
)

_TRAINED = (
    switch("pissa_init", "PiSSA decomposes every adapted matrix while it loads"),
    Effect(
        key="freeze_trainable_modules",
        effect="all modules of the trained layers count as trained",
        direction=Direction.LESS,
        when=lambda value: value not in (None, "all"),
        given=_trains_some,
    ),
    Effect(
        key="freeze_extra_modules",
        effect="trained modules outside of the layers are not counted",
        given=_trains_some,
    ),
)

_LOSSES = (
    switch("use_asft_loss", "the reference model of ASFT is not counted"),
    switch("compute_accuracy", "logits that evaluation turns into words are not included"),
    Effect(key="ref_model_adapters", effect="the reference model's adapter is not counted"),
)

_MEDIA = (
    switch("image_do_pan_and_scan", "crops of an image are not counted"),
    switch("crop_to_patches", "patches of an image beside it are not counted"),
    switch("use_audio_in_video", "the sound of a video is not counted"),
    Effect(
        key="video_maxlen",
        effect="frames of a video are not counted",
        when=lambda value: value is not None,
    ),
    differs("audio_sampling_rate", 16000, "the length of sound is not counted", Direction.EITHER),
)

_HOST = (
    Effect(
        key="streaming",
        effect="the buffer that streamed samples are shuffled in is not included",
        memory=Memory.HOST,
    ),
    effects.on_host("enable_torch_profiler", "what the profiler records is not included"),
    Effect(
        key="preprocessing_batch_size",
        effect="samples that are tokenized together are not included",
        memory=Memory.HOST,
        when=lambda value: str(value).isdecimal() and int(str(value)) > 1000,  # noqa: PLR2004  default
    ),
    Effect(
        key="ray_num_workers",
        effect="the ranks that Ray starts are not counted",
        direction=Direction.EITHER,
    ),
)

_OWN = SettingGroups(
    read=_READ,
    partly=(
        *_PROJECTED,
        effects.quantizer("quantization_method"),
        switch("use_eaft_loss", "the copy of the logits for EAFT's entropies is not included"),
        Effect(
            key="video_fps",
            effect="frames of a video are not counted",
            when=lambda value: value is not None,
        ),
        effects.on_host(
            "preprocessing_num_workers", "each process's own host memory is not included"
        ),
    ),
    unmodelled=(*_OPTIMIZERS, *_MODEL, *_TRAINED, *_LOSSES, *_MEDIA, *_HOST),
    details={
        "use_badam": "badam_mask_mode badam_mode badam_start_block badam_switch_interval"
        " badam_switch_mode badam_update_ratio badam_verbose",
        "use_kt": "kt_expert_checkpoint_path kt_lora_expert_intermediate_size kt_lora_expert_num"
        " kt_use_lora_experts kt_weight_path",
        "use_hyper_parallel": "hyper_parallel_args",
        "fp8": "fp8_backend fp8_enable_fsdp_float8_all_gather",
        "pissa_init": "pissa_convert pissa_iter",
        "adapter_name_or_path": "create_new_adapter",
        "use_asft_loss": "asft_alpha",
        "streaming": "buffer_size",
        "ray_num_workers": "ray_init_kwargs",
        "enable_torch_profiler": "profiler_active_steps profiler_output_dir profiler_profile_memory"
        " profiler_record_shapes profiler_repeat profiler_wait_steps profiler_warmup_steps"
        " profiler_with_stack",
        "use_liger_kernel": "liger_kernel_config",
        "gradient_checkpointing": "gradient_checkpointing_kwargs",
        "predict_with_generate": "do_sample eval_num_beams length_penalty max_length max_new_tokens"
        " num_beams repetition_penalty skip_special_tokens temperature top_k top_p use_kv_cache",
        "finetuning_type": "module_dropout oft_block_size oft_rank oft_target",
        "stage": "ppo_buffer_size ppo_epochs ppo_score_norm ppo_target ppo_whiten_rewards"
        " reward_model reward_model_adapters reward_model_quantization_bit reward_model_type",
    },
    no_effect={
        trainer.SAVED: "early_stopping_steps include_effective_tokens_per_second logging_dir"
        " overwrite_output_dir plot_loss print_param_status profile_modules swanlab_api_key"
        " swanlab_lark_secret swanlab_lark_webhook_url swanlab_logdir swanlab_mode"
        " swanlab_project swanlab_run_name swanlab_workspace use_swanlab",
        trainer.RATES: "apollo_proj apollo_scale apollo_scale_front apollo_scale_type"
        " apollo_update_interval galore_scale galore_update_interval"
        " dpo_label_smoothing eaft_alpha init_special_tokens kto_chosen_weight"
        " kto_rejected_weight ld_alpha loraplus_lr_embedding loraplus_lr_ratio pref_bco_weight"
        " pref_beta pref_ftx rope_scaling simpo_gamma use_rslora warmup_ratio",
        trainer.SAMPLES: "default_system disable_shuffling enable_thinking eval_dataset"
        " eval_on_each_dataset ignore_pad_token_for_loss interleave_probs mask_history max_samples"
        " mix_strategy preserve_thinking split_special_tokens tool_format train_on_prompt"
        " use_fast_tokenizer val_size video_min_pixels",
        trainer.PLACES: "adapter_folder cache_dir data_shared_file_system hf_hub_token master_addr"
        " master_port model_revision ms_hub_token offload_folder om_hub_token overwrite_cache"
        " trust_remote_code",
        trainer.INFERENCE: "export_device export_dir export_hub_model_id export_legacy_format"
        " export_quantization_bit export_quantization_dataset export_quantization_maxlen"
        " export_quantization_nsamples export_size infer_dtype sglang_config sglang_lora_backend"
        " sglang_maxlen sglang_mem_fraction sglang_tp_size vllm_config vllm_enforce_eager"
        " vllm_gpu_util vllm_max_lora_rank vllm_maxlen",
        trainer.OVERWRITTEN: "infer_backend quantization_device_map use_mca",
    },
)

LLAMAFACTORY = trainer.TRAINER.without(_LATER) | trainer.SEQ2SEQ | _OWN

"""The settings of ms-swift's `swift sft` and `swift pt`.

Source: ms-swift 4.6.0, arguments/{sft_args,tuner_args}.py, arguments/base_args/,
trainers/arguments.py, callbacks/mapping.py.
"""

from __future__ import annotations

from oomguard.adapters import effects
from oomguard.adapters.effects import Effect, differs, on_host, switch
from oomguard.adapters.fields import Key, number
from oomguard.adapters.settings import trainer_settings as trainer
from oomguard.adapters.settings.groups import SettingGroups, fields_of
from oomguard.configfile.layered import Settings
from oomguard.configfile.values import is_true
from oomguard.job.unmodelled import Direction

MICRO_BATCH: Key[int] = number("per_device_train_batch_size", 1)
EVAL_BATCH: Key[int] = number("per_device_eval_batch_size", 1)
_DECOMPOSING = (*trainer.DECOMPOSING, "loftq")


def _evaluates_more(settings: Settings) -> bool:
    return EVAL_BATCH.of(settings) > MICRO_BATCH.of(settings)


_READ = fields_of(
    {
        "micro_batch": "per_device_train_batch_size",
        "accumulation": "per_device_train_batch_size",
        "model": "model",
        "multimodal": "model max_pixels vit_gradient_checkpointing",
        "frozen": "model max_pixels vit_gradient_checkpointing freeze_vit freeze_aligner"
        " freeze_llm",
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
        "tuning": "tuner_type",
        "trained_fp32": "tuner_type",
        "lora": "tuner_type lora_rank lora_alpha lora_dropout target_modules modules_to_save"
        " use_dora",
        "lora_rank": "tuner_type lora_rank",
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
    differs("attn_impl", "sdpa", "attention is counted as torch's own", Direction.EITHER),
    Effect(
        key="bf16",
        effect="autocast is counted as `torch_dtype` has it",
        direction=Direction.EITHER,
        when=lambda value: value is not None and not is_true(value),
    ),
    switch("fp16", "autocast is counted as `torch_dtype` has it", Direction.EITHER),
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
    switch("padding_free", "a batch is counted with its padding", Direction.EITHER),
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
        Effect(
            key="device_map",
            effect="layers split over several GPUs are counted on one",
            direction=Direction.LESS,
        ),
        Effect(
            key="vit_gradient_checkpointing",
            effect="the vision tower is counted as the rest of the model",
            direction=Direction.EITHER,
            when=lambda value: value is not None,
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

SWIFT = (
    trainer.TRAINER.without(("bf16", "fp16", *trainer.EVALUATING))
    | trainer.SEQ2SEQ
    | trainer.CHECKPOINTING
    | _OWN
)

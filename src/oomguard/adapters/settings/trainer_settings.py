"""The settings of transformers' TrainingArguments, which every framework on its Trainer has.

Source: transformers 5.6.0 and 5.23, training_args.py, training_args_seq2seq.py, trainer.py.
"""

from __future__ import annotations

import re

from oomguard.adapters import effects
from oomguard.adapters.effects import Effect
from oomguard.adapters.fields import Key
from oomguard.adapters.hf import training_arguments as hf
from oomguard.adapters.settings.groups import SettingGroups, fields_of
from oomguard.configfile.values import real
from oomguard.job.unmodelled import Direction, Memory

#: What a setting of no effect decides, by the reasons that several frameworks share.
SAVED = "what is saved, logged and reported, and when"
RATES = "learning rates, schedules and factors of the loss: numbers, whose memory is the same"
SAMPLES = "which samples there are, their text and their order: the longest allowed is planned"
PLACES = "names, paths, versions and access"
RUNNING = "how the job runs: its length, seeds, errors and processes"
INFERENCE = "inference and export alone, none of it in training"
COMMUNICATION = "how gradients are exchanged: as many buckets for other sizes"
OVERWRITTEN = "overwritten or refused by the framework itself in training"


def is_evaluating(value: object) -> bool:
    """Return whether a strategy evaluates during training."""
    return str(value).lower() not in ("no", "none", "false")


def no_clipping(value: object) -> bool:
    """Return whether a maximum norm of gradients switches clipping off."""
    try:
        return value is not None and real(value) == 0
    except ValueError:
        return False


EVALUATED = "evaluation is not included, and its batch is larger than the micro batch"


def evaluations(eval_batch: Key[int], micro_batch: Key[int]) -> tuple[Effect, ...]:
    """Return the effects of evaluating with a larger batch than the one that is planned."""
    return tuple(
        Effect(
            key=key,
            effect=EVALUATED,
            when=is_evaluating,
            given=lambda settings: eval_batch.of(settings) > micro_batch.of(settings),
        )
        for key in EVALUATING
    )


EVALUATING = ("eval_strategy", "eval_on_start", "do_eval")
COMPILED = "what torch.compile fuses and keeps is not included"

#: The kinds of FSDP that are not `full_shard`, and its offload; not in the name of a file.
OTHER_FSDP = re.compile(r"(?s)^(?!.*\.json$).*(shard_grad_op|no_shard|hybrid_shard|offload)")
#: Of the first, transformers' own scripts and most frameworks read all.
READ = fields_of(
    {
        "micro_batch": "per_device_train_batch_size",
        "accumulation": "gradient_accumulation_steps",
        "eval_batch": "per_device_eval_batch_size",
        "eval_accumulation": "eval_accumulation_steps",
        "prediction_loss_only": "prediction_loss_only",
        "auto_find_batch_size": "auto_find_batch_size",
        "optimizer": "optim deepspeed",
        "loader_workers": "dataloader_num_workers",
        "pin_memory": "dataloader_pin_memory",
        "precision": "bf16 fp16",
        "sharding": "deepspeed fsdp",
        "offload": "deepspeed",
        "reduce_bucket": "deepspeed",
        "overlap_comm": "deepspeed",
        "device": "use_cpu",
        "allocator": "use_cpu",
        "output_dir": "output_dir",
    }
)

TRAINER = SettingGroups(
    read=READ,
    partly=(
        effects.optimizer(),
        effects.on_host("dataloader_num_workers", "each worker's own host memory is not included"),
        Effect(
            key="fsdp",
            effect="this kind of FSDP is planned as full sharding without offload",
            direction=Direction.EITHER,
            when=lambda value: bool(OTHER_FSDP.search(str(value))),
        ),
    ),
    unmodelled=(
        Effect(
            key="optim_args",
            effect="the momentum of this optimizer is not included",
            when=lambda value: "momentum" in str(value),
        ),
        Effect(
            key="optim_target_modules",
            effect="low-rank optimizer states are not modelled",
            direction=Direction.LESS,
        ),
        Effect(
            key="max_grad_norm",
            effect="norms of gradients are counted, though nothing is clipped",
            direction=Direction.LESS,
            when=no_clipping,
        ),
        *(
            Effect(key=key, effect=COMPILED, direction=Direction.EITHER)
            for key in ("torch_compile", "torch_compile_backend", "torch_compile_mode")
        ),
        *evaluations(hf.EVAL_BATCH, hf.MICRO_BATCH),
        Effect(
            key="include_for_metrics",
            effect="inputs and losses that evaluation collects are not included",
        ),
        Effect(
            key="neftune_noise_alpha", effect="the noise on the embedding's output is not included"
        ),
        Effect(
            key="label_smoothing_factor",
            effect="a smoothed loss computes the log-probabilities of all words once more",
        ),
        Effect(
            key="accelerator_config",
            effect="a batch that is split over the ranks is counted whole on each",
            direction=Direction.LESS,
            when=lambda value: "split_batches" in str(value),
        ),
        Effect(
            key="parallelism_config",
            effect="tensor and context parallelism are not modelled",
            direction=Direction.LESS,
        ),
        effects.switch(
            "full_determinism", "deterministic kernels and their workspaces", Direction.EITHER
        ),
        effects.switch("use_cache", "keys and values are kept in a cache during training"),
        Effect(
            key="dataloader_prefetch_factor",
            effect="batches that workers load ahead are not included",
            memory=Memory.HOST,
            given=lambda settings: hf.WORKERS.of(settings) > 0,
        ),
        Effect(
            key="dataloader_multiprocessing_context",
            effect="workers that share nothing with their parent",
            memory=Memory.HOST,
            when=lambda value: value in ("spawn", "forkserver"),
        ),
        Effect(
            key="dataloader_persistent_workers",
            effect="workers of training stay beside those of evaluation",
            memory=Memory.HOST,
            given=lambda settings: hf.WORKERS.of(settings) > 0,
        ),
        Effect(
            key="load_best_model_at_end",
            effect="the best checkpoint is read beside the model at the end",
            memory=Memory.HOST,
        ),
    ),
    details={
        "eval_strategy": "eval_steps eval_delay eval_do_concat_batches"
        " eval_use_gather_object batch_eval_metrics bf16_full_eval fp16_full_eval",
    },
    no_effect={
        SAVED: "disable_tqdm enable_jit_checkpoint greater_is_better hub_always_push hub_model_id"
        " hub_private_repo hub_revision hub_strategy hub_token include_num_input_tokens_seen"
        " log_level log_level_replica log_on_each_node logging_first_step logging_nan_inf_filter"
        " logging_steps logging_strategy metric_for_best_model project push_to_hub report_to"
        " run_name save_on_each_node save_only_model save_steps save_strategy save_total_limit"
        " skip_memory_metrics trackio_bucket_id trackio_space_id trackio_static_space_id"
        " do_predict do_train debug",
        RATES: "adam_beta1 adam_beta2 adam_epsilon average_tokens_across_devices learning_rate"
        " lr_scheduler_kwargs lr_scheduler_type tf32 warmup_steps weight_decay",
        SAMPLES: "data_seed dataloader_drop_last dataloader_in_order ignore_data_skip label_names"
        " length_column_name remove_unused_columns train_sampling_strategy",
        RUNNING: "ddp_timeout local_rank max_steps num_train_epochs resume_from_checkpoint"
        " restore_callback_states_from_checkpoint seed torch_empty_cache_steps",
        "each of its keys is accounted for: see FSDP's config": "fsdp_config",
        COMMUNICATION: "ddp_backend ddp_broadcast_buffers ddp_bucket_cap_mb"
        " ddp_find_unused_parameters ddp_static_graph",
    },
)

SEQ2SEQ = SettingGroups(
    unmodelled=(
        effects.switch("predict_with_generate", "evaluation generates with a cache of keys"),
    ),
    details={
        "predict_with_generate": "generation_config generation_max_length generation_num_beams",
    },
    no_effect={SAMPLES: "sortish_sampler"},
)

#: Reading by scripts that leave checkpointing and the fused loss to the Trainer.
CHECKPOINTING = SettingGroups(
    read=fields_of(
        {
            "checkpointing": "gradient_checkpointing",
            "loss_kernel": "use_liger_kernel",
            "code": "gradient_checkpointing_kwargs",
        }
    ),
    unmodelled=(
        Effect(
            key="activation_checkpointing",
            effect="checkpointing under its newer name is not read",
            direction=Direction.EITHER,
            when=lambda value: value is not None,
        ),
        Effect(
            key="liger_kernel_config",
            effect="all of Liger's kernels are counted as on, the fused loss among them",
            direction=Direction.EITHER,
        ),
    ),
    details={"activation_checkpointing": "activation_checkpointing_kwargs"},
)

#: Ways of PEFT to start an adapter from the weights (peft 0.21, tuners/lora/layer.py).
DECOMPOSING = ("pissa", "olora", "eva", "corda")
DECOMPOSED = "every adapted matrix is decomposed while it loads"
_STARTED = Effect(
    key="init_lora_weights",
    effect=DECOMPOSED,
    when=lambda value: str(value).lower().startswith(DECOMPOSING),
)

#: Effects of a script's flags; the other settings of a script are not listed anywhere.
EFFECTS = (*TRAINER.effects, *SEQ2SEQ.effects, *CHECKPOINTING.effects, _STARTED)

"""The flags of two scripts on the Trainer: Qwen's finetune.py, and LoRA that LoftQ starts.

Source: QwenLM/Qwen, finetune.py, whose pins are transformers >=4.32,<4.38 (training_args.py);
recipes/peft_loftq/train.py.
"""

from __future__ import annotations

from oomguard.adapters import effects
from oomguard.adapters.effects import Effect
from oomguard.adapters.settings import trainer_settings as trainer
from oomguard.adapters.settings.groups import SettingGroups, fields_of
from oomguard.job.unmodelled import Direction, Memory

_CHECKPOINTING = trainer.CHECKPOINTING.without(("use_liger_kernel", "liger_kernel_config"))
#: Flags of the Trainer that transformers 5 has not any more.
FORMER = SettingGroups(
    unmodelled=(
        Effect(
            key="adafactor",
            effect="Adafactor's states are counted as AdamW's",
            direction=Direction.LESS,
        ),
        *(
            Effect(key=key, effect="the batch under its former name is not read")
            for key in ("per_gpu_train_batch_size", "per_gpu_eval_batch_size")
        ),
        Effect(key="evaluation_strategy", effect=trainer.EVALUATED, when=trainer.is_evaluating),
        Effect(
            key="sharded_ddp",
            effect="fairscale's sharding is not modelled",
            direction=Direction.LESS,
        ),
        *(
            Effect(
                key=key,
                effect="weights are gathered in units that are counted as layers",
                direction=Direction.EITHER,
            )
            for key in ("fsdp_min_num_params", "fsdp_transformer_layer_cls_to_wrap")
        ),
        Effect(key="past_index", effect="states of earlier steps are kept"),
        effects.switch(
            "include_inputs_for_metrics", "inputs that evaluation collects are not included"
        ),
        effects.switch("no_cuda", "what a CPU computes in is not read", Direction.EITHER),
    ),
    no_effect={
        trainer.SAVED: "logging_dir overwrite_output_dir push_to_hub_model_id push_to_hub_token"
        " push_to_hub_organization save_safetensors include_tokens_per_second",
        trainer.SAMPLES: "group_by_length split_batches dispatch_batches",
        trainer.RATES: "warmup_ratio",
        trainer.OVERWRITTEN: "fp16_backend fp16_opt_level half_precision_backend xpu_backend"
        " mp_parameters torchdynamo",
        trainer.RUNNING: "jit_mode_eval use_ipex use_mps_device ray_scope tpu_num_cores"
        " tpu_metrics_debug use_legacy_prediction_loop",
    },
)

QWEN = (
    trainer.TRAINER
    | _CHECKPOINTING
    | FORMER
    | SettingGroups(
        read=fields_of(
            {
                "model": "model_name_or_path",
                "base": "fp16",
                "sequence_length": "model_max_length",
                "tuning": "use_lora",
                "lora": "use_lora lora_r lora_alpha lora_dropout lora_target_modules q_lora"
                " model_name_or_path",
                "lora_rank": "use_lora lora_r",
                "quantization": "q_lora",
                "embedding_rows": "use_lora q_lora model_name_or_path",
                "trained_embeddings": "use_lora q_lora model_name_or_path",
                "data": "data_path",
                "fused": "optim",
            }
        ),
        unmodelled=(
            Effect(
                key="lora_bias",
                effect="biases that are trained are not counted",
                when=lambda value: value not in (None, "none"),
            ),
            Effect(
                key="use_liger_kernel",
                effect="Liger's kernels are not modelled here",
                direction=Direction.EITHER,
            ),
            Effect(
                key="lazy_preprocess",
                effect="tokens of all samples are kept, and not counted",
                memory=Memory.HOST,
                when=lambda value: str(value).lower() == "false",
            ),
        ),
        details={"use_liger_kernel": "liger_kernel_config"},
        no_effect={
            trainer.PLACES: "cache_dir lora_weight_path",
            trainer.SAMPLES: "eval_data_path",
        },
    )
)

LOFTQ = (
    trainer.TRAINER
    | trainer.CHECKPOINTING
    | SettingGroups(
        read=fields_of(
            {
                "model": "model_name_or_path",
                "data": "train_file",
                "sequence_length": "max_length",
                "lora": "lora_r lora_alpha init_lora_weights",
                "lora_rank": "lora_r",
                "loftq": "init_lora_weights loftq_bits staged",
                "quantization": "staged",
                "fused": "optim",
            }
        ),
        no_effect={trainer.RUNNING: "loftq_iter"},
    )
)

"""The settings of LitGPT's finetuning commands.

Source: litgpt 0.5.13, finetune/{lora,full,adapter,adapter_v2}.py, args.py.
"""

from __future__ import annotations

from oomguard.adapters import effects
from oomguard.adapters.settings import trainer_settings as trainer
from oomguard.adapters.settings.groups import SettingGroups, fields_of

_COMMON = SettingGroups(
    read=fields_of(
        {
            "model": "checkpoint_dir",
            "output_dir": "out_dir",
            "precision": "precision",
            "world": "devices num_nodes",
            "sharding": "devices num_nodes",
            "checkpointing": "devices num_nodes",
            "accumulation": "devices num_nodes train.global_batch_size train.micro_batch_size",
            "micro_batch": "train.micro_batch_size",
            "sequence_length": "train.max_seq_length",
            "optimizer": "optimizer",
            "data": "data",
            "loader_workers": "data",
        }
    ),
    partly=(
        effects.optimizer("optimizer"),
        effects.on_host("data.init_args.num_workers", "each worker's own memory is not included"),
    ),
    no_effect={
        trainer.SAVED: "log.checkpoint_name log.group log.log_model log.metadata log.project"
        " log.run log.save_logs log.teamspace logger_name train.log_interval train.save_interval",
        trainer.RATES: "train.lr_warmup_steps train.min_lr",
        trainer.RUNNING: "seed train.epochs train.max_steps train.max_time",
        trainer.PLACES: "access_token",
        trainer.OVERWRITTEN: "train.lr_warmup_fraction train.max_norm train.max_tokens"
        " train.tie_embeddings",
        "an evaluation at the micro batch, without gradients": "eval.evaluate_example"
        " eval.final_validation eval.initial_validation eval.interval eval.max_iters"
        " eval.max_new_tokens",
    },
)
_QUANTIZED = SettingGroups(read=fields_of({"quantization": "quantize"}))
_RESUMED = SettingGroups(no_effect={trainer.RUNNING: "resume"})
_LORA = SettingGroups(
    read=fields_of(
        {
            "lora": "lora_r lora_alpha lora_dropout lora_query lora_key lora_value"
            " lora_projection lora_mlp lora_head",
            "lora_rank": "lora_r",
        }
    )
)
#: By the command, each with the file of `finetune/` that it runs.
LITGPT = {
    "finetune_full": _COMMON | _RESUMED,
    "finetune_lora": _COMMON | _QUANTIZED | _LORA,
    "finetune_adapter": _COMMON | _QUANTIZED,
    "finetune_adapter_v2": _COMMON | _QUANTIZED | _RESUMED,
}

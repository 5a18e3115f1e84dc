"""The settings that torchtune's finetuning recipes read, components as a whole.

Source: torchtune 0.6.1, recipes/*finetune*.py, recipes/qat_distributed.py.
"""

from __future__ import annotations

from oomguard.adapters import effects
from oomguard.adapters.effects import Effect, differs, on_host
from oomguard.adapters.settings import trainer_settings as trainer
from oomguard.adapters.settings.groups import SettingGroups, fields_of
from oomguard.job.unmodelled import Direction, Memory

TORCHTUNE = SettingGroups(
    read=fields_of(
        {
            "micro_batch": "batch_size",
            "accumulation": "gradient_accumulation_steps",
            "sequence_length": "tokenizer",
            "checkpointing": "enable_activation_checkpointing",
            "offload": "enable_activation_offloading fsdp_cpu_offload",
            "precision": "dtype",
            "model": "model checkpointer",
            "component": "model",
            "lora": "model",
            "lora_rank": "model",
            "quantization": "model",
            "optimizer": "optimizer",
            "fused": "optimizer",
            "step_in_backward": "optimizer_in_bwd",
            "loss_kernel": "loss",
            "max_grad_norm": "clip_grad_norm",
            "compiled": "compile",
            "packing": "dataset",
            "padded": "dataset",
            "data": "dataset",
            "output_dir": "output_dir",
            "device": "device",
            "allocator": "device",
        }
    ),
    partly=(
        effects.optimizer("optimizer._component_"),
        Effect(key="optimizer.momentum", effect="the momentum of this optimizer is not included"),
    ),
    unmodelled=(
        Effect(
            key="quantizer",
            effect="the fake quantization of weights and activations is not included",
        ),
        Effect(
            key="ac_mode",
            effect="only some of the layers are checkpointed; none is counted so",
            direction=Direction.LESS,
        ),
        Effect(
            key="tensor_parallel_dim",
            effect="tensor parallelism is not modelled",
            direction=Direction.LESS,
        ),
        Effect(
            key="custom_sharded_layers",
            effect="layers that are sharded by themselves are counted with the rest",
            direction=Direction.EITHER,
        ),
        differs(
            "fsdp_reshard_after_forward",
            True,
            "weights that stay gathered are counted as sharded",
            Direction.MORE,
        ),
        on_host("enable_async_checkpointing", "a copy of what is saved is not included"),
        on_host("profiler", "what the profiler records is not included"),
        Effect(
            key="low_cpu_ram",
            effect="the checkpoint is counted as it loads without this",
            direction=Direction.LESS,
            memory=Memory.HOST,
        ),
    ),
    details={
        "quantizer": "fake_quant_after_n_steps",
        "ac_mode": "ac_option",
        "tensor_parallel_dim": "tensor_parallel_plan",
    },
    no_effect={
        trainer.SAVED: "log_every_n_steps log_peak_memory_stats metric_logger"
        " save_adapter_weights_only",
        trainer.RATES: "lr_scheduler",
        trainer.SAMPLES: "collate_fn shuffle",
        trainer.RUNNING: "cudnn_deterministic_mode epochs max_steps_per_epoch"
        " resume_from_checkpoint seed",
    },
)

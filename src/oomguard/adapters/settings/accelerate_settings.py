"""The keys of accelerate's config, but for those of FSDP's.

Source: accelerate 1.15.0, commands/config/config_args.py, commands/launch.py,
utils/dataclasses.py (DeepSpeedPlugin).
"""

from __future__ import annotations

from oomguard.adapters.effects import Effect
from oomguard.adapters.settings import trainer_settings as trainer
from oomguard.adapters.settings.groups import SettingGroups, fields_of
from oomguard.job.unmodelled import Direction, Memory

_PLUGIN = "deepspeed_config"
_DISTRIBUTED = ("no", "multi_gpu", "multi_cpu", "deepspeed", "fsdp")

ACCELERATE = SettingGroups(
    read=fields_of(
        {
            "sharding": f"distributed_type {_PLUGIN}.zero_stage {_PLUGIN}.deepspeed_config_file",
            "offload": f"{_PLUGIN}.offload_optimizer_device {_PLUGIN}.offload_param_device",
            "world": "num_processes num_machines",
        }
    ),
    partly=(
        Effect(
            key="distributed_type",
            effect="this kind of distribution is not modelled",
            direction=Direction.EITHER,
            when=lambda value: str(value).lower() not in _DISTRIBUTED,
        ),
    ),
    unmodelled=(
        *(
            Effect(
                key=f"{_PLUGIN}.{key}",
                effect="what is offloaded to a disk is counted in host memory",
                direction=Direction.LESS,
                memory=Memory.HOST,
            )
            for key in ("offload_optimizer_nvme_path", "offload_param_nvme_path")
        ),
        *(
            Effect(key=key, effect=trainer.COMPILED, direction=Direction.EITHER)
            for key in ("dynamo_config", "dynamo_backend")
        ),
        *(
            Effect(key=key, effect="parallel layers are not modelled", direction=Direction.EITHER)
            for key in ("megatron_lm_config", "parallelism_config", "fp8_config", "ipex_config")
        ),
    ),
    no_effect={
        trainer.OVERWRITTEN: f"mixed_precision downcast_bf16 {_PLUGIN}.gradient_accumulation_steps"
        f" {_PLUGIN}.gradient_clipping",
        trainer.SAVED: f"{_PLUGIN}.zero3_save_16bit_model",
        trainer.RUNNING: "compute_environment debug machine_rank main_process_ip main_process_port"
        " main_training_function rdzv_backend same_network use_cpu gpu_ids enable_cpu_affinity"
        " tpu_env tpu_use_cluster tpu_use_sudo tpu_name tpu_zone commands command_file"
        f" {_PLUGIN}.zero3_init_flag {_PLUGIN}.deepspeed_multinode_launcher"
        f" {_PLUGIN}.deepspeed_hostfile {_PLUGIN}.deepspeed_moe_layer_cls_names",
    },
)

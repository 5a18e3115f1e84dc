"""The keys of accelerate's config.

Source: accelerate 1.15.0, commands/config/config_args.py, commands/launch.py,
utils/dataclasses.py (FullyShardedDataParallelPlugin, DeepSpeedPlugin).
"""

from __future__ import annotations

from oomguard.adapters.effects import Effect, switch
from oomguard.adapters.settings import trainer_settings as trainer
from oomguard.adapters.settings.groups import SettingGroups, fields_of
from oomguard.job.unmodelled import Direction, Memory

_FSDP, _PLUGIN = "fsdp_config", "deepspeed_config"
#: What every rank shares out, by FSDP1's names and numbers and by FSDP2's.
_FULL = ("1", "full_shard", "true")
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
                key=f"{_FSDP}.{key}",
                effect="this kind of FSDP is planned as full sharding",
                when=lambda value: str(value).lower() not in _FULL,
            )
            for key in ("fsdp_sharding_strategy", "fsdp_reshard_after_forward")
        ),
        switch(
            f"{_FSDP}.fsdp_offload_params",
            "what FSDP offloads is counted on the GPU",
            Direction.LESS,
        ),
        switch(
            f"{_FSDP}.fsdp_activation_checkpointing",
            "layers that FSDP checkpoints are counted with all their activations",
            Direction.LESS,
        ),
        *(
            Effect(
                key=f"{_FSDP}.{key}",
                effect="weights are gathered in units that are counted as layers",
                when=lambda value: value not in (None, "TRANSFORMER_BASED_WRAP", 0),
            )
            for key in ("fsdp_auto_wrap_policy", "fsdp_min_num_params")
        ),
        switch(f"{_FSDP}.fsdp_forward_prefetch", "a layer that is gathered early is not counted"),
        Effect(
            key=f"{_FSDP}.fsdp_cpu_ram_efficient_loading",
            effect="each rank's host memory is counted as if all load the checkpoint alike",
            direction=Direction.EITHER,
            memory=Memory.HOST,
            when=lambda value: str(value).lower() != "true",
        ),
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
        trainer.SAVED: f"{_FSDP}.fsdp_state_dict_type {_PLUGIN}.zero3_save_16bit_model",
        trainer.RUNNING: "compute_environment debug machine_rank main_process_ip main_process_port"
        " main_training_function rdzv_backend same_network use_cpu gpu_ids enable_cpu_affinity"
        " tpu_env tpu_use_cluster tpu_use_sudo tpu_name tpu_zone commands command_file"
        f" {_PLUGIN}.zero3_init_flag {_PLUGIN}.deepspeed_multinode_launcher"
        f" {_PLUGIN}.deepspeed_hostfile {_PLUGIN}.deepspeed_moe_layer_cls_names"
        f" {_FSDP}.fsdp_version {_FSDP}.fsdp_transformer_layer_cls_to_wrap"
        f" {_FSDP}.fsdp_backward_prefetch {_FSDP}.fsdp_backward_prefetch_policy"
        f" {_FSDP}.fsdp_sync_module_states {_FSDP}.fsdp_use_orig_params",
    },
)

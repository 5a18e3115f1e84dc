"""The keys of a DeepSpeed config.

Source: deepspeed 0.19.8, runtime/config.py, runtime/constants.py, runtime/zero/{config,
offload_config,stage_1_and_2,stage3}.py, runtime/utils.py (all_gather_dp_groups: in place).
"""

from __future__ import annotations

from oomguard.adapters.effects import Effect, differs, switch
from oomguard.adapters.settings import trainer_settings as trainer
from oomguard.adapters.settings.groups import SettingGroups, fields_of
from oomguard.job.unmodelled import Direction, Memory

_ZERO = "zero_optimization"
_OPTIMIZER, _PARAMETERS = f"{_ZERO}.offload_optimizer", f"{_ZERO}.offload_param"
_FOLLOWS = "the Trainer's own settings, which they have to agree with"
_MOVED = "how what is offloaded is moved"


def _joined(outer: str, names: str) -> str:
    return " ".join(f"{outer}.{name}" for name in names.split())


def _sized(name: str, default: int, effect: str) -> Effect:
    """Return the effect of a size that is not the default, which is what is counted."""

    def differ(value: object) -> bool:
        return isinstance(value, int | float) and value != default

    key = f"{_ZERO}.{name}"
    return Effect(key=key, effect=effect, direction=Direction.EITHER, when=differ)


def _at_most(name: str, most: int) -> Effect:
    """Return the effect of a size that is more than this many weights."""

    def exceeds(value: object) -> bool:
        return isinstance(value, int | float) and value > most

    effect = f"more than {most:,} weights beside a layer's are not counted"
    return Effect(key=f"{_ZERO}.{name}", effect=effect, when=exceeds)


DEEPSPEED = SettingGroups(
    read=fields_of(
        {
            "sharding": f"{_ZERO}.stage",
            "offload": f"{_OPTIMIZER}.device {_PARAMETERS}.device {_ZERO}.cpu_offload",
            "reduce_bucket": f"{_ZERO}.reduce_bucket_size",
            "overlap_comm": f"{_ZERO}.overlap_comm",
            "optimizer": "optimizer.type",
        }
    ),
    unmodelled=(
        switch(
            f"{_ZERO}.cpu_offload_param", "what is offloaded is counted on the GPU", Direction.LESS
        ),
        _sized("sub_group_size", 10**9, "the optimizer's steps of another size are not counted"),
        _sized("stage3_max_live_parameters", 10**9, "as many gathered weights are not counted"),
        _sized("stage3_max_reuse_distance", 10**9, "as many gathered weights are not counted"),
        _sized("stage3_module_granularity_threshold", 0, "modules fetched whole are not counted"),
        *(
            _at_most(name, most)
            for name, most in (
                ("stage3_prefetch_bucket_size", 5 * 10**7),
                ("stage3_param_persistence_threshold", 10**6),
            )
        ),
        Effect(
            key=f"{_ZERO}.stage3_model_persistence_threshold",
            effect="weights that every rank keeps are counted as sharded",
        ),
        differs(
            f"{_ZERO}.contiguous_gradients",
            True,
            "gradients are copied in another way",
            Direction.EITHER,
        ),
        differs(
            f"{_ZERO}.memory_efficient_linear",
            True,
            "inputs of linear layers are kept once more",
            Direction.MORE,
        ),
        Effect(
            key=f"{_ZERO}.zero_hpz_partition_size",
            effect="a second partition of the weights on each node is not counted",
        ),
        *(
            switch(f"{_ZERO}.{name}", "quantized communication is not modelled", Direction.EITHER)
            for name in (
                *("zero_quantized_weights", "zero_quantized_nontrainable_weights"),
                "zero_quantized_gradients",
            )
        ),
        switch(f"{_ZERO}.legacy_stage1", "ZeRO-1's former code is not modelled", Direction.EITHER),
        switch(f"{_ZERO}.elastic_checkpoint", "its copies are not counted"),
        switch(f"{_ZERO}.save_muon_momentum_buffer_in_memory", "Muon's buffer is not counted"),
        Effect(
            key=f"{_ZERO}.zenflow", effect="ZenFlow is not modelled", direction=Direction.EITHER
        ),
        differs(
            f"{_OPTIMIZER}.ratio",
            1.0,
            "the part of the states that stays is not counted",
            Direction.MORE,
        ),
        switch(f"{_OPTIMIZER}.super_offload", "SuperOffload is not modelled", Direction.EITHER),
        *(
            Effect(
                key=f"{outer}.nvme_path",
                effect="what is offloaded to a disk is counted in host memory",
                direction=Direction.LESS,
                memory=Memory.HOST,
            )
            for outer in (_OPTIMIZER, _PARAMETERS)
        ),
        Effect(
            key="data_types.grad_accum_dtype",
            effect="gradients are counted in the format of the weights",
            direction=Direction.EITHER,
        ),
        switch(
            "torch_autocast.enabled", "DeepSpeed's own autocast is not modelled", Direction.EITHER
        ),
        switch("amp.enabled", "apex is not modelled", Direction.EITHER),
        Effect(
            key="communication_data_type",
            effect="gradients that are converted to be reduced are not counted",
        ),
        *(
            Effect(key=key, effect="parallel layers are not modelled", direction=Direction.LESS)
            for key in ("tensor_parallel", "sequence_parallel_size")
        ),
    ),
    no_effect={
        _FOLLOWS: "train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps"
        " gradient_clipping bf16 fp16 zero_allow_untested_optimizer zero_force_ds_cpu_optimizer",
        _MOVED: _joined(
            _OPTIMIZER, "pin_memory buffer_count pipeline_read pipeline_write fast_init"
        )
        + " "
        + _joined(_OPTIMIZER, "cpuadam_cores_perc")
        + " "
        + _joined(_PARAMETERS, "pin_memory buffer_count buffer_size max_in_cpu")
        + " "
        + _joined(_ZERO, "cpu_offload_use_pin_memory")
        + " aio",
        trainer.RATES: "optimizer.params scheduler prescale_gradients gradient_predivide_factor",
        trainer.SAVED: "steps_per_print wall_clock_breakdown memory_breakdown dump_state"
        " tensorboard wandb csv_monitor comet comms_logger flops_profiler checkpoint "
        + _joined(
            _ZERO,
            "stage3_gather_16bit_weights_on_model_save stage3_gather_fp16_weights_on_model_save"
            " pipeline_loading_checkpoint log_trace_cache_warnings",
        ),
        trainer.RUNNING: "zero_optimization.load_from_fp32_weights activation_checkpointing "
        + _joined(
            _ZERO,
            "reduce_scatter allgather_partitions allgather_bucket_size compute_grad_norm"
            " use_multi_rank_bucket_allreduce round_robin_gradients ignore_unused_parameters"
            " parameter_alignment override_module_apply enable_sanity_checks leaf_module"
            " stage3_use_all_reduce_for_fetch_params stage3_allgather_sequential",
        ),
    },
)

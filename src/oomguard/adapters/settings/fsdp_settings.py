"""The keys of FSDP's own config, without the `fsdp_` that they may begin with.

Source: transformers 5.23.0, training_args.py (_process_fsdp_args); accelerate 1.15.0,
utils/dataclasses.py (FullyShardedDataParallelPlugin); axolotl 0.19.0, utils/schemas/fsdp.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from oomguard.adapters.effects import Effect, switch
from oomguard.adapters.settings import trainer_settings as trainer
from oomguard.adapters.settings.blocks import unmodelled_inside
from oomguard.adapters.settings.groups import SettingGroups
from oomguard.configfile.values import is_true
from oomguard.job.unmodelled import Direction, Memory, Unmodelled

_PREFIX = "fsdp_"
#: What every rank shares out, by FSDP1's names and numbers and by FSDP2's.
_FULL = ("1", "full_shard", "true")
_UNITS = "weights are gathered in units that are counted as layers"
_CHECKPOINTING = "activation_checkpointing"
#: Modules within a layer: experts, attention, the MLP.
_PART = re.compile(r"moe|mlp|attention|expert", re.IGNORECASE)

FSDP = SettingGroups(
    unmodelled=(
        Effect(  # beside the options, in ms-swift's file
            key="fsdp",
            effect="this kind of FSDP is planned as full sharding without offload",
            direction=Direction.EITHER,
            when=lambda value: bool(trainer.OTHER_FSDP.search(str(value))),
        ),
        *(
            Effect(
                key=key,
                effect="this kind of FSDP is planned as full sharding",
                when=lambda value: str(value).lower() not in _FULL,
            )
            for key in ("sharding_strategy", "reshard_after_forward")
        ),
        *(
            switch(key, "what FSDP offloads is counted on the GPU", Direction.LESS)
            for key in ("offload_params", "cpu_offload")
        ),
        switch(
            "activation_cpu_offload",
            "activations that FSDP offloads are counted on the GPU",
            Direction.LESS,
        ),
        switch(
            _CHECKPOINTING,
            "layers that FSDP checkpoints are counted with all their activations",
            Direction.LESS,
        ),
        *(
            Effect(
                key=key,
                effect=_UNITS,
                when=lambda value: value not in (None, "TRANSFORMER_BASED_WRAP", 0),
            )
            for key in ("auto_wrap_policy", "min_num_params")
        ),
        *(
            Effect(key=key, effect=_UNITS, when=lambda value: bool(_PART.search(str(value))))
            for key in ("transformer_layer_cls_to_wrap", "transformer_cls_names_to_wrap")
        ),
        switch("forward_prefetch", "a layer that is gathered early is not counted"),
        switch("xla", "XLA's FSDP is not modelled", Direction.EITHER),
        Effect(
            key="mixed_precision_policy",
            effect="the formats that layers are gathered in are not read",
            direction=Direction.EITHER,
        ),
        Effect(
            key="cpu_ram_efficient_loading",
            effect="each rank's host memory is counted as if all load the checkpoint alike",
            direction=Direction.EITHER,
            memory=Memory.HOST,
            when=lambda value: not is_true(value),
        ),
    ),
    details={"xla": "xla_fsdp_settings xla_fsdp_v2 xla_fsdp_grad_ckpt"},
    no_effect={
        trainer.SAVED: "state_dict_type final_state_dict_type",
        trainer.RUNNING: "version backward_prefetch backward_prefetch_policy sync_module_states"
        " use_orig_params limit_all_gathers cpu_offload_pin_memory ignored_modules",
    },
)


def unmodelled_of_fsdp(outer: str, values: object, *, checkpoints: bool) -> Iterator[Unmodelled]:
    """Yield the keys of FSDP's config whose effect is not modelled, as they are spelled.

    `checkpoints` says that the layers are counted as checkpointed already.
    """
    if not isinstance(values, Mapping):
        return
    spelled = {str(key).removeprefix(_PREFIX): key for key in values}
    plain = {name: values[key] for name, key in spelled.items()}
    for one in unmodelled_inside(outer, plain, FSDP):
        name = one.key.removeprefix(f"{outer}.")
        if name != _CHECKPOINTING or not checkpoints:
            yield replace(one, key=f"{outer}.{spelled.get(name, name)}")


def checkpoints_layers(values: object) -> bool:
    """Return whether FSDP's config switches its own checkpointing of layers on."""
    stated = values if isinstance(values, Mapping) else {}
    return any(is_true(stated.get(f"{prefix}{_CHECKPOINTING}")) for prefix in ("", _PREFIX))

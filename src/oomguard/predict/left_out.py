"""What a prediction leaves out whatever the framework: by method, by what is trained, by model."""

from __future__ import annotations

from collections.abc import Iterator

from oomguard.catalogue.lookup import Model
from oomguard.job.plan import Tuning
from oomguard.job.training_job import Job
from oomguard.job.unmodelled import Direction, TrainingMethod, Unmodelled

#: Keys of model configs whose layers are of several kinds.
_MIXED_LAYERS = (
    *("attn_layer_period", "expert_layer_period", "interleave_moe_layer_step"),
    *("mamba_d_state", "expert_ffn_hidden_size", "hybrid_override_pattern"),
)


def left_out(job: Job, method: TrainingMethod | None, model: Model) -> Iterator[Unmodelled]:
    """Yield what the estimate does not include; an adapter adds the settings of its framework."""
    if method is None or not method.is_modelled:
        name = "an unknown method" if method is None else method.value
        effect = f"{name} is planned as sft: its further rows, models and logits are not included"
        yield Unmodelled(key="method", effect=effect, direction=Direction.MORE)
    if job.asked.tuning in (None, Tuning.OTHER):
        effect = "what it trains is neither all weights, some layers nor LoRA: not modelled"
        yield Unmodelled(key="tuning", effect=effect, direction=Direction.MORE)
    mixed = next((key for key in _MIXED_LAYERS if model.config.get(key)), None)
    if mixed is not None:
        effect = f"its layers are of several kinds ({mixed}), but all are counted alike"
        yield Unmodelled(key="model", effect=effect, direction=Direction.EITHER)

"""Which of a model's matrices a framework's own LoRA kernels compute, and what these keep."""

from __future__ import annotations

from dataclasses import dataclass

from oomguard.estimate.architecture import Architecture, Linear
from oomguard.estimate.counts import targeted
from oomguard.job.memory_settings import FusedPart, Lora
from oomguard.job.plan import Plan, Quantization, Sharding, Tuning

_QKV = frozenset({"query", "key", "value"})
#: The matrices of each part. A kernel runs where all of them are there and have an adapter, and in
#: attention only where queries, keys and values have a matrix each.
_MATRICES = {
    FusedPart.ATTENTION: _QKV,
    FusedPart.OUTPUT: frozenset({"output"}),
    FusedPart.MLP: frozenset({"gate", "up", "down"}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedLora:
    """The parts of each layer that run as kernels; `matrices` are theirs.

    A kernel keeps the input that its matrices share, once. The MLP's also keeps the results of gate
    and up, and puts their gradients in the same place; what down reads is computed again.
    """

    model: Architecture
    parts: frozenset[FusedPart]
    matrices: tuple[Linear, ...]

    def kept_inputs(self, *, size: int, dropout: bool, attention_keeps_output: bool) -> int:
        """Return the bytes of a token's inputs; dropout adds its result and a mask to each.

        The output matrix reads what attention itself may keep anyway.
        """
        dropped = size + 1 if dropout else 0
        both = (FusedPart.ATTENTION, FusedPart.MLP)
        kept = self.model.hidden * (size + dropped) * sum(part in self.parts for part in both)
        if FusedPart.OUTPUT in self.parts:
            kept += self._attended * ((0 if attention_keeps_output else size) + dropped)
        return kept

    def copies(self, *, rank: int, size: int) -> int:
        """Return the bytes of a layer's adapters in the format that the kernels compute in."""
        return size * rank * sum(one.inputs + one.outputs for one in self.matrices)

    @property
    def _attended(self) -> int:
        return next(one.inputs for one in self.matrices if one.role == "output")


def fused_lora(model: Architecture, plan: Plan, lora: Lora | None) -> FusedLora:
    """Return what the kernels that a job asks for compute of a model under a plan.

    They do not run over weights in 8 bits, and compute no expert. Over sharded weights they are not
    known: PEFT's layers keep more.
    """
    adapted = {one.role: one for one in targeted(model, lora) if one.count == 1}
    runs = plan.tuning is Tuning.LORA and plan.quantization is not Quantization.INT8
    runs = runs and plan.sharding not in (Sharding.FSDP, Sharding.ZERO3)
    asked = lora.fused.parts if lora and lora.fused and runs else frozenset[FusedPart]()
    if not {one.role for one in model.linears} >= _QKV:
        asked &= {FusedPart.MLP}
    parts = frozenset(part for part in asked if _MATRICES[part] <= adapted.keys())
    matrices = tuple(adapted[role] for part in sorted(parts) for role in sorted(_MATRICES[part]))
    return FusedLora(model=model, parts=parts, matrices=matrices)

"""The sharded runs that are measured, as plain data: no framework is imported here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

#: Llama-2's proportions at a tenth of its width.
CONFIG: dict[str, Any] = {
    "vocab_size": 4096, "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8,
    "num_attention_heads": 6, "num_key_value_heads": 6, "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}  # fmt: skip
LORA_ALPHA = 16
FSDP1 = {"fsdp": "full_shard auto_wrap", "fsdp_config": {"sync_module_states": False}}
FSDP2 = {"fsdp": "full_shard auto_wrap", "fsdp_config": {"version": 2}}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run; `sharding` in the words of oomguard's Plan."""

    name: str
    sharding: str = "none"
    offload: tuple[str, ...] = ()
    ranks: int = 2
    lora_rank: int = 0
    bf16: bool = True
    bf16_weights: bool = False
    micro_batch: int = 1
    accumulation: int = 1
    length: int = 128
    checkpointing: bool = True
    optimizer: str = "adamw_torch_fused"
    zero: dict[str, Any] = field(default_factory=dict)
    fsdp: dict[str, Any] = field(default_factory=dict)

    @property
    def deepspeed(self) -> dict[str, Any] | None:
        if not self.sharding.startswith("zero"):
            return None
        stage = int(self.sharding[-1])
        settings: dict[str, Any] = {
            "stage": stage, "reduce_bucket_size": "auto", "contiguous_gradients": True,
            "overlap_comm": True, **self.zero,
        }  # fmt: skip
        if stage == 3:
            settings |= {"stage3_prefetch_bucket_size": "auto",
                         "stage3_param_persistence_threshold": "auto"}  # fmt: skip
        if "optimizer" in self.offload:
            settings["offload_optimizer"] = {"device": "cpu", "pin_memory": False}
        if "parameters" in self.offload:
            settings["offload_param"] = {"device": "cpu", "pin_memory": False}
        return {
            "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto", "zero_allow_untested_optimizer": True,
            "zero_optimization": settings, "bf16": {"enabled": "auto"},
        }  # fmt: skip


FULL = {
    "ddp": {},
    "zero1": {"sharding": "zero1"},
    "zero2": {"sharding": "zero2"},
    "zero3": {"sharding": "zero3"},
    "fsdp1": {"sharding": "fsdp", "fsdp": FSDP1},
    "fsdp2": {"sharding": "fsdp", "fsdp": FSDP2},
}
BOTH = {"offload": ("optimizer", "parameters")}
#: What differs from bf16 mixed precision, full tuning, 1 x 128 tokens, checkpointing.
VARIANTS: list[tuple[str, tuple[str, ...], dict[str, Any]]] = [
    ("full", tuple(FULL), {}),
    ("full, accumulation 2", tuple(FULL), {"accumulation": 2}),
    ("full, fp32", tuple(FULL), {"bf16": False}),
    ("full, 4 x 512", ("zero2", "zero3", "fsdp1", "fsdp2"), {"micro_batch": 4, "length": 512}),
    ("full, no checkpointing", ("zero2", "zero3", "fsdp1", "fsdp2"), {"checkpointing": False}),
    ("lora", tuple(FULL), {"lora_rank": 16}),
    ("full, loaded in 16 bits", ("fsdp1", "fsdp2"), {"bf16_weights": True}),
    ("lora, loaded in 16 bits", ("ddp", "fsdp1", "fsdp2"), {"bf16_weights": True, "lora_rank": 16}),
    ("lora, accumulation 2", ("zero2", "zero3"), {"lora_rank": 16, "accumulation": 2}),
    ("full, 4 ranks", ("zero2", "zero3", "fsdp2"), {"ranks": 4}),
    ("full, foreach", ("ddp", "zero2", "zero3", "fsdp2"), {"optimizer": "adamw_torch"}),
    ("lora, few live", ("zero3",), {"lora_rank": 16,
                                    "zero": {"stage3_max_live_parameters": 8_000_000,
                                             "stage3_max_reuse_distance": 8_000_000}}),
    ("full, offloaded optimizer", ("zero2", "zero3"), {"offload": ("optimizer",)}),
    ("full, all offloaded", ("zero3",), BOTH),
    ("lora, all offloaded", ("zero3",), BOTH | {"lora_rank": 16}),
]  # fmt: skip
CASES = [
    Case(name="one rank, full", ranks=1),
    Case(name="one rank, lora", ranks=1, lora_rank=16),
    *(Case(name=f"{kind} {name}", **FULL[kind], **settings)
      for name, kinds, settings in VARIANTS for kind in kinds),
]  # fmt: skip

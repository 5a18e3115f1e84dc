"""For each strategy jobs in which it changes something, and what it then changes."""

from __future__ import annotations

from typing import Any

from generators import make_job
from oomguard.job.plan import (
    Allocator,
    DeviceMap,
    EmbeddingRows,
    Loftq,
    LossKernel,
    Offload,
    Overlong,
    Part,
    Plan,
    Precision,
    Quantization,
    Sharding,
    Tuning,
)
from oomguard.job.training_job import Device, Job, Lengths, World
from oomguard.ladder.load import load_strategies

ALL = {strategy.id: strategy for strategy in load_strategies()}
CPU: dict[str, Any] = {"device": Device.CPU}
TWO: dict[str, Any] = {"world": World(per_node=2)}
DIVIDED: dict[str, Any] = {"divides": True}
MEDIA: dict[str, Any] = {"multimodal": True}
LORA = {"tuning": Tuning.LORA, "quantization": Quantization.NONE}
FULL = {"tuning": Tuning.FULL, "optimizer": "adamw_torch"}
NOTHING = frozenset[Offload]()
PINNED: dict[str, Any] = {"offload": NOTHING, "sharding": Sharding.NONE}
TOWER = frozenset({Part.VISION_TOWER})


def job_of(plan: dict[str, Any], job: dict[str, Any] | None = None) -> Job:
    return make_job(Plan(**{"micro_batch": 4, "accumulation": 2, **plan}), **(job or {}))


def lengths(*tokens: int, **more: Any) -> dict[str, Any]:
    found = Lengths(samples=len(tokens), sorted_tokens=tokens, counted_by="a guess", **more)
    return {"lengths": found}


CHANGES = [
    ("disable_auto_find_batch_size", {"auto_find_batch_size": True}, {},
     {"auto_find_batch_size": False}),
    ("expandable_segments", {"allocator": Allocator.DEFAULT}, {},
     {"allocator": Allocator.EXPANDABLE}),
    ("fused_loss", {"loss_kernel": LossKernel.EAGER}, {}, {"loss_kernel": LossKernel.FUSED}),
    ("halve_eval_batch", {"eval_batch": 8}, {}, {"eval_batch": 4}),
    ("move_predictions_to_host", {"eval_accumulation": 0}, {}, {"eval_accumulation": 1}),
    ("evaluate_loss_only", {"prediction_loss_only": False}, {}, {"prediction_loss_only": True}),
    ("fewer_loader_workers", {"loader_workers": 5}, {}, {"loader_workers": 2}),
    ("fewer_loader_workers", {"loader_workers": 1}, {}, {"loader_workers": 0}),
    ("fewer_preprocess_workers", {"preprocess_workers": 16}, {}, {"preprocess_workers": 8}),
    ("unpin_memory", {"pin_memory": True}, {}, {"pin_memory": False}),
    ("halve_micro_batch", {}, {}, {"micro_batch": 2, "accumulation": 4}),
    ("gradient_checkpointing", {"checkpointing": False}, {}, {"checkpointing": True}),
    ("switch_to_zero2", {**FULL, **PINNED}, TWO, {"sharding": Sharding.ZERO2}),
    ("switch_to_zero2", {**LORA, **PINNED}, {**TWO, "trained_embeddings": ("lm_head",)},
     {"sharding": Sharding.ZERO2}),
    ("offload_optimizer", {**FULL, **PINNED}, {},
     {"sharding": Sharding.ZERO2, "offload": frozenset({Offload.OPTIMIZER})}),
    ("offload_optimizer", {**FULL, "offload": NOTHING, "sharding": Sharding.ZERO3}, TWO,
     {"offload": frozenset({Offload.OPTIMIZER})}),
    ("offload_activations", PINNED, {}, {"offload": frozenset({Offload.ACTIVATIONS})}),
    ("bf16_for_fp32", {"precision": Precision.FP32}, {}, {"precision": Precision.BF16_MIXED}),
    ("bf16_weights", {"precision": Precision.BF16_MIXED}, {},
     {"precision": Precision.BF16_TRUE}),
    ("eight_bit_optimizer", FULL, {}, {"optimizer": "adamw_bnb_8bit"}),
    ("eight_bit_optimizer", {"optimizer": "AdamW"}, {},
     {"optimizer": "bitsandbytes.optim.AdamW8bit"}),
    ("paged_optimizer", {"optimizer": "adamw_bnb_8bit"}, {}, {"optimizer": "paged_adamw_8bit"}),
    ("eight_bit_base", LORA, {}, {"quantization": Quantization.INT8}),
    ("train_new_rows", {"embedding_rows": EmbeddingRows.ALL},
     {"trained_embeddings": ("embed_tokens",)}, {"embedding_rows": EmbeddingRows.NEW}),
    ("cut_media_pixels", {"image_pixels": 768**2, "video_pixels": 256**2}, MEDIA,
     {"image_pixels": 768**2 // 2, "video_pixels": 256**2 // 2}),
    ("cut_media_pixels", {"image_pixels": 60_000}, MEDIA, {"image_pixels": 224**2}),
    ("chunk_long_texts", {"sequence_length": 2048, "overlong": Overlong.CUT}, {},
     {"sequence_length": 1024, "overlong": Overlong.CHUNKED}),
    ("correct_device_map", {"device_map": DeviceMap.HOST}, {}, {"device_map": DeviceMap.OWN}),
    ("correct_device_map", {"device_map": DeviceMap.SHARED}, TWO,
     {"device_map": DeviceMap.OWN}),
    ("cut_cutoff_len", {"sequence_length": 2048}, {}, {"sequence_length": 1024}),
    ("bound_tokens", {}, {**DIVIDED, **lengths(60, 64, 900)}, {"token_bound": 1800}),
    ("bound_tokens", {"token_bound": 1800}, {**DIVIDED, **lengths(60, 64, 900)},
     {"token_bound": 900}),
    ("bound_tokens", {"sequence_length": 512}, {**DIVIDED, **lengths(60, 64, 900)},
     {"token_bound": 1024}),
    ("cut_cutoff_len", {"sequence_length": 300}, {}, {"sequence_length": 256}),
    ("cut_cutoff_len", {"sequence_length": 8192}, lengths(100, 1500),
     {"sequence_length": 1024}),
    ("cut_cutoff_len", {"sequence_length": 8192}, lengths(100, 1500, at_most=3000),
     {"sequence_length": 2048}),
    ("cut_cutoff_len", {"sequence_length": 8192}, lengths(100, 1500, filled=True),
     {"sequence_length": 4096}),
    ("cut_cutoff_len", {"sequence_length": 2048}, {**MEDIA, **lengths(3000, least=1500)},
     {"sequence_length": 1500}),
    ("freeze_vision_tower_and_projector", {"frozen": frozenset()}, MEDIA,
     {"frozen": TOWER | {Part.PROJECTOR}}),
    ("projector_only", {**FULL, "frozen": TOWER | {Part.PROJECTOR}}, MEDIA,
     {"frozen": TOWER | {Part.LANGUAGE_MODEL}}),
    ("switch_to_zero3", PINNED, TWO, {"sharding": Sharding.ZERO3}),
    ("offload_parameters", PINNED, {},
     {"sharding": Sharding.ZERO3, "offload": frozenset({Offload.PARAMETERS})}),
    ("lora_instead_of_full", FULL, {}, {"tuning": Tuning.LORA}),
    ("generate_in_halves", {"generation_batch": 16}, {"group": 8}, {"generation_batch": 8}),
    ("generate_in_halves", {"generation_batch": 8}, {"group": 8, **TWO},
     {"generation_batch": 4}),
    ("sleeping_engine", {"engine_share": 0.3, "engine_sleeps": False}, {},
     {"engine_sleeps": True}),
    ("smaller_engine_share", {"engine_share": 0.3}, {"engine_least": 0.1},
     {"engine_share": 0.2}),
    ("smaller_engine_share", {"engine_share": 0.3}, {"engine_least": 0.26},
     {"engine_share": 0.26}),
    ("halve_completions", {"completion_length": 512}, {}, {"completion_length": 256}),
    ("halve_completions", {"completion_length": 100}, {}, {"completion_length": 64}),
    ("halve_lora_rank", {**LORA, "lora_rank": 24}, {}, {"lora_rank": 12}),
    ("halve_lora_rank", {**LORA, "lora_rank": 10}, {}, {"lora_rank": 8}),
    ("enable_qlora", LORA, {}, {"quantization": Quantization.NF4_DOUBLE}),
    ("low_cpu_mem_usage", {"low_cpu_mem_usage": False}, {}, {"low_cpu_mem_usage": True}),
    ("precompute_reference", {"precompute_reference": False}, {}, {"precompute_reference": True}),
    ("stage_loftq", {"loftq": Loftq.AT_ONCE}, {}, {"loftq": Loftq.STAGED}),
]  # fmt: skip

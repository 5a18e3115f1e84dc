"""The configurations to measure on a card: shapes, and what is trained how."""

from __future__ import annotations

from typing import Any

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"],
         "tie_word_embeddings": False, "max_position_embeddings": 32768}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "160m": LLAMA | {"vocab_size": 32000, "hidden_size": 768, "intermediate_size": 2048,
                     "num_hidden_layers": 12, "num_attention_heads": 12, "num_key_value_heads": 12},
    "1b": LLAMA | {"vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632,
                   "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4},
    "7b": LLAMA | {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
                   "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32},
    "8b": LLAMA | {"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
                   "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8},
    "13b": LLAMA | {"vocab_size": 32000, "hidden_size": 5120, "intermediate_size": 13824,
                    "num_hidden_layers": 40, "num_attention_heads": 40, "num_key_value_heads": 40},
    "vl-3b": {
        "model_type": "qwen2_5_vl", "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "text_config": {"model_type": "qwen2_5_vl_text", "vocab_size": 151936,
                        "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
                        "num_attention_heads": 16, "num_key_value_heads": 2,
                        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}},
        "vision_config": {"model_type": "qwen2_5_vl", "depth": 32, "hidden_size": 1280,
                          "num_heads": 16, "intermediate_size": 3420, "out_hidden_size": 2048,
                          "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
                          "patch_size": 14, "in_channels": 3, "spatial_merge_size": 2,
                          "temporal_patch_size": 2},
        "image_token_id": 151655, "video_token_id": 151656, "vision_start_token_id": 151652,
        "vision_end_token_id": 151653, "tie_word_embeddings": True,
    },
}  # fmt: skip
ADAPTER = {"rank": 8, "alpha": 16, "targets": "all-linear"}


def cases() -> list[dict[str, Any]]:
    """Return every configuration: name, shape, plan, recipe and allocator."""
    found = [*_small(), *_adapters(), *_packed(), *_full(), *_images()]
    return [{"expandable": False, **case} for case in found] + [
        {**case, "name": f"{case['name']} expandable", "expandable": True}
        for case in found
        if case["name"] in EXPANDABLE
    ]


#: Run again under caps between what is allocated and what is reserved.
CAPPED = (
    "160m bf16-mixed x8 eager", "1b full 4096 checkpointing", "1b lora 8192 checkpointing",
    "7b nf4-double 4096 checkpointing", "7b nf4-double 16384 checkpointing",
    "8b lora 2048", "8b lora 8192 checkpointing", "vl-3b lora images 3",
)  # fmt: skip


def at_its_limit(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return cases of `CAPPED` again: 2% below the allocated peak, midway, 1% above reserved."""
    found = []
    for result in results:
        estimate = result["predicted"].get("estimate")
        if result["name"] not in CAPPED or estimate is None:
            continue
        allocated, reserved = estimate["allocated_bytes"], estimate["reserved_bytes"]
        caps = {"below": 0.98 * allocated, "midway": (allocated + reserved) / 2,
                "above": 1.01 * reserved}  # fmt: skip
        case = {k: v for k, v in result.items() if k not in {"predicted", "measured"}}
        found += [
            {**case, "name": f"{case['name']}, cap {where}", "cap_bytes": int(cap)}
            for where, cap in caps.items()
        ]
    return found


EXPANDABLE = (
    "8b lora 2048 checkpointing", "7b nf4-double 4096 checkpointing",
    "7b nf4-double 16384 checkpointing", "1b full 2048 checkpointing", "160m fp32 x8 sdpa",
)  # fmt: skip


def _case(name: str, shape: str, tokens: int, *, recipe: dict[str, Any] | None = None,
          **plan: Any) -> dict[str, Any]:  # fmt: skip
    base = {"micro_batch": 1, "accumulation": 1, "sequence_length": tokens, "tuning": "lora",
            "precision": "bf16-true", "quantization": "none", "checkpointing": True}  # fmt: skip
    chosen = base | plan
    adapter = ADAPTER if chosen["tuning"] == "lora" else None
    return {"name": name, "shape": shape, "plan": chosen,
            "recipe": {"loop": "script", "lora": adapter, "kbit_float32": False}
            | (recipe or {})}  # fmt: skip


def _small() -> list[dict[str, Any]]:
    return [
        _case(f"160m {precision} x{batch} {attention}", "160m", 512, micro_batch=batch,
              precision=precision, tuning="full", checkpointing=False,
              recipe={"attention": attention})
        for precision in ("fp32", "bf16-true", "bf16-mixed")
        for batch in (1, 8)
        for attention in ("sdpa", "eager")
    ] + [
        _case(f"160m optimizer {name}", "160m", 512, tuning="full", optimizer=optimizer,
              recipe={"foreach": foreach})
        for name, optimizer, foreach in (
            ("fused", "adamw_torch_fused", True), ("single", "adamw_torch", False),
            ("sgd", "sgd", True),
        )
    ]  # fmt: skip


def _adapters() -> list[dict[str, Any]]:
    lengths = {"1b": (512, 2048, 8192), "8b": (512, 2048, 8192), "13b": (512, 2048)}
    return [
        _case(f"{shape} lora {tokens}{' checkpointing' if saved else ''}", shape, tokens,
              checkpointing=saved)
        for shape, every in lengths.items()
        for tokens in every
        for saved in (True, False)
    ]  # fmt: skip


def _packed() -> list[dict[str, Any]]:
    return [
        _case(f"{shape} {packing} {tokens} checkpointing", shape, tokens, quantization=packing)
        for shape, packing, tokens in (
            ("7b", "nf4", 2048), ("7b", "nf4-double", 2048), ("7b", "nf4-double", 4096),
            ("7b", "nf4-double", 16384), ("8b", "nf4-double", 2048), ("13b", "nf4-double", 2048),
        )
    ]  # fmt: skip


def _full() -> list[dict[str, Any]]:
    return [
        _case(f"1b full {tokens} checkpointing", "1b", tokens, tuning="full")
        for tokens in (512, 2048, 4096)
    ]


def _images() -> list[dict[str, Any]]:
    return [
        _case(f"vl-3b lora images {count}", "vl-3b", 2048, frozen=["vision_tower", "projector"],
              recipe={"media": {"images": [[560, 560]] * count}})
        for count in (1, 3)
    ]  # fmt: skip

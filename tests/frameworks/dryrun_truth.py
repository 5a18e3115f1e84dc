"""Compares traced peaks with real runs on the CPU: run in a framework's own environment.

Prints one JSON list of {"name", "traced_bytes", "real_bytes"}. The real runs are transformers' own
Trainer, and the peak is what torch's profiler saw allocated and released.
"""

from __future__ import annotations

import gc
import importlib.util
import sys
import tempfile
from functools import partial
from typing import Any

import torch
import transformers
from oomguard_tracer import answer, request
from oomguard_tracer.batches import causal
from oomguard_tracer.trace import peak
from profiled import most, print_rows
from tiny_models import (
    AFMOE,
    ARCEE,
    GEMMA4,
    GPT2,
    GPT_OSS,
    LFM2,
    LFM2_MOE,
    LLAMA,
    LOOPED_EXPERTS,
    MISTRAL,
    MIXTRAL,
    PHI,
    QWEN,
    QWEN2_MOE,
    QWEN3,
    QWEN3_MOE,
    QWEN_AUDIO,
    QWEN_VL,
)
from torch.profiler import ProfilerActivity, profile

PLAN = {"micro_batch": 4, "accumulation": 1, "sequence_length": 256, "precision": "fp32",
        "tuning": "full", "checkpointing": False}  # fmt: skip
RECIPE = {"loop": "trainer", "kbit_float32": True, "foreach": False, "cuda": False}
LORA = {"rank": 8, "alpha": 16, "targets": ["q_proj", "v_proj"]}
ALL = {"rank": 16, "alpha": 16, "targets": "all-linear"}

#: name, config, plan, recipe
CASES: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ("full", LLAMA, {}, {}),
    ("full eager attention", LLAMA, {}, {"attention": "eager"}),
    ("full checkpointing", LLAMA, {"checkpointing": True}, {}),
    ("full checkpointing reentrant", LLAMA, {"checkpointing": True}, {"use_reentrant": True}),
    ("full accumulation", LLAMA, {"accumulation": 2}, {}),
    ("full micro batch 1", LLAMA, {"micro_batch": 1}, {}),
    ("full long", LLAMA, {"micro_batch": 1, "sequence_length": 1024}, {}),
    ("full sgd", LLAMA, {"optimizer": "sgd"}, {}),
    ("full foreach", LLAMA, {}, {"foreach": True}),
    ("full without clipping", LLAMA, {}, {"max_grad_norm": 0.0}),
    ("full tied", LLAMA | {"tie_word_embeddings": True}, {}, {}),
    ("full qwen2", QWEN, {}, {}),
    ("full qwen3", QWEN3, {}, {}),
    ("full mistral", MISTRAL, {}, {}),
    ("full phi", PHI, {}, {}),
    ("full gpt2", GPT2, {}, {}),
    ("lora", LLAMA, {"tuning": "lora"}, {"lora": LORA}),
    ("lora all", LLAMA, {"tuning": "lora"}, {"lora": ALL}),
    ("lora dropout", LLAMA, {"tuning": "lora"}, {"lora": ALL | {"dropout": 0.1}}),
    ("lora checkpointing", LLAMA, {"tuning": "lora", "checkpointing": True}, {"lora": ALL}),
    ("lora accumulation", QWEN, {"tuning": "lora", "accumulation": 2}, {"lora": ALL}),
    ("lora with trained embeddings", LLAMA, {"tuning": "lora"},
     {"lora": LORA | {"modules_to_save": ["embed_tokens", "lm_head"]}}),
    ("dora", LLAMA, {"tuning": "lora"}, {"lora": ALL | {"dora": True}}),
    ("dora dropout", LLAMA, {"tuning": "lora"}, {"lora": ALL | {"dora": True, "dropout": 0.1}}),
    ("dora checkpointing", LLAMA, {"tuning": "lora", "checkpointing": True},
     {"lora": ALL | {"dora": True}}),
    ("dora short", QWEN, {"tuning": "lora", "micro_batch": 1, "sequence_length": 64},
     {"lora": LORA | {"dora": True}}),
    ("lora foreach", LLAMA, {"tuning": "lora"}, {"lora": ALL, "foreach": True}),
    ("experts", MIXTRAL, {}, {}),
    ("experts in a loop", MIXTRAL | LOOPED_EXPERTS, {}, {}),
    ("experts sgd", MIXTRAL, {"optimizer": "sgd"}, {}),
    ("experts in a loop sgd", MIXTRAL | LOOPED_EXPERTS, {"optimizer": "sgd"}, {}),
    ("experts checkpointing", QWEN3_MOE, {"checkpointing": True, "optimizer": "sgd"}, {}),
    ("experts lora", QWEN3_MOE, {"tuning": "lora"}, {"lora": LORA}),
    ("experts in a loop lora", QWEN3_MOE | LOOPED_EXPERTS, {"tuning": "lora"}, {"lora": LORA}),
    ("experts and a shared one", QWEN2_MOE, {"optimizer": "sgd"}, {}),
    ("experts and a shared one lora", QWEN2_MOE, {"tuning": "lora"}, {"lora": ALL}),
]  # fmt: skip
#: Layers that the arithmetic does not know, traced as their code runs.
OTHER_LAYERS = [
    (f"{kind} {name}", config, plan, recipe | own)
    for kind, config, own in (
        ("sinks", GPT_OSS, {"attention": "eager"}), ("embeddings per layer", GEMMA4, {}),
        ("convolutions", LFM2, {}), ("convolutions and experts", LFM2_MOE, {}),
        ("dense layers and experts", AFMOE, {}), ("squared", ARCEE, {}),
    )
    for name, plan, recipe in (
        ("full", {"optimizer": "sgd"}, {}),
        ("lora checkpointing", {"tuning": "lora", "checkpointing": True}, {"lora": LORA}),
    )
]  # fmt: skip
IMAGES = {"images": [[280, 420]]}
#: Those that transformers' Trainer needs a processor for run in a plain loop.
LOOPED = [
    ("images", QWEN_VL, {"sequence_length": 512}, {"loop": "script", "media": IMAGES}),
    ("images lora", QWEN_VL, {"sequence_length": 512, "tuning": "lora"},
     {"loop": "script", "media": IMAGES, "lora": LORA}),
    ("audio", QWEN_AUDIO, {"sequence_length": 1024, "micro_batch": 1},
     {"loop": "script", "media": {"audio_seconds": 30}}),
    ("evaluation", LLAMA, {}, {"loop": "script", "eval_only": True}),
]  # fmt: skip
QUANTIZED = [
    ("qlora nf4", LLAMA, {"tuning": "lora", "quantization": "nf4"}, {"lora": ALL}),
    ("qlora nf4 double", LLAMA, {"tuning": "lora", "quantization": "nf4-double"}, {"lora": ALL}),
    ("qlora dora", LLAMA, {"tuning": "lora", "quantization": "nf4"},
     {"lora": ALL | {"dora": True}}),
    ("qlora dora checkpointing", LLAMA,
     {"tuning": "lora", "quantization": "nf4", "checkpointing": True},
     {"lora": ALL | {"dora": True}}),
    ("qlora checkpointing", LLAMA,
     {"tuning": "lora", "quantization": "nf4", "checkpointing": True}, {"lora": ALL}),
]  # fmt: skip


class Samples(torch.utils.data.Dataset):
    """Samples of one length."""

    def __init__(self, tokens: int, count: int) -> None:
        self._tokens, self._count = tokens, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.arange(self._tokens) % 100
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}


def variant(plan: dict[str, Any], recipe: dict[str, Any]) -> request.Variant:
    document = {"v": 1, "model": {"family": "hf", "config": {}}, "variants": [
        {"id": "x", "plan": PLAN | plan, "recipe": RECIPE | recipe}]}  # fmt: skip
    return request.parse(document).variants[0]


def traced(config: dict[str, Any], asked: request.Variant) -> int:
    wanted = request.TraceRequest(
        family="hf",
        config=config,
        variants=(asked,),
        capacity_bytes=None,
    )
    return peak(answer.traced(wanted, asked)[0]).size_bytes


def real(
    config: dict[str, Any],
    asked: request.Variant,
    peft_own: dict[str, Any] | None = None,
    **own: Any,
) -> int:
    """Train for real and give the most bytes that were alive, the model's own included.

    `peft_own` are settings of the adapter besides those of the plan, `own` of the Trainer.
    """
    model = _model(config, asked, peft_own or {})
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for t in [*model.parameters(), *model.buffers(), *_states(model)]}  # fmt: skip
    samples = Samples(asked.sequence_length, 2 * asked.micro_batch * asked.accumulation)
    with tempfile.TemporaryDirectory() as folder:
        trainer = transformers.Trainer(model, _arguments(asked, folder, own), train_dataset=samples)
        gc.collect()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
            trainer.train()
    return sum(held.values()) + most(measured)


def looped(config: dict[str, Any], asked: request.Variant) -> int:
    """Train or evaluate in a script's own loop and give the most bytes that were alive."""
    model = _model(config, asked, {}).train(not asked.eval_only)
    held = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in [*model.parameters(), *model.buffers()]
    }
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, foreach=False)
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        for _ in range(2):
            lengths = (asked.sequence_length,) * asked.micro_batch
            inputs = causal(model.config)(asked, lengths)
            with torch.set_grad_enabled(not asked.eval_only):
                outputs = model(**inputs)
            if not asked.eval_only:
                loss = outputs["loss"]
                loss.backward()
                torch.nn.utils.clip_grad_norm_(trained, 1.0, foreach=False)
                optimizer.step()
                optimizer.zero_grad()
    return sum(held.values()) + most(measured)


def _states(model: torch.nn.Module) -> list[torch.Tensor]:
    """List the constants of quantized weights, which are no buffers."""
    states = [getattr(p, "quant_state", None) for p in model.parameters()]
    found = []
    for state in [s for s in states if s is not None]:
        nested = getattr(state, "state2", None)
        found += [state.absmax, state.code] + ([nested.absmax, nested.code] if nested else [])
    return found


def _model(
    config: dict[str, Any], asked: request.Variant, peft_own: dict[str, Any]
) -> torch.nn.Module:
    values = dict(config)
    settings = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    settings._attn_implementation = asked.attention
    settings.use_cache = settings.get_text_config().use_cache = False
    model = getattr(transformers, config["architectures"][0])._from_config(settings)
    if asked.quantization != "none":
        _quantize(model, asked.quantization)
    if asked.lora is None:
        return model
    import peft  # noqa: PLC0415

    if asked.quantization != "none":
        for parameter in model.parameters():
            parameter.requires_grad_(False)
    targets = asked.lora.targets
    return peft.get_peft_model(model, peft.LoraConfig(
        r=asked.lora.rank, lora_alpha=asked.lora.alpha, lora_dropout=asked.lora.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        modules_to_save=list(asked.lora.modules_to_save) or None,
        use_dora=asked.lora.dora, **peft_own))  # fmt: skip


def _quantize(model: torch.nn.Module, quantization: str) -> None:
    import bitsandbytes  # noqa: PLC0415

    model.is_loaded_in_4bit = True
    for path, module in list(model.named_modules()):
        for name, child in list(module.named_children()):
            if type(child) is torch.nn.Linear and name != "lm_head":
                packed = bitsandbytes.nn.Linear4bit(
                    child.in_features, child.out_features, bias=child.bias is not None,
                    compute_dtype=torch.float32, quant_type="nf4",
                    compress_statistics=quantization.endswith("double"))  # fmt: skip
                packed.load_state_dict(child.state_dict(), strict=False)
                setattr(model.get_submodule(path) if path else model, name, packed.to("cpu"))


def _arguments(
    asked: request.Variant, folder: str, own: dict[str, Any]
) -> transformers.TrainingArguments:
    reentrant = bool(asked.use_reentrant)
    settings = {"optim": asked.optimizer, "optim_args": "foreach=True" if asked.foreach else None}
    return transformers.TrainingArguments(
        output_dir=folder, use_cpu=True, per_device_train_batch_size=asked.micro_batch,
        gradient_accumulation_steps=asked.accumulation, max_steps=2, save_strategy="no",
        report_to=[], disable_tqdm=True, logging_steps=100, dataloader_pin_memory=False,
        gradient_checkpointing=asked.checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": reentrant} if asked.checkpointing else None,
        max_grad_norm=asked.max_grad_norm or 0.0, remove_unused_columns=False,
        **(settings | own),
    )  # fmt: skip


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    cases = QUANTIZED if importlib.util.find_spec("bitsandbytes") else CASES + LOOPED
    first, *names = sys.argv[1:] or [""]
    if first == "others":
        cases = OTHER_LAYERS
    elif first:
        names = [first, *names]
    wanted = [case for case in cases if not names or case[0] in names]
    print_rows((name, partial(_sizes, *case)) for name, *case in wanted)


def _sizes(config: dict[str, Any], plan: dict[str, Any], recipe: dict[str, Any]) -> dict[str, int]:
    asked = variant(plan, recipe)
    measure = looped if asked.loop == "script" else real
    return {"traced_bytes": traced(config, asked), "real_bytes": measure(config, asked)}


if __name__ == "__main__":
    main()

"""Compares traced peaks with TRL's own trainers on the CPU: run in TRL's environment.

Prints one JSON list of {"name", "traced_bytes", "real_bytes"}, as dryrun_truth.py does.
"""

from __future__ import annotations

import gc
import sys
import tempfile
from pathlib import Path
from typing import Any

import datasets
import peft
import trl
from dryrun_truth import ALL, PLAN, RECIPE, traced
from oomguard_tracer import request
from profiled import most, run_cases
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "recipes" / "quickstart"))

import make_assets  # noqa: E402  found on the path set above

#: A vocabulary that is wider than a tile of TRL's, and layers that show beside it.
MODEL = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 40000,
    "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 6,
    "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False,
}  # fmt: skip
PREFERENCE = {"loss": "trl_losses:preference", "rows": 2}
COPY, OFF, NONE = ({"reference": kind} for kind in ("model", "adapter-off", "none"))
LORA = ({"tuning": "lora"}, {"lora": ALL})
CHECKPOINTED = {"checkpointing": True}
SUPERVISED = {"loss": "trl_losses:supervised"}
UNPAIRED = {"loss": "trl_losses:unpaired"}
REWARD = {"loss": "trl_losses:reward", "rows": 2, "head": "score"}

#: name, trainer, plan, recipe, objective, the trainer's own settings
CASES: list[tuple[str, str, dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ("trl sft full", "SFT", {}, {}, SUPERVISED, {}),
    ("trl sft full checkpointing", "SFT", CHECKPOINTED, {}, SUPERVISED, {}),
    ("trl sft full accumulation", "SFT", {"accumulation": 2, "micro_batch": 1}, {}, SUPERVISED, {}),
    ("trl sft lora", "SFT", *LORA, SUPERVISED, {}),
    ("trl sft dft", "SFT", {}, {}, SUPERVISED, {"loss_type": "dft"}),
    ("trl dpo full", "DPO", {}, {}, PREFERENCE | COPY, {}),
    ("trl dpo full checkpointing", "DPO", CHECKPOINTED, {}, PREFERENCE | COPY, {}),
    ("trl dpo full accumulation", "DPO", {"accumulation": 2, "micro_batch": 1}, {},
     PREFERENCE | COPY, {}),
    ("trl dpo full precomputed", "DPO", CHECKPOINTED, {}, PREFERENCE | NONE,
     {"precompute_ref_log_probs": True}),
    ("trl dpo lora", "DPO", *LORA, PREFERENCE | OFF, {}),
    ("trl dpo lora checkpointing", "DPO", LORA[0] | CHECKPOINTED, LORA[1], PREFERENCE | OFF, {}),
    ("trl kto full", "KTO", {}, {}, UNPAIRED | COPY, {}),
    ("trl kto full checkpointing", "KTO", CHECKPOINTED, {}, UNPAIRED | COPY, {}),
    ("trl kto full accumulation", "KTO", {"accumulation": 2}, {}, UNPAIRED | COPY, {}),
    ("trl kto full precomputed", "KTO", CHECKPOINTED, {}, UNPAIRED | NONE,
     {"precompute_ref_log_probs": True}),
    ("trl kto lora", "KTO", *LORA, UNPAIRED | OFF, {}),
    ("trl kto lora checkpointing", "KTO", LORA[0] | CHECKPOINTED, LORA[1], UNPAIRED | OFF, {}),
    ("trl reward full", "Reward", {}, {}, REWARD, {}),
    ("trl reward full checkpointing", "Reward", CHECKPOINTED, {}, REWARD, {}),
    ("trl reward lora", "Reward", *LORA, REWARD, {}),
]  # fmt: skip


def variant(plan: dict[str, Any], recipe: dict[str, Any]) -> request.Variant:
    """Return the plan as the tracer takes it."""
    one = {"id": "x", "plan": PLAN | {"micro_batch": 2} | plan, "recipe": RECIPE | recipe}
    document = {"v": 1, "model": {"family": "hf", "config": {}}, "variants": [one]}
    return request.parse(document).variants[0]


def real(kind: str, asked: request.Variant, own: dict[str, Any], folder: Path) -> int:
    """Train for real and give the most bytes that were alive, the models' own included."""
    _write(folder / "model")
    trainer = getattr(trl, f"{kind}Trainer")(
        model=str(folder / "model"), args=_settings(kind, asked, own, folder),
        peft_config=_adapter(asked), train_dataset=_samples(asked, kind),
    )  # fmt: skip
    models = [trainer.model, getattr(trainer, "ref_model", None)]
    held = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for model in models
        if model is not None
        for t in [*model.parameters(), *model.buffers()]
    }
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        trainer.train()
    return sum(held.values()) + most(measured)


def _write(folder: Path) -> None:
    make_assets.write_tokenizer(folder)
    values = dict(MODEL)
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def _adapter(asked: request.Variant) -> peft.LoraConfig | None:
    if asked.lora is None:
        return None
    return peft.LoraConfig(
        r=asked.lora.rank, lora_alpha=asked.lora.alpha, target_modules=asked.lora.targets
    )


def _settings(kind: str, asked: request.Variant, own: dict[str, Any], folder: Path) -> Any:
    return getattr(trl, f"{kind}Config")(
        output_dir=str(folder / "out"), use_cpu=True, bf16=False, max_steps=2, save_strategy="no",
        per_device_train_batch_size=asked.micro_batch, report_to=[], disable_tqdm=True,
        gradient_accumulation_steps=asked.accumulation, max_length=asked.sequence_length,
        gradient_checkpointing=asked.checkpointing, dataloader_pin_memory=False,
        optim=asked.optimizer, **own,
    )  # fmt: skip


def _samples(asked: request.Variant, kind: str) -> datasets.Dataset:
    """Return texts or pairs that fill the sequence; a reward model's are not cut to it."""
    words = asked.sequence_length - 2 if kind == "Reward" else 2 * asked.sequence_length
    row = {"prompt": " cat", "chosen": " mat" * words, "rejected": " red" * words}
    if kind == "SFT":
        row = {"text": " mat" * words}
    if kind == "KTO":
        row = {"prompt": " cat", "completion": " mat" * words, "label": True}
    return datasets.Dataset.from_list([row] * (4 * asked.micro_batch * asked.accumulation))


def _sizes(
    kind: str,
    plan: dict[str, Any],
    recipe: dict[str, Any],
    objective: dict[str, Any],
    own: dict[str, Any],
) -> dict[str, int]:
    asked = variant(plan, recipe | {"objective": objective})
    with tempfile.TemporaryDirectory() as folder:
        measured = real(kind, asked, own, Path(folder))
    return {"traced_bytes": traced(MODEL, asked), "real_bytes": measured}


if __name__ == "__main__":
    run_cases(CASES, _sizes)

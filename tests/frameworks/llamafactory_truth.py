"""Compares traced peaks with LLaMA-Factory's own stages on the CPU: run in its environment.

Prints one JSON list of {"name", "traced_bytes", "real_bytes"}, as dryrun_truth.py does.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

os.environ |= {"DISABLE_VERSION_CHECK": "1", "CUDA_VISIBLE_DEVICES": ""}

import torch
from dryrun_truth import ALL, PLAN, RECIPE, traced
from llamafactory.train.tuner import run_exp
from oomguard_tracer import request
from profiled import most
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM, TrainerCallback

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "recipes" / "quickstart"))

import make_assets  # noqa: E402  found on the path set above

#: Logits that show beside the layers.
MODEL = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 16000,
    "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 6,
    "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False,
}  # fmt: skip
#: How LLaMA-Factory trains; on a CPU it loads the base in fp32 unless bf16 is on.
CODE = {"use_reentrant": True, "checkpoints_trained_layers": True}
CODE |= {"weights_dtype": "fp32", "trainable_dtype": "fp32"}
HALF = CODE | {"weights_dtype": "bf16"}
PREFERENCE = {"loss": "llamafactory_losses:preference", "rows": 2}
UNPAIRED = {"loss": "llamafactory_losses:unpaired"}
REWARD = {"loss": "llamafactory_losses:reward", "rows": 2, "head": "value"}
COPY, OFF, NONE = ({"reference": kind} for kind in ("model", "adapter-off", "none"))
CHECKPOINTED, MIXED = {"checkpointing": True}, {"precision": "bf16-mixed"}
LORA, ADAPTER = {"tuning": "lora"}, {"lora": ALL}
OWN = {"ref_model": "model"}
DFT = {"use_dft_loss": True}

#: name, stage, plan, recipe, objective, further settings
CASES: list[
    tuple[str, str, dict[str, Any], dict[str, Any], dict[str, Any] | None, dict[str, Any]]
] = [
    ("llamafactory dpo full", "dpo", {}, CODE, PREFERENCE | COPY, {}),
    ("llamafactory dpo full bf16", "dpo", MIXED | CHECKPOINTED, HALF, PREFERENCE | COPY, {}),
    ("llamafactory dpo full accumulation", "dpo", {"accumulation": 2, "micro_batch": 1}, CODE,
     PREFERENCE | COPY, {}),
    ("llamafactory dpo lora", "dpo", LORA, CODE | ADAPTER, PREFERENCE | OFF, {}),
    ("llamafactory dpo lora bf16", "dpo", LORA | MIXED | CHECKPOINTED, HALF | ADAPTER,
     PREFERENCE | OFF, {}),
    ("llamafactory dpo lora ref_model", "dpo", LORA | MIXED, HALF | ADAPTER,
     PREFERENCE | COPY, OWN),
    ("llamafactory dpo ipo lora", "dpo", LORA, CODE | ADAPTER, PREFERENCE | OFF,
     {"pref_loss": "ipo", "pref_ftx": 0.1}),
    ("llamafactory orpo lora", "dpo", LORA | CHECKPOINTED, CODE | ADAPTER, PREFERENCE | NONE,
     {"pref_loss": "orpo"}),
    ("llamafactory simpo full", "dpo", {}, CODE, PREFERENCE | NONE, {"pref_loss": "simpo"}),
    ("llamafactory kto full", "kto", {}, CODE, UNPAIRED | COPY, {}),
    ("llamafactory kto lora", "kto", LORA, CODE | ADAPTER, UNPAIRED | OFF, {}),
    ("llamafactory kto lora bf16", "kto", LORA | MIXED | CHECKPOINTED, HALF | ADAPTER,
     UNPAIRED | OFF, {}),
    ("llamafactory kto lora ref_model", "kto", LORA | MIXED | {"accumulation": 2}, HALF | ADAPTER,
     UNPAIRED | COPY, OWN),
    ("llamafactory sft dft full", "sft", {}, CODE, None, DFT),
    ("llamafactory sft dft lora bf16", "sft", LORA | MIXED | CHECKPOINTED, HALF | ADAPTER, None,
     DFT),
    ("llamafactory rm full", "rm", {}, CODE, REWARD, {}),
    ("llamafactory rm full bf16", "rm", MIXED | CHECKPOINTED, HALF, REWARD, {}),
    ("llamafactory rm lora", "rm", LORA, CODE | ADAPTER, REWARD, {}),
    ("llamafactory rm lora bf16", "rm", LORA | MIXED | CHECKPOINTED, HALF | ADAPTER, REWARD, {}),
    ("llamafactory rm lora accumulation", "rm", LORA | {"accumulation": 2, "micro_batch": 1},
     CODE | ADAPTER, REWARD, {}),
]  # fmt: skip


class Measured(TrainerCallback):
    """Measures from the beginning of training to its end."""

    def __init__(self) -> None:
        self.held = 0
        self.profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Count what is there already, and start."""
        gc.collect()
        storages = (t.untyped_storage() for t in gc.get_objects() if isinstance(t, torch.Tensor))
        self.held = sum({one.data_ptr(): one.nbytes() for one in storages}.values())
        self.profile.__enter__()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Stop."""
        self.profile.__exit__(None, None, None)


def variant(plan: dict[str, Any], recipe: dict[str, Any]) -> request.Variant:
    """Return the plan as the tracer takes it."""
    one = {"id": "x", "plan": PLAN | {"micro_batch": 2} | plan, "recipe": RECIPE | recipe}
    document = {"v": 1, "model": {"family": "hf", "config": {}}, "variants": [one]}
    return request.parse(document).variants[0]


def real(stage: str, asked: request.Variant, own: dict[str, Any], folder: Path) -> int:
    """Train for real and give the most bytes that were alive."""
    _write(folder, stage, asked)
    os.chdir(folder)
    measured = Measured()
    run_exp(args=_settings(stage, asked) | own, callbacks=[measured])
    return measured.held + most(measured.profile)


def _write(folder: Path, stage: str, asked: request.Variant) -> None:
    make_assets.write_tokenizer(folder / "model")
    values = dict(MODEL)
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    dtype = torch.bfloat16 if asked.weights_dtype == "bf16" else torch.float32
    AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(folder / "model")
    words = 2 * asked.sequence_length
    pair = {"instruction": "cat", "chosen": " mat" * words, "rejected": " red" * words}
    columns = {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}
    info: dict[str, Any] = {"file_name": "rows.json", "ranking": True, "columns": columns}
    rows = [pair] * (4 * asked.micro_batch * asked.accumulation)
    if stage in ("sft", "kto"):
        info = {"file_name": "rows.json", "columns": {"response": "chosen"}}
    if stage == "kto":
        info["columns"]["kto_tag"] = "desired"
        rows = [pair | {"desired": number % 2 == 0} for number in range(len(rows))]
    (folder / "data").mkdir()
    (folder / "data" / "rows.json").write_text(json.dumps(rows))
    (folder / "data" / "dataset_info.json").write_text(json.dumps({"mine": info}))


def _settings(stage: str, asked: request.Variant) -> dict[str, Any]:
    adapter = {"lora_rank": asked.lora.rank, "lora_alpha": int(asked.lora.alpha),
               "lora_target": "all"} if asked.lora else {}  # fmt: skip
    return adapter | {
        "model_name_or_path": "model", "stage": stage, "do_train": True, "template": "default",
        "finetuning_type": asked.tuning, "dataset": "mine", "dataset_dir": "data",
        "cutoff_len": asked.sequence_length, "output_dir": "out", "use_cpu": True,
        "per_device_train_batch_size": asked.micro_batch, "max_steps": 2, "save_strategy": "no",
        "gradient_accumulation_steps": asked.accumulation, "report_to": "none",
        "disable_gradient_checkpointing": not asked.checkpointing, "optim": asked.optimizer,
        "bf16": asked.precision == "bf16-mixed", "optim_args": None, "disable_tqdm": True,
        "dataloader_pin_memory": False, "logging_steps": 100,
    }  # fmt: skip


def main() -> None:
    """Measure and trace each case."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    found = []
    wanted = [case for case in CASES if not sys.argv[1:] or case[0] in sys.argv[1:]]
    for name, stage, plan, recipe, objective, own in wanted:
        asked = variant(plan, recipe | {"objective": objective})
        try:
            sizes = {"traced_bytes": traced(MODEL, asked)}
            with tempfile.TemporaryDirectory() as folder:
                sizes["real_bytes"] = real(stage, asked, own, Path(folder))
        except Exception:  # noqa: BLE001  reported with the case it belongs to
            sizes = {"error": traceback.format_exc()}
        found.append({"name": name, **sizes})
        print(found[-1], file=sys.stderr)
        gc.collect()
    print(f"\n{json.dumps(found)}")  # a line of its own: the Trainer prints to stdout too


if __name__ == "__main__":
    main()

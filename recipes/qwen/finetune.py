"""Fine-tune as QwenLM/Qwen's finetune.py does; a stand-in, since the original cannot be shipped.

It has those flags of the original that decide how much memory a job takes, and two of its habits:
it pads every sample to `--model_max_length`, and it accepts `--resume_from_checkpoint` and ignores
it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import transformers
from peft import LoraConfig, get_peft_model


@dataclass
class Arguments:
    """The model, the data and the adapter."""

    model_name_or_path: str
    data_path: str
    lazy_preprocess: bool = False
    lora_r: int = 64
    lora_target_modules: list[str] = field(default_factory=lambda: ["q_proj", "v_proj"])
    q_lora: bool = False


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """The Trainer's flags, and two of finetune.py."""

    model_max_length: int = 8192
    use_lora: bool = False


def padded(
    rows: list[dict[str, list[dict[str, str]]]],
    tokenizer: transformers.PreTrainedTokenizerBase,
    length: int,
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield each conversation as `length` tokens; padding does not count in the loss."""
    for row in rows:
        text = " ".join(turn["value"] for turn in row["conversations"])
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][:length]
        pad = length - len(ids)
        yield {
            "input_ids": torch.tensor(ids + [tokenizer.pad_token_id] * pad),
            "labels": torch.tensor(ids + [-100] * pad),
        }


def main() -> None:
    """Train as the flags say, and save the adapter."""
    parser = transformers.HfArgumentParser((Arguments, TrainingArguments))
    arguments, training = parser.parse_args_into_dataclasses()
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model_name_or_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(arguments.model_name_or_path)
    if training.use_lora:
        lora = LoraConfig(r=arguments.lora_r, target_modules=arguments.lora_target_modules)
        model = get_peft_model(model, lora)
        model.enable_input_require_grads()
    with open(arguments.data_path) as file:  # noqa: PTH123
        rows = json.load(file)
    data = list(padded(rows, tokenizer, training.model_max_length))
    trainer = transformers.Trainer(model=model, args=training, train_dataset=data)
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()

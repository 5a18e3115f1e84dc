"""A stand-in of our own for QwenLM/Qwen's finetune.py, which cannot be shipped.

It has the flags of the original that decide over memory, and its habits: every sample is padded
to `--model_max_length`, and `--resume_from_checkpoint` is accepted and ignored.
"""

import json
from dataclasses import dataclass, field

import torch
import transformers
from peft import LoraConfig, get_peft_model


@dataclass
class Arguments:
    model_name_or_path: str
    data_path: str
    lazy_preprocess: bool = False
    lora_r: int = 64
    lora_target_modules: list[str] = field(default_factory=lambda: ["q_proj", "v_proj"])
    q_lora: bool = False


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    model_max_length: int = 8192
    use_lora: bool = False


def padded(rows, tokenizer, length):
    for row in rows:
        text = " ".join(turn["value"] for turn in row["conversations"])
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][:length]
        pad = length - len(ids)
        yield {
            "input_ids": torch.tensor(ids + [tokenizer.pad_token_id] * pad),
            "labels": torch.tensor(ids + [-100] * pad),
        }


def main():
    parser = transformers.HfArgumentParser((Arguments, TrainingArguments))
    asked, training = parser.parse_args_into_dataclasses()
    tokenizer = transformers.AutoTokenizer.from_pretrained(asked.model_name_or_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(asked.model_name_or_path)
    if training.use_lora:
        lora = LoraConfig(r=asked.lora_r, target_modules=asked.lora_target_modules)
        model = get_peft_model(model, lora)
        model.enable_input_require_grads()
    with open(asked.data_path) as file:  # noqa: PTH123
        rows = json.load(file)
    data = list(padded(rows, tokenizer, training.model_max_length))
    trainer = transformers.Trainer(model=model, args=training, train_dataset=data)
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()

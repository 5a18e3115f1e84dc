"""Fine-tune a causal language model with LoRA: Hugging Face Trainer and PEFT, nothing else.

    python train.py --model_name_or_path MODEL --train_file DATA.json --output_dir OUT ...

`--train_file` holds rows with `instruction` and `output`. Every flag of
`transformers.TrainingArguments` is understood.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from datasets import Dataset, load_dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    HfArgumentParser,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)


@dataclass
class ScriptArguments:
    """What is trained, and on what."""

    model_name_or_path: str
    train_file: str
    max_length: int = field(default=1024, metadata={"help": "Longer samples are cut, in tokens."})
    lora_r: int = 8
    lora_alpha: int = 16


def tokenized(path: str, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """Read the rows as `input_ids` and `labels`; the loss is on the output alone."""

    def encode(row: dict[str, str]) -> dict[str, list[int]]:
        prompt = tokenizer(row["instruction"] + "\n", add_special_tokens=False)["input_ids"]
        output = tokenizer(row["output"], add_special_tokens=False)["input_ids"]
        ids = [*prompt, *output, tokenizer.eos_token_id]
        labels = [*[-100] * len(prompt), *ids[len(prompt) :]]
        return {"input_ids": ids[:max_length], "labels": labels[:max_length]}

    rows = load_dataset("json", data_files=path, split="train")
    return rows.map(encode, remove_columns=rows.column_names)


def main() -> None:
    """Train as the flags say, and save the adapter."""
    parser = HfArgumentParser((ScriptArguments, TrainingArguments))
    script, training = parser.parse_args_into_dataclasses()
    set_seed(training.seed)  # before LoRA draws its weights
    tokenizer = AutoTokenizer.from_pretrained(script.model_name_or_path)
    model = AutoModelForCausalLM.from_pretrained(script.model_name_or_path)
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=script.lora_r,
        lora_alpha=script.lora_alpha,
        target_modules="all-linear",
    )
    trainer = Trainer(
        model=get_peft_model(model, lora),
        args=training,
        train_dataset=tokenized(script.train_file, tokenizer, script.max_length),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
    )
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    trainer.save_model()


if __name__ == "__main__":
    main()

"""Fine-tune a causal language model whose LoRA adapter LoftQ starts: PEFT and the Trainer.

    python train.py --model_name_or_path MODEL --train_file DATA.json --init_lora_weights loftq ...

LoftQ quantizes each weight and lets the adapter begin with the best low-rank answer to the error
of that. `--staged False` lets `get_peft_model` do so on the whole unquantized model. `--staged`
loads the base in 4-bit first, adds a plain adapter, and replaces its weights one tensor at a
time, read from the safetensors files of MODEL (a folder).

A recipe is read and copied by itself, so this one repeats how quickstart/train.py reads its data.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from datasets import Dataset, load_dataset
from peft import (
    LoftQConfig,
    LoraConfig,
    PeftModel,
    get_peft_model,
    prepare_model_for_kbit_training,
    replace_lora_weights_loftq,
)
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    DataCollatorForSeq2Seq,
    HfArgumentParser,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)


@dataclass
class ScriptArguments:
    """What is trained, on what, and how the adapter begins."""

    model_name_or_path: str
    train_file: str
    max_length: int = field(default=1024, metadata={"help": "Longer samples are cut, in tokens."})
    lora_r: int = 8
    lora_alpha: int = 16
    init_lora_weights: str = field(default="default", metadata={"help": "default, or loftq."})
    loftq_bits: int = 4
    loftq_iter: int = 1
    staged: bool = field(
        default=False, metadata={"help": "Quantize first, then replace: 4 bits, 1 iteration."}
    )


def adapted(script: ScriptArguments, training: TrainingArguments) -> PeftModel:
    """Load the base and put the adapter on it, in one of the two ways."""
    lora = {
        "task_type": "CAUSAL_LM",
        "r": script.lora_r,
        "lora_alpha": script.lora_alpha,
        "target_modules": "all-linear",
    }
    if script.init_lora_weights == "loftq" and not script.staged:
        loftq = LoftQConfig(loftq_bits=script.loftq_bits, loftq_iter=script.loftq_iter)
        base = AutoModelForCausalLM.from_pretrained(script.model_name_or_path)
        return get_peft_model(
            base, LoraConfig(**lora, init_lora_weights="loftq", loftq_config=loftq)
        )
    if not script.staged:
        base = AutoModelForCausalLM.from_pretrained(script.model_name_or_path)
        return get_peft_model(base, LoraConfig(**lora))
    quantized = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16 if training.bf16 else torch.float32,
    )
    base = AutoModelForCausalLM.from_pretrained(
        script.model_name_or_path, quantization_config=quantized
    )
    base = prepare_model_for_kbit_training(base, training.gradient_checkpointing)
    model = get_peft_model(base, LoraConfig(**lora))
    if script.init_lora_weights == "loftq":
        replace_lora_weights_loftq(model, model_path=script.model_name_or_path)
    return model


def tokenized(path: str, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """Read rows of `instruction` and `output` as `input_ids` and `labels`."""

    def encode(row: dict[str, str]) -> dict[str, list[int]]:
        text = f"{row['instruction']}\n{row['output']}"
        ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        return {"input_ids": ids[:max_length], "labels": ids[:max_length]}

    rows = load_dataset("json", data_files=path, split="train")
    return rows.map(encode, remove_columns=rows.column_names)


def main() -> None:
    """Train as the flags say, and save the adapter."""
    parser = HfArgumentParser((ScriptArguments, TrainingArguments))
    script, training = parser.parse_args_into_dataclasses()
    tokenizer = AutoTokenizer.from_pretrained(script.model_name_or_path)
    trainer = Trainer(
        model=adapted(script, training),
        args=training,
        train_dataset=tokenized(script.train_file, tokenizer, script.max_length),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
    )
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    trainer.save_model()


if __name__ == "__main__":
    main()

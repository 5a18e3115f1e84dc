"""Fine-tune on random tokens with the Hugging Face Trainer: random weights, no downloads.

    python trainer_job.py --model_name_or_path FOLDER --use_peft True --output_dir out ...

Where the folder has weights they are loaded, in 4 bits if asked; where it has a config.json alone,
the model is drawn at random on the card. All samples are `--max_length` tokens long.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import peft
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
)
from transformers.integrations import is_deepspeed_zero3_enabled

VOCABULARY = 32000


@dataclass
class ScriptArguments:
    """What is trained."""

    model_name_or_path: str
    max_length: int = 2048
    use_peft: bool = False
    lora_r: int = 8
    lora_target_modules: str = "all-linear"
    torch_dtype: str = "bfloat16"
    load_in_4bit: bool = False
    bnb_4bit_quant_type: str = "nf4"
    use_bnb_nested_quant: bool = True


def base_model(script: ScriptArguments) -> torch.nn.Module:
    """Load the model from its folder, or draw one of its shape."""
    dtype = getattr(torch, script.torch_dtype)
    if not list(Path(script.model_name_or_path).glob("*.safetensors")):
        config = AutoConfig.from_pretrained(script.model_name_or_path)
        card = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        device = nullcontext() if is_deepspeed_zero3_enabled() else card
        with device:
            return AutoModelForCausalLM.from_config(config, dtype=dtype)
    if not script.load_in_4bit:
        return AutoModelForCausalLM.from_pretrained(script.model_name_or_path, dtype=dtype)
    packed = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=script.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=script.use_bnb_nested_quant,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return AutoModelForCausalLM.from_pretrained(
        script.model_name_or_path,
        dtype=dtype,
        quantization_config=packed,
        device_map={"": 0},
    )


def samples(count: int, length: int) -> list[dict[str, list[int]]]:
    """Draw rows of random tokens."""
    rows = torch.randint(VOCABULARY, (count, length), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": row} for row in rows.tolist()]


def main() -> None:
    """Train as the flags say."""
    parser = HfArgumentParser((ScriptArguments, TrainingArguments))
    script, training = parser.parse_args_into_dataclasses()
    model = base_model(script)
    if script.use_peft:
        model.enable_input_require_grads()
        if script.load_in_4bit:
            peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        lora = peft.LoraConfig(
            r=script.lora_r, target_modules=script.lora_target_modules, task_type="CAUSAL_LM"
        )
        model = peft.get_peft_model(model, lora)
    batch = training.per_device_train_batch_size * training.gradient_accumulation_steps
    rows = samples(batch * max(training.max_steps, 1), script.max_length)
    held_out = samples(2 * training.per_device_eval_batch_size, script.max_length)
    Trainer(model=model, args=training, train_dataset=rows, eval_dataset=held_out).train()


if __name__ == "__main__":
    main()

"""Train tiny models with TRL twice, without a limit and under one, and print what differed.

    python split_trl.py FOLDER CASE...

As split_runs, whose cases are the Trainer's own. FOLDER gets a tokenizer.
"""

from __future__ import annotations

import dataclasses
import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from make_assets import WORDS, write_tokenizer
from split_runs import MIB, Capped, Case, differences, reported
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

FOLDER = Path(sys.argv[1])
PROMPT = 6


class CappedSFT(Capped, SFTTrainer):
    """TRL's supervised fine-tuning."""


class CappedDPO(Capped, DPOTrainer):
    """TRL's preference optimization."""


def words(number: int, length: int) -> list[int]:
    """Return random tokens, the same each time."""
    draw = random.Random(number)
    return [draw.randrange(10, 250) for _ in range(length)]


def text(number: int, length: int) -> str:
    """Return random words, each of them a token."""
    draw = random.Random(number)
    return "".join(f" {word}" for word in draw.choices(WORDS, k=length))


def llama(case: Case, seed: int = 0) -> Any:
    """Return a Llama whose activations are most of what a step takes: TRL makes no whole logits."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=128, intermediate_size=4096, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=512, max_position_embeddings=4096, pad_token_id=3,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    if case.lora:
        from peft import LoraConfig, get_peft_model  # noqa: PLC0415

        lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
        model = get_peft_model(model, lora)
    return model


def sft(case: Case, wanted: dict[str, Any]) -> Any:
    """Return a trainer on prompts and completions."""
    rows = [
        {
            "input_ids": words(n, case.lengths[n % len(case.lengths)]),
            "labels": [-100] * (n % 5 + 1)
            + words(n, case.lengths[n % len(case.lengths)])[n % 5 + 1 :],
        }
        for n in range(case.rows)
    ]
    args = SFTConfig(**{"bf16": False, "gradient_checkpointing": False, **wanted})
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    return CappedSFT(
        model=llama(case), args=args, train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )  # fmt: skip


def dpo(case: Case, wanted: dict[str, Any]) -> Any:
    """Return a trainer on pairs whose answers differ in length; the reference is another model."""
    rows = [
        {
            "prompt": text(n, PROMPT),
            "chosen": text(1000 + n, length - PROMPT),
            "rejected": text(2000 + n, max(4, length - PROMPT - n % 9)),
        }
        for n in range(case.rows)
        for length in [case.lengths[n % len(case.lengths)]]
    ]
    args = DPOConfig(**{"bf16": False, "gradient_checkpointing": False, **wanted})
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    others = {} if case.lora else {"ref_model": llama(case, seed=1)}
    return CappedDPO(
        model=llama(case), args=args, train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer, **others,
    )  # fmt: skip


def with_args(case: Case, **args: Any) -> Case:
    """Return a case with other arguments."""
    return dataclasses.replace(case, args=case.args | args)


UNEVEN = (64, 23, 40, 61, 12, 64, 50)
OUTLIER = (*[24] * 20, 200, *[24] * 27)
SFT = Case(lengths=UNEVEN, make=sft, room=72 * MIB, args={"learning_rate": 0.05})
DPO = Case(lengths=UNEVEN, make=dpo, room=130 * MIB, args={"learning_rate": 0.002})
CASES = {
    "sft": SFT,
    "sft_outlier": dataclasses.replace(SFT, lengths=OUTLIER),
    "sft_packed": with_args(SFT, packing=True, max_length=128),
    "sft_padding_free": with_args(SFT, padding_free=True, max_length=None),
    "sft_smoothing": with_args(SFT, label_smoothing_factor=0.1),
    "sft_bf16": with_args(SFT, bf16=True),
    "sft_checkpointing": with_args(SFT, gradient_checkpointing=True),
    "dpo": DPO,
    "dpo_accumulation": with_args(
        dataclasses.replace(DPO, rows=80), gradient_accumulation_steps=2, max_steps=-1
    ),
    "dpo_lora": dataclasses.replace(DPO, lora=True),
    "dpo_ipo": with_args(DPO, loss_type=["ipo"]),
    "dpo_precomputed": with_args(DPO, precompute_ref_log_probs=True),
    "dpo_aot": with_args(DPO, loss_type=["aot"]),
}

if __name__ == "__main__":
    write_tokenizer(FOLDER)
    steps = reported()
    print(json.dumps({name: differences(CASES[name], steps) for name in sys.argv[2:]}))

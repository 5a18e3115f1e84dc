"""LoRA on a Llama of 7B shape with random weights, in bf16, for two steps of random tokens.

python llama_job.py --per_device_train_batch_size 16 --max_length 2048
"""

from __future__ import annotations

import argparse

import peft
import torch
import transformers

SHAPE = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32,
}  # fmt: skip
STEPS = 2


def build(layers: int) -> torch.nn.Module:
    config = transformers.LlamaConfig(**{**SHAPE, "num_hidden_layers": layers}, use_cache=False)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = transformers.LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    return peft.get_peft_model(model, peft.LoraConfig(r=8, target_modules="all-linear")).train()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--per_device_train_batch_size", type=int, default=8)
    parser.add_argument("--gradient_accumulation_steps", type=int, default=1)
    parser.add_argument("--max_length", type=int, default=2048)
    parser.add_argument("--num_layers", type=int, default=32)
    parser.add_argument("--output_dir", default="out")
    asked = parser.parse_args()
    model = build(asked.num_layers)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    shape = (asked.per_device_train_batch_size, asked.max_length)
    for _ in range(STEPS):
        for _ in range(asked.gradient_accumulation_steps):
            tokens = torch.randint(SHAPE["vocab_size"], shape, device="cuda")
            loss = model(input_ids=tokens, labels=tokens).loss
            (loss / asked.gradient_accumulation_steps).backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"trained, loss {loss.item():.3f}")


if __name__ == "__main__":
    main()

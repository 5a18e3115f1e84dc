"""A training loop without a framework, on batches of a new length each.

In bf16 PyTorch keeps kernels of oneDNN for each shape, so memory grows with each length.
"""

from __future__ import annotations

import argparse
import random

import torch
from torch.nn import functional

WIDTH, WORDS = 128, 1000
parser = argparse.ArgumentParser()
parser.add_argument("--per_device_train_batch_size", type=int, default=2)
parser.add_argument("--gradient_accumulation_steps", type=int, default=1)
parser.add_argument("--max_length", type=int, default=512)
parser.add_argument("--max_steps", type=int, default=24)
parser.add_argument("--dtype", default="bfloat16")
given, _ = parser.parse_known_args()
torch.manual_seed(0)
torch.set_num_threads(1)
layers = [
    torch.nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0, batch_first=True)
    for _ in range(3)
]
model = torch.nn.Sequential(
    torch.nn.Embedding(WORDS, WIDTH), *layers, torch.nn.Linear(WIDTH, WORDS)
).to(getattr(torch, given.dtype))
optimizer = torch.optim.AdamW(model.parameters())
lengths = list(range(64, 512))
random.Random(0).shuffle(lengths)
for step in range(given.max_steps):
    length = min(lengths[step], given.max_length)
    for _ in range(given.gradient_accumulation_steps):
        words = torch.randint(WORDS, (given.per_device_train_batch_size, length))
        logits = model(words).view(-1, WORDS).float()
        functional.cross_entropy(logits, words.view(-1)).backward()
        del logits
    optimizer.step()
    optimizer.zero_grad()
    print("STEP", step + 1, length, flush=True)
print("DONE", flush=True)

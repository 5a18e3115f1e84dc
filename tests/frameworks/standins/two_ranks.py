"""Two ranks in step; the last one needs memory for the whole micro batch, the other hardly any.

    torchrun --nproc-per-node 2 two_ranks.py --per_device_train_batch_size N
        --gradient_accumulation_steps M --sample_mib S --max_steps K

When the last rank runs out, the other waits for it in a collective, for half an hour if let.
"""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist

parser = argparse.ArgumentParser()
parser.add_argument("--per_device_train_batch_size", type=int, default=8)
parser.add_argument("--gradient_accumulation_steps", type=int, default=1)
parser.add_argument("--sample_mib", type=int, default=64)
parser.add_argument("--max_steps", type=int, default=4)
parser.add_argument("--stop_at", type=int, default=0, help="Rank 0 sleeps for good at this step.")
parser.add_argument("--output_dir", default="out")
parser.add_argument("--local_rank", type=int, default=0, help="The DeepSpeed launcher gives it.")
args = parser.parse_args()

dist.init_process_group("gloo")
is_last = dist.get_rank() == dist.get_world_size() - 1
model = torch.nn.Linear(8, 8)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(1, args.max_steps + 1):
    if step == args.stop_at and not is_last:
        __import__("time").sleep(3600)
    optimizer.zero_grad()
    for _ in range(args.gradient_accumulation_steps):
        elements = args.per_device_train_batch_size * args.sample_mib * 2**20 // 4
        activations = torch.ones(elements if is_last else 8)
        (model(torch.ones(args.per_device_train_batch_size, 8)).sum() + activations[0]).backward()
        del activations
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad)
    optimizer.step()
    print(f"step {step}", flush=True)
dist.destroy_process_group()

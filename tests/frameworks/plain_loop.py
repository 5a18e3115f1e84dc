"""A training loop without a framework, which follows its flags as carelessly as `--mode` says.

`honest` follows micro batch and accumulation, `constant` has its own batch of 16, `unaware` does
not know the accumulation, `shrinks` retries with a smaller batch after an OOM, `negatives` has a
loss over the micro batch, `loader` takes its batches from a DataLoader with a short last one.
"""

from __future__ import annotations

import argparse

import torch
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

parser = argparse.ArgumentParser()
parser.add_argument("--mode", default="honest")
parser.add_argument("--per_device_train_batch_size", type=int, default=16)
parser.add_argument("--gradient_accumulation_steps", type=int, default=1)
given, _ = parser.parse_known_args()
mode, micro = given.mode, given.per_device_train_batch_size
accumulation = 1 if mode == "unaware" else given.gradient_accumulation_steps
if mode == "constant":
    micro, accumulation = 16, 1
torch.manual_seed(0)
torch.set_num_threads(1)


class Net(torch.nn.Module):
    """A layer, and 40 MiB for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(64, 64)

    def forward(self, rows):
        ballast = torch.empty(len(rows) * (10 << 20))
        return self.layer(rows) + ballast.numel() * 0


def loss_of(net, rows):
    out = net(rows)
    if mode != "negatives":
        return out.pow(2).mean()
    scores = functional.normalize(out) @ functional.normalize(rows).T / 0.05
    return functional.cross_entropy(scores, torch.arange(len(rows)))


def train(size):
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    data = torch.randn(72 if mode == "loader" else 64, 64)
    batches = data.split(size)
    if mode == "loader":
        batches = (rows for (rows,) in DataLoader(TensorDataset(data), batch_size=size))
    for number, rows in enumerate(batches, 1):
        (loss_of(net, rows) / accumulation).backward()
        if number % accumulation == 0:
            optimizer.step()
            optimizer.zero_grad()
            print("STEP", number // accumulation, flush=True)


def shrinking(size):
    try:
        train(size)
    except RuntimeError:
        shrinking(size * 9 // 10)


if mode == "shrinks":
    shrinking(micro)
else:
    train(micro)
print("DONE", flush=True)

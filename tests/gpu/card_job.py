"""A training loop on a device that runs out of memory where it is told to.

    python card_job.py --oom_at backward --per_device_train_batch_size 16 --output_dir out

Each sample takes `SAMPLE_BYTES` in the phase that is named, in one allocation for all samples of
the micro batch.
"""

from __future__ import annotations

import argparse

import torch

SAMPLE_BYTES = 64 << 20
WIDTH, STEPS = 256, 3


class Hungry(torch.autograd.Function):
    """Passes its input on, and takes memory on the way back."""

    @staticmethod
    def forward(ctx, value, samples):
        ctx.samples = samples
        return value.clone()

    @staticmethod
    def backward(ctx, grad):
        take(ctx.samples, grad.device)
        return grad, None


class Model(torch.nn.Module):
    def __init__(self, oom_at: str) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(WIDTH, WIDTH)
        self.oom_at = oom_at

    def forward(self, batch):
        if self.oom_at == "forward":
            take(len(batch), batch.device)
        hidden = self.layer(batch)
        if self.oom_at == "backward":
            hidden = Hungry.apply(hidden, len(batch))
        return hidden.square().mean()


class Optimizer(torch.optim.SGD):
    samples = 0

    def step(self, closure=None):
        if self.samples:
            take(self.samples, self.param_groups[0]["params"][0].device)
        return super().step(closure)


def take(samples, device):
    return torch.empty(samples * SAMPLE_BYTES, dtype=torch.uint8, device=device).zero_()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--per_device_train_batch_size", type=int, default=8)
    parser.add_argument("--gradient_accumulation_steps", type=int, default=1)
    parser.add_argument("--output_dir", default="out")
    parser.add_argument("--oom_at", default="forward")
    asked = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    micro = asked.per_device_train_batch_size
    if asked.oom_at == "load":
        take(micro, device)
    model = Model(asked.oom_at).to(device)
    optimizer = Optimizer(model.parameters(), lr=1e-3)
    optimizer.samples = micro if asked.oom_at == "optimizer" else 0
    for _ in range(STEPS):
        for _ in range(asked.gradient_accumulation_steps):
            loss = model(torch.randn(micro, WIDTH, device=device))
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"trained on {device}, loss {loss.item():.3f}")


if __name__ == "__main__":
    main()

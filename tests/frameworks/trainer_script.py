"""A training script on the Trainer for what real runs do and the quickstart's one does not.

Samples come in the order of `--lengths`, one length in tokens for each optimizer step; the loss of
the step after `--nan_after` others is not a number, which ends the script.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from transformers import AutoModelForCausalLM, HfArgumentParser, Trainer, TrainingArguments


@dataclass
class ScriptArguments:
    """What is trained, and how it goes wrong."""

    model_name_or_path: str
    lengths: list[int] = field(default_factory=lambda: [256])
    nan_after: int = -1
    max_length: int = 4096


class InOrder(Trainer):
    """Takes the samples as they come, and gives up when the loss is not a number."""

    nan_after = -1

    def _get_train_sampler(self, dataset=None):
        return torch.utils.data.SequentialSampler(dataset or self.train_dataset)

    def compute_loss(self, model, inputs, **others):
        """Give the loss of a batch."""
        loss = super().compute_loss(model, inputs, **others)
        loss = loss * math.nan if self.state.global_step == self.nan_after else loss
        if torch.isnan(loss):
            raise FloatingPointError(f"loss is nan at step {self.state.global_step}")
        return loss


def main() -> None:
    """Train as the flags say."""
    parser = HfArgumentParser((ScriptArguments, TrainingArguments))
    script, training = parser.parse_args_into_dataclasses()
    batch = training.per_device_train_batch_size * training.gradient_accumulation_steps
    samples = [
        {"input_ids": [5] * length, "labels": [5] * length}
        for length in (min(length, script.max_length) for length in script.lengths)
        for _ in range(batch)
    ]
    model = AutoModelForCausalLM.from_pretrained(script.model_name_or_path)
    trainer = InOrder(model=model, args=training, train_dataset=samples)
    trainer.nan_after = script.nan_after
    trainer.train()


if __name__ == "__main__":
    main()

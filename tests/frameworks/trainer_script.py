"""A training script on the Trainer for what real runs do and the quickstart's one does not.

Samples come in the order of `--lengths`, one length in tokens for each optimizer step; the loss of
the step after `--nan_after` others is not a number, which ends the script. `--eval_length` is that
of samples to evaluate on, `--own_batch` a micro batch that counts instead of the flag's;
`--pass_seconds` how long each pass of training takes besides. `--save_mib` what the first step
leaves in memory, and what the save at the end takes. `--preprocessing_num_workers` processes go
over the data first, and each keeps `--row_mib` of it.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import torch
from transformers import AutoModelForCausalLM, HfArgumentParser, Trainer, TrainingArguments


@dataclass
class ScriptArguments:
    """What is trained, and how it goes wrong."""

    model_name_or_path: str
    lengths: list[int] = field(default_factory=lambda: [256])
    nan_after: int = -1
    eval_length: int = 0
    own_batch: int = 0
    pass_seconds: float = 0.0
    save_mib: int = 0
    preprocessing_num_workers: int = 0
    row_mib: int = 0
    max_length: int = 4096


class InOrder(Trainer):
    """Takes the samples as they come, and gives up when the loss is not a number."""

    nan_after = -1
    save_mib = 0
    pass_seconds = 0.0
    kept = None

    def training_step(self, *args, **others):
        """Leave something behind."""
        if self.kept is None:
            self.kept = torch.ones(self.save_mib << 18)
        return super().training_step(*args, **others)

    def save_model(self, output_dir=None, _internal_call=False):
        """Take memory for the save at the end, and none for checkpoints."""
        needed = torch.ones(0 if _internal_call else self.save_mib << 18)
        super().save_model(output_dir, _internal_call)
        del needed

    def _get_train_sampler(self, dataset=None):
        return torch.utils.data.SequentialSampler(dataset or self.train_dataset)

    def compute_loss(self, model, inputs, **others):
        """Return the loss of a batch; in an evaluation the outputs too."""
        loss = super().compute_loss(model, inputs, **others)
        if not model.training:
            return loss
        time.sleep(self.pass_seconds)
        loss = loss * math.nan if self.state.global_step == self.nan_after else loss
        if torch.isnan(loss):
            raise FloatingPointError(f"loss is nan at step {self.state.global_step}")
        return loss


KEPT = []


def read(row, mib):
    """Keep what was read."""
    KEPT.append(b"1" * (mib << 20))
    return row


def preprocess(workers: int, mib: int) -> None:
    """Go over one row for each worker."""
    from datasets import Dataset  # noqa: PLC0415  it takes memory that caps do not count on

    rows = Dataset.from_dict({"row": list(range(workers))})
    rows.map(read, num_proc=workers, fn_kwargs={"mib": mib}, load_from_cache_file=False)


def main() -> None:
    """Train as the flags say."""
    parser = HfArgumentParser((ScriptArguments, TrainingArguments))
    script, training = parser.parse_args_into_dataclasses()
    if script.preprocessing_num_workers > 1:
        preprocess(script.preprocessing_num_workers, script.row_mib)
    if script.own_batch:
        training.per_device_train_batch_size = script.own_batch
    batch = training.per_device_train_batch_size * training.gradient_accumulation_steps
    samples = [  # rows alike would not show how their losses add up
        {"input_ids": [5 + row] * length, "labels": [5 + row] * length}
        for length in (min(length, script.max_length) for length in script.lengths)
        for row in range(batch)
    ]
    model = AutoModelForCausalLM.from_pretrained(script.model_name_or_path)
    held_out = [{"input_ids": [5] * script.eval_length, "labels": [5] * script.eval_length}] * 16
    trainer = InOrder(model=model, args=training, train_dataset=samples, eval_dataset=held_out)
    trainer.nan_after, trainer.save_mib = script.nan_after, script.save_mib
    trainer.pass_seconds = script.pass_seconds
    trainer.train()
    if script.save_mib:
        trainer.save_model()


if __name__ == "__main__":
    main()

"""The same job on Lightning, after its batch size finder; accumulation makes up for what it finds.

The finder doubles from 2, as it does by default, and stops at the requested batch size. With
`--output_dir whole` nothing is searched.
"""

# ruff: noqa: ARG002, I001  the trainer passes all of it; job writes the start of the process first
from __future__ import annotations

from job import LOG, ScriptArguments, arguments, collate, rows

import lightning
import torch
from lightning.pytorch.tuner import Tuner
from transformers import AutoModelForCausalLM


class Job(lightning.LightningModule):
    """The model, its data and its optimizer."""

    def __init__(self, script, training) -> None:
        super().__init__()
        self.script, self.training_arguments = script, training
        self.model = AutoModelForCausalLM.from_pretrained(script.model_name_or_path)
        self.batch_size = training.per_device_train_batch_size
        self.accumulation, self.searching = 1, False

    def training_step(self, batch, number):
        """Return the loss of a batch, and count it once it has been computed."""
        loss = self.model(**batch).loss
        ids, labels = batch["input_ids"], batch["labels"]
        LOG.count(
            samples=len(ids), width=ids.shape[1], tokens=int((labels[:, 1:] != -100).sum()),
            loss=float(loss) / self.accumulation,
        )  # fmt: skip
        return loss

    def on_train_batch_end(self, outputs, batch, number):
        """Write the step that ended."""
        if (number + 1) % self.accumulation == 0:
            LOG.step(event="trial" if self.searching else "step")

    def on_train_start(self):
        """Begin with the first sample."""
        LOG.begin(0)

    def validation_step(self, batch, number):
        """Compute the loss."""
        self.model(**batch)

    def on_validation_end(self):
        """Write that it ended."""
        if not self.searching:
            LOG.write("evaluated")

    def configure_optimizers(self):
        """Return the Trainer's optimizer."""
        return torch.optim.AdamW(
            self.parameters(), lr=self.training_arguments.learning_rate, weight_decay=0.0
        )

    def train_dataloader(self):
        """Return the rows in their order."""
        return torch.utils.data.DataLoader(
            rows(self.script), batch_size=self.batch_size, collate_fn=collate
        )

    def val_dataloader(self):
        """Return the rows to evaluate on, if the job evaluates."""
        if self.training_arguments.eval_strategy == "no":
            return []
        held_out = rows(ScriptArguments("", "", samples=16, length=self.script.length))
        return torch.utils.data.DataLoader(
            held_out,
            batch_size=self.training_arguments.per_device_eval_batch_size,
            collate_fn=collate,
        )


def trainer(training, accumulation: int) -> lightning.Trainer:
    """Return a trainer with the settings of the other contestants."""
    evaluates = training.eval_strategy != "no"
    return lightning.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, gradient_clip_val=1.0, accumulate_grad_batches=accumulation,
        val_check_interval=int(training.eval_steps) * accumulation if evaluates else None,
    )  # fmt: skip


def main() -> None:
    """Find a batch size, then train."""
    script, training = arguments()
    requested = training.per_device_train_batch_size * training.gradient_accumulation_steps
    lightning.seed_everything(training.seed)
    job = Job(script, training)
    if training.output_dir != "whole":
        job.searching, job.batch_size = True, 2
        trials = training.per_device_train_batch_size.bit_length() - 1
        Tuner(trainer(training, 1)).scale_batch_size(job, max_trials=trials)
        job.searching = False
    job.accumulation = requested // job.batch_size
    trainer(training, job.accumulation).fit(job)
    LOG.write("ended")


if __name__ == "__main__":
    main()

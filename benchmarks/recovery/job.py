"""The job: fine-tune a causal language model with the Trainer, on samples of known lengths.

    python job.py --model_name_or_path MODEL --output_dir OUT --event_log LOG --samples 96 ...

Rows come in their order, and the sample number `--outlier_at` has `--outlier_length` tokens. Every
flag of `transformers.TrainingArguments` is understood. It resumes from the latest checkpoint in its
output folder, as the example scripts of transformers do. What happens goes to the event log.
"""

# ruff: noqa: ARG002  the trainer passes all of it to each callback
from __future__ import annotations

from dataclasses import dataclass

from events import EventLog

LOG = EventLog.of_command()
LOG.write("started")

import torch  # noqa: E402  the start of the process is written first
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    HfArgumentParser,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint  # noqa: E402


@dataclass
class ScriptArguments:
    """What is trained, and on what."""

    model_name_or_path: str
    event_log: str
    samples: int = 96
    length: int = 256
    outlier_at: int = -1
    outlier_length: int = 256


def rows(script: ScriptArguments) -> list[dict[str, list[int]]]:
    """Make rows that differ, and that a model can learn."""
    made = []
    for row in range(script.samples):
        length = script.outlier_length if row == script.outlier_at else script.length
        ids = [5 + (7 * row + place) % 50 for place in range(length)]
        made.append({"input_ids": ids, "labels": ids})
    return made


def collate(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Pad a batch to its longest row."""
    width = max(len(row["input_ids"]) for row in batch)

    def padded(key: str, fill: int) -> torch.Tensor:
        return torch.tensor([row[key] + [fill] * (width - len(row[key])) for row in batch])

    ids = padded("input_ids", 0)
    mask = torch.tensor([[int(n < len(row["input_ids"])) for n in range(width)] for row in batch])
    return {"input_ids": ids, "labels": padded("labels", -100), "attention_mask": mask}


class Recorded(Trainer):
    """Adds up what an optimizer step is made of."""

    def training_step(self, model, inputs, *args, **others):
        """Run a batch, and count it once it has fit."""
        ids, labels = inputs["input_ids"], inputs["labels"]
        loss = super().training_step(model, inputs, *args, **others)
        LOG.count(
            samples=len(ids), width=ids.shape[1], tokens=int((labels[:, 1:] != -100).sum()),
            loss=float(loss),
        )  # fmt: skip
        return loss


class Recorder(TrainerCallback):
    """Writes each optimizer step and evaluation that ended."""

    def on_train_begin(self, args, state, control, **others):
        """Begin with the samples that a checkpoint has been trained on: none without one."""
        LOG.begin(state.global_step * args.train_batch_size * args.gradient_accumulation_steps)

    def on_step_end(self, args, state, control, **others):
        """Write the step."""
        LOG.step()

    def on_evaluate(self, args, state, control, **others):
        """Write that it ended."""
        LOG.write("evaluated")


def arguments() -> tuple[ScriptArguments, TrainingArguments]:
    """Read the command line."""
    return HfArgumentParser((ScriptArguments, TrainingArguments)).parse_args_into_dataclasses()


def train(script: ScriptArguments, training: TrainingArguments, checkpoint: str | None) -> None:
    """Train from the beginning, or from a checkpoint."""
    set_seed(training.seed)
    held_out = rows(ScriptArguments("", "", samples=16, length=script.length))
    trainer = Recorded(
        model=AutoModelForCausalLM.from_pretrained(script.model_name_or_path),
        args=training,
        train_dataset=rows(script),
        eval_dataset=held_out,
        data_collator=collate,
        callbacks=[Recorder()],
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    LOG.write("ended")


def main() -> None:
    """Train as the flags say."""
    script, training = arguments()
    train(script, training, training.resume_from_checkpoint or get_last_checkpoint_in(training))


def get_last_checkpoint_in(training: TrainingArguments) -> str | None:
    """Return the latest checkpoint that an earlier launch left, if there is one."""
    try:
        return get_last_checkpoint(training.output_dir)
    except FileNotFoundError:
        return None


if __name__ == "__main__":
    main()

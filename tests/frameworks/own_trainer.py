"""A script on the Trainer with 40 MiB for each sample, and a loss of its own if `--own` says so.

The labels of samples differ in number, so that a mean over each micro batch is another loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import HfArgumentParser, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

LENGTH = 16


@dataclass
class ScriptArguments:
    """Samples; whether the loss ignores num_items_in_batch; when ballast is first taken."""

    samples: int = 96
    own: bool = False
    late: int = 0


class Samples(torch.utils.data.Dataset):
    """Samples of 16 tokens, of which only some have a label."""

    def __init__(self, number):
        self.number = number

    def __len__(self):
        return self.number

    def __getitem__(self, at):
        ids = torch.randint(0, 64, (LENGTH,), generator=torch.Generator().manual_seed(at))
        labels = ids.clone()
        labels[: at % (LENGTH - 4)] = -100
        return {"input_ids": ids, "labels": labels}


class OwnTrainer(Trainer):
    """Takes memory for each sample from step `late` on."""

    own, late = False, 0

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        held = len(inputs["labels"]) if self.state.global_step >= self.late else 0
        ballast = torch.empty(held * (10 << 20))
        if self.own:
            outputs = model(**inputs)
            return (outputs.loss, outputs) if return_outputs else outputs.loss
        loss = super().compute_loss(
            model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
        )
        del ballast
        return loss


def main() -> None:
    parser = HfArgumentParser((ScriptArguments, TrainingArguments))
    script, training = parser.parse_args_into_dataclasses()
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    trainer = OwnTrainer(model=model, args=training, train_dataset=Samples(script.samples))
    trainer.own, trainer.late = script.own, script.late
    trainer.train()


if __name__ == "__main__":
    main()

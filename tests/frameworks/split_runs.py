"""Train tiny models with the Trainer twice, without a limit and under one, and print what differed.

    python split_runs.py CASE...

The limit leaves room for a part of a batch beyond what the process has when training begins, so
that a step runs out of memory for real. Prints one JSON object: for each case the largest relative
difference of losses, gradient norms and weights, or the error that ended it.
"""

from __future__ import annotations

import gc
import json
import resource
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import split_vision
import torch
from torch import nn
from transformers import (
    DataCollatorWithFlattening,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    Trainer,
    TrainingArguments,
)

MIB = 1 << 20
WORDS, HIDDEN, ROWS, TOKENS = 8192, 32, 16, 64
#: Room for about half a batch: logits, their log-probabilities and gradient are 32 MiB each.
ROOM = 72 * MIB
HARD = resource.getrlimit(resource.RLIMIT_DATA)[1]


class Capped:
    """Takes the rows as they come, and may leave little memory once training begins."""

    room: int | None = None

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        return torch.utils.data.SequentialSampler(dataset or self.train_dataset)

    def get_batch_samples(self, *args: Any, **others: Any) -> Any:
        """Set the limit before the first step."""
        fetched = super().get_batch_samples(*args, **others)
        self.limit()
        return fetched

    def limit(self) -> None:
        """Set the limit, once."""
        if self.room is not None:
            status = Path("/proc/self/status").read_text().split("VmData:")[1].split()
            limit = int(status[0]) * 1024 + self.room
            resource.setrlimit(resource.RLIMIT_DATA, (limit, HARD))
            self.room = None


class InOrder(Capped, Trainer):
    """A Trainer."""


class OwnLoss(InOrder):
    """Computes the mean over the rows of a loss of each."""

    def compute_loss(self, model: Any, inputs: Any, **_: Any) -> Any:
        """Weigh each row by itself."""
        logits = model(input_ids=inputs["input_ids"]).logits[:, :-1]
        labels = inputs["labels"][:, 1:]
        each = nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        return (each.sum(1) / (labels != -100).sum(1)).mean()


class Contrastive(InOrder):
    """Compares each row with the others of its batch."""

    def compute_loss(self, model: Any, inputs: Any, **_: Any) -> Any:
        """Tell the rows apart."""
        vectors = model(input_ids=inputs["input_ids"]).logits.mean(1)
        return nn.functional.cross_entropy(vectors @ vectors.T, torch.arange(len(vectors)))


def summed(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
    """Return a loss function of the user's own: squared log-probabilities of the words."""
    logits = outputs["logits"][:, :-1].transpose(1, 2)
    each = nn.functional.cross_entropy(logits, labels[:, 1:], reduction="none")
    return each.square().sum() / num_items_in_batch


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pad on the right."""
    width = max(len(row["input_ids"]) for row in rows)

    def padded(name: str, fill: int) -> torch.Tensor:
        lists = [row[name] + [fill] * (width - len(row[name])) for row in rows]
        return torch.tensor(lists)

    batch = {"input_ids": padded("input_ids", 0), "attention_mask": padded("attention_mask", 0)}
    if isinstance(rows[0]["labels"], int):
        return {**batch, "labels": torch.tensor([row["labels"] for row in rows])}
    return {**batch, "labels": padded("labels", -100)}


def with_images(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Add the images of the rows."""
    return split_vision.collated(rows, collate(rows))


def vision(case: Case, wanted: dict[str, Any]) -> Any:
    """Return a trainer of a tiny Qwen2.5-VL."""
    return case.trainer(
        model=split_vision.model(),
        args=TrainingArguments(**wanted, remove_unused_columns=False),
        train_dataset=split_vision.with_images(rows_of(case)),
        data_collator=with_images,
    )


def flattened(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Put all rows behind each other in one, as for training without padding."""
    bare = [{name: row[name] for name in ("input_ids", "labels")} for row in rows]
    return DataCollatorWithFlattening(return_flash_attn_kwargs=False)(bare)


def nested(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Put the mask and a list of the rows' names into a dictionary of their own."""
    batch: dict[str, Any] = collate(rows)
    names = [f"row {number}" for number in range(len(rows))]
    return {**batch, "extra": {"mask": batch.pop("attention_mask"), "names": names}}


class Unpacking(InOrder):
    """Takes its mask out of a dictionary."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **others: Any) -> Any:
        """Compute the loss of as many rows as have names."""
        inputs = dict(inputs)
        extra = inputs.pop("extra")
        assert len(extra["names"]) == len(inputs["input_ids"])
        inputs["attention_mask"] = extra["mask"]
        return super().compute_loss(model, inputs, *args, **others)


def largest(logits: Any, labels: Any) -> Any:
    """Keep only the largest logit of each token."""
    return logits.max(-1).values


def metric(predicted: Any) -> dict[str, float]:
    """Return a number that depends on each output of each labelled token, and on their order."""
    labels = predicted.label_ids[:, 1:]
    counted = labels != -100
    return {"metric": float((predicted.predictions[:, :-1] * labels)[counted].mean())}


@dataclass
class Case:
    """One training: `lengths` of its rows in tokens, repeated; arguments of the Trainer."""

    lengths: tuple[int, ...] = (TOKENS,)
    rows: int = 3 * ROWS
    trainer: type[Trainer] = InOrder
    args: dict[str, Any] = field(default_factory=dict)
    others: dict[str, Any] = field(default_factory=dict)
    counted: bool = True
    lora: bool = False
    classes: int = 0
    room: int = ROOM
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]] | None = None
    make: Callable[[Case, dict[str, Any]], Any] | None = None
    evaluates: bool = False


OUTLIER = (*[TOKENS // 2] * 20, 4 * TOKENS, *[TOKENS // 2] * 27)
UNEVEN = (64, 23, 40, 61, 12, 64, 50)
LONG = tuple(16 * length for length in UNEVEN)
CASES = {
    "fixed": Case(),
    "outlier": Case(lengths=OUTLIER),
    "uneven": Case(lengths=UNEVEN),
    "mean": Case(lengths=UNEVEN, counted=False),
    "accumulation": Case(
        lengths=UNEVEN, rows=5 * ROWS, args={"gradient_accumulation_steps": 2, "max_steps": -1}
    ),
    "mean_accumulation": Case(
        lengths=UNEVEN,
        rows=5 * ROWS,
        counted=False,
        args={"gradient_accumulation_steps": 2, "max_steps": -1},
    ),
    "smoothing": Case(lengths=UNEVEN, args={"label_smoothing_factor": 0.1}),
    "loss_function": Case(lengths=UNEVEN, others={"compute_loss_func": summed}),
    "own_loss": Case(lengths=UNEVEN, trainer=OwnLoss),
    "contrastive": Case(trainer=Contrastive, room=24 * MIB),
    "classes": Case(lengths=LONG, classes=3, room=24 * MIB),
    "lora": Case(lengths=UNEVEN, lora=True),
    "checkpointing": Case(lengths=UNEVEN, args={"gradient_checkpointing": True}),
    "bf16": Case(lengths=UNEVEN, args={"bf16": True}),
    "single_row": Case(room=2 * MIB),
    # Without padding a batch has 717 tokens on average, not 1024: it would fit in 72 MiB.
    "packed": Case(lengths=UNEVEN, collate=flattened, room=44 * MIB),
    "evaluation": Case(
        lengths=UNEVEN,
        rows=2 * ROWS + 5,
        evaluates=True,
        others={"compute_metrics": metric, "preprocess_logits_for_metrics": largest},
        args={"per_device_eval_batch_size": ROWS},
        room=64 * MIB,
    ),
    "one_in_300": Case(lengths=(*[16] * 150, 256, *[16] * 149), rows=300),
    "vision": Case(lengths=UNEVEN, make=vision, room=100 * MIB),
    "nested": Case(lengths=UNEVEN, trainer=Unpacking, collate=nested),
}


def rows_of(case: Case) -> list[dict[str, Any]]:
    """Return rows of random words; the first few of each have no loss."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for number in range(case.rows):
        length = case.lengths[number % len(case.lengths)]
        ids = torch.randint(5, WORDS, (length,), generator=generator).tolist()
        hidden = number % 7
        labels = number % case.classes if case.classes else [-100] * hidden + ids[hidden:]
        rows.append({"input_ids": ids, "labels": labels, "attention_mask": [1] * length})
    return rows


def model_of(case: Case) -> Any:
    """Return the same model each time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=WORDS,
        max_position_embeddings=4096,
        pad_token_id=0,
        num_labels=case.classes or 2,
    )
    model = (LlamaForSequenceClassification if case.classes else LlamaForCausalLM)(config)
    if case.lora:
        from peft import LoraConfig, get_peft_model  # noqa: PLC0415  not in every environment

        lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
        model = get_peft_model(model, lora)
    return model


def made(case: Case, wanted: dict[str, Any]) -> Any:
    """Return a trainer of a tiny Llama."""
    trainer = case.trainer(
        model=model_of(case),
        args=TrainingArguments(**wanted),
        train_dataset=rows_of(case),
        data_collator=case.collate or collate,
        **case.others,
    )
    if not case.counted:
        trainer.model_accepts_loss_kwargs = False
    return trainer


def train(case: Case, folder: str, room: int | None) -> tuple[list[dict[str, float]], Any]:
    """Return the log and the weights of a training."""
    wanted = {
        "output_dir": folder, "per_device_train_batch_size": ROWS, "num_train_epochs": 1,
        "logging_steps": 1, "save_strategy": "no", "report_to": "none", "use_cpu": True,
        "optim": "sgd", "learning_rate": 0.5, "disable_tqdm": True, **case.args,
    }  # fmt: skip
    trainer = (case.make or made)(case, wanted)
    trainer.room = room
    if room is not None and room < 8 * MIB:  # what is collected later would make more of it
        gc.collect()
    try:
        if case.evaluates:
            return evaluate(trainer, rows_of(case)), {}
        trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (HARD, HARD))
    log = [line for line in trainer.state.log_history if "loss" in line]
    weights = trainer.model.named_parameters()
    return log, {name: value.detach().clone() for name, value in weights}


def evaluate(trainer: Any, rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Return the loss and a metric of an evaluation, once more without outputs."""
    trainer.limit()
    kept = []
    for loss_only in (False, True):
        trainer.args.prediction_loss_only = loss_only
        found = trainer.evaluate(rows)
        kept.append({"loss": found["eval_loss"], "grad_norm": found.get("eval_metric", 1.0)})
    return kept


def reported() -> list[dict[str, Any]]:
    """Return a list that gets what the monitor of this process is told of each divided step."""
    reporter: Any = sys.modules["oomguard_monitor.reporter"].Reporter
    original, told = reporter.split, []

    def split(self: Any, account: Any, *timing: Any) -> None:
        names = ("failed", "parts", "rows", "width")
        told.append({name: getattr(account, name) for name in names})
        original(self, account, *timing)

    def evaluated(self: Any, account: Any) -> None:
        if account.parts:
            split(self, account, {})

    reporter.split, reporter.split_evaluation = split, evaluated
    return told


def differences(case: Case, told: list[dict[str, Any]]) -> dict[str, Any]:
    """Train without a limit and under one; return the largest relative differences."""
    told.clear()
    with tempfile.TemporaryDirectory() as folder:
        whole, weights = train(case, folder, None)
        try:
            parts, others = train(case, folder, case.room)
        except Exception as error:  # noqa: BLE001  some cases are to end so
            return {"error": str(error), "type": type(error).__name__}
    assert len(whole) == len(parts) > 1
    weights = weights or {"": torch.ones(1)}
    others = others or weights
    return {
        **{
            name: max(
                abs(a[name] - b[name]) / abs(a[name]) for a, b in zip(whole, parts, strict=True)
            )
            for name in ("loss", "grad_norm")
        },
        "weights": max(
            float((weights[name] - others[name]).abs().max() / weights[name].abs().max())
            for name in weights
        ),
        "split": len(told),
        "reports": [*told],
    }


if __name__ == "__main__":
    steps = reported()
    print(json.dumps({name: differences(CASES[name], steps) for name in sys.argv[1:]}))

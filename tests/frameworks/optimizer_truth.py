"""Compares traced peaks of optimizers with real steps of transformers' Trainer on the CPU.

Run in the environment `optimizers`. Prints one JSON list of {"name", "traced_bytes",
"real_bytes"}, as dryrun_truth.py does.
"""

from __future__ import annotations

from typing import Any

from dryrun_truth import real, traced, variant
from profiled import run_cases
from tiny_models import LLAMA

#: So short that the peak is in the optimizer's step.
SHORT = {"micro_batch": 1, "sequence_length": 64}

#: name, plan, recipe, the Trainer's own settings
Case = tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]
#: Of bitsandbytes the states alone are compared, in steps whose peak lies elsewhere: on a CPU it
#: updates with PyTorch's operators, on a GPU with a kernel that takes nothing. Nor does a CPU page.
CASES: list[Case] = [
    *(
        (f"optimizer {name}{at}", plan | {"optimizer": name}, {}, {})
        for name in ("adafactor", "adagrad", "rmsprop", "grokadamw", "schedule_free_adamw",
                     "schedule_free_radam", "schedule_free_sgd")
        for at, plan in (("", {}), (" in its step", SHORT))
    ),
    *(
        (f"optimizer {name}", {"optimizer": name}, {}, {})
        for name in ("adamw_8bit", "lion_8bit", "lion_32bit", "rmsprop_bnb_8bit", "ademamix",
                     "ademamix_8bit")
    ),
    ("optimizer sgd", SHORT | {"optimizer": "sgd"}, {}, {}),
]  # fmt: skip


def _sizes(plan: dict[str, Any], recipe: dict[str, Any], own: dict[str, Any]) -> dict[str, int]:
    asked = variant(plan, recipe)
    return {"traced_bytes": traced(LLAMA, asked), "real_bytes": real(LLAMA, asked, **own)}


if __name__ == "__main__":
    run_cases(CASES, _sizes)

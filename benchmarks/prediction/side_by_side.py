"""Put other rules and calculators beside oomguard's, on the published rows.

Traced figures are those of results.json (`run.py` makes it); all else is arithmetic.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "src")]

from rows import Row, rows  # noqa: E402  lies beside this file

from oomguard.adapters import (  # noqa: E402
    litgpt_memory,
    llamafactory_memory,
    torchtune_memory,
)
from oomguard.adapters.hf.hf_memory import TRAINER_CODE  # noqa: E402
from oomguard.catalogue.shipped import litgpt_config, transformers_config  # noqa: E402
from oomguard.estimate.analytic import SPREAD, EstimateInput, analytic  # noqa: E402
from oomguard.estimate.architecture import Architecture, from_config, from_gpt_config  # noqa: E402
from oomguard.estimate.memory import estimate  # noqa: E402
from oomguard.job.memory_settings import Attention, Family, Format, Lora, MemorySettings  # noqa: E402
from oomguard.job.plan import LossKernel, Offload, Plan, Precision, Quantization, Tuning  # noqa: E402

#: LLaMA-Factory's README, "Hardware Requirement" (2024-02): GB by size, for 16, 8 and 4 bits.
TABLE = {7: {16: 16, 8: 10, 4: 6}, 13: {16: 32, 8: 16, 4: 12}, 30: {16: 80, 8: 40, 4: 24}}
NAMES = ("trace", "arithmetic", "accelerate", "DeepSpeed", "LLaMA-Factory", "params x bytes")
FAMILIES = {"litgpt": Family.LITGPT, "torchtune": Family.TORCHTUNE}
CODES = {
    "litgpt": litgpt_memory.CODE,
    "llamafactory": llamafactory_memory.CODE,
    "torchtune": torchtune_memory.CODE,
}
STORED = {"none": 2.0, "int8": 1.0, "nf4": 0.5, "nf4-double": 0.5}


def main() -> None:
    table = report(lines())
    (HERE / "side_by_side.md").write_text(table)
    print(table)


def lines() -> list[dict[str, Any]]:
    """Give measured and predicted bytes of each row by each rule; None where a rule is silent."""
    traced = _traced()
    return [
        {
            "row": row.name,
            "measured": row.measured_bytes,
            "trace": traced.get(number),
            **_others(row),
        }
        for number, row in enumerate(rows())
    ]


def report(found: list[dict[str, Any]]) -> str:
    """Write the table: GB by each rule, and the median and the largest error below it."""
    head = ["row", "measured", *NAMES]
    body = [[line["row"], _measured(line), *(_gb(line[name]) for name in NAMES)] for line in found]
    errors = {name: _errors(found, name) for name in NAMES}
    foot = [
        ["median error", "", *(_median(errors[name]) for name in NAMES)],
        ["worst error", "", *(_worst(errors[name]) for name in NAMES)],
    ]
    return "\n".join(_row(cells) for cells in [head, ["---"] * len(head), *body, *foot]) + "\n"


def _others(row: Row) -> dict[str, int | None]:
    model, plan = _model(row), row.request["variants"][0]["plan"]
    lora = plan["tuning"] == "lora"
    stored = STORED[plan.get("quantization", "none")] if plan["precision"] != "fp32" else 4.0
    fp32 = plan["precision"] == "fp32"
    return {
        "arithmetic": _arithmetic(row, model),
        # commands/estimate.py: fp32 4 x the model's size, 16 bits 2 x that of fp32; no LoRA
        "accelerate": model.parameters * (16 if fp32 else 8),
        # runtime/zero/stage_1_and_2.py: 2 + 18 bytes a parameter on one GPU; no LoRA
        "DeepSpeed": model.parameters * 20,
        "LLaMA-Factory": _from_table(model, stored) if lora else None,
        "params x bytes": int(model.parameters * (stored if lora else 16)),
    }


def _plan(plan: dict[str, Any]) -> Plan:
    return Plan(
        micro_batch=plan["micro_batch"],
        accumulation=plan["accumulation"],
        sequence_length=plan["sequence_length"],
        checkpointing=plan["checkpointing"],
        precision=Precision(plan["precision"]),
        quantization=Quantization(plan.get("quantization", "none")),
        tuning=Tuning(plan["tuning"]),
        optimizer=plan.get("optimizer", "adamw_torch"),
        loss_kernel=LossKernel(plan.get("loss_kernel", "eager")),
        offload=frozenset(map(Offload, plan.get("offload", ()))),
    )


def _arithmetic(row: Row, model: Architecture) -> int | None:
    item = row.request["variants"][0]
    recipe = item["recipe"]
    lora = recipe.get("lora")
    targets = lora["targets"] if lora else ()
    code = CODES.get(row.environment, TRAINER_CODE)
    factory = code is llamafactory_memory.CODE
    own = MemorySettings(
        code=code,
        family=FAMILIES.get(row.environment, Family.HF),
        base=Format.BF16 if factory else None,
        trained_fp32=factory,
        fused=recipe.get("fused", False),
        step_in_backward=recipe.get("step_in_backward", False),
        compiled=recipe.get("compiled", False),
        lora=Lora(
            rank=lora["rank"],
            alpha=int(lora["alpha"]),
            targets=(targets,) if isinstance(targets, str) else tuple(targets),
            dropout=lora.get("dropout", 0.0),
        )
        if lora
        else None,
        attention=Attention(recipe.get("attention", "sdpa")),
        loss_chunk=128 if code is litgpt_memory.CODE else None,
    )
    terms = analytic(EstimateInput(model=model, plan=_plan(item["plan"]), recipe=own))
    found = estimate(terms, method="analytic", spread=SPREAD)
    return found.allocated_bytes if row.compared == "allocated" else found.expected_bytes


def _model(row: Row) -> Architecture:
    config = row.request["model"]["config"]
    if row.request["model"]["family"] == "litgpt":
        carried = litgpt_config(config["name"])
        assert carried is not None, config["name"]
        return from_gpt_config(carried[0])
    if row.request["model"]["family"] == "torchtune":
        found = transformers_config(row.name.split()[0])
        assert found is not None, row.name
        return from_config(found.config)
    return from_config(config)


def _from_table(model: Architecture, stored: float) -> int | None:
    size = min(TABLE, key=lambda billions: abs(billions - model.parameters / 1e9))
    if abs(size - model.parameters / 1e9) > size / 3:
        return None
    return TABLE[size][int(stored * 8)] * 10**9


def _traced() -> dict[int, int]:
    path = HERE / "results.json"
    if not path.exists():
        return {}
    return {
        line["number"]: line["predicted_bytes"] for line in json.loads(path.read_text())["rows"]
    }


def _errors(found: list[dict[str, Any]], name: str) -> list[float]:
    return [
        line[name] / line["measured"] - 1
        for line in found
        if line["measured"] is not None and line[name] is not None
    ]


def _median(errors: list[float]) -> str:
    return f"{statistics.median(map(abs, errors)):.1%}" if errors else "-"


def _worst(errors: list[float]) -> str:
    return f"{max(errors, key=abs):+.0%}" if errors else "-"


def _measured(line: dict[str, Any]) -> str:
    return "OOM" if line["measured"] is None else _gb(line["measured"])


def _gb(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e9:.2f}"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()

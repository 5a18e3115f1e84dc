"""Plan published runs and compare the verdicts: `python benchmarks/outcomes/run.py [--trace]`.

`published.json` has the runs: config or command, GPU, what happened, source. `analytic.md` has a
line for each. With `--trace` each is traced in the pinned environment of its framework (that of
transformers' Trainer for those without one), and the table is `traced.md`. Clean rows come first,
and the tables are written after each row; with `--clean` there are no others.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "src"))

from oomguard.cli import plan_job  # noqa: E402  found through the path above
from oomguard.cli.main import main as oomguard  # noqa: E402

#: Why a clean row has no verdict, in a sentence, where the keys that are left out do not say all.
REASONS: dict[str, str] = json.loads((HERE / "reasons.json").read_text())
#: The DeepSpeed files that runs name and their repositories ship, with what decides over memory.
SHIPPED: dict[str, dict[str, Any]] = json.loads((HERE / "deepspeed.json").read_text())
ENVIRONMENTS = Path.home() / ".cache" / "oomguard" / "environments"
#: accelerate's file of the runs that name one but do not publish it: FSDP, all parameters sharded.
FSDP = {
    "distributed_type": "FSDP",
    "mixed_precision": "bf16",
    "fsdp_config": {
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_sharding_strategy": "FULL_SHARD",
        "fsdp_state_dict_type": "FULL_STATE_DICT",
        "fsdp_use_orig_params": False,
        "fsdp_sync_module_states": True,
        "fsdp_cpu_ram_efficient_loading": True,
    },
}
#: The environment that traces a framework; those without one of their own train HF models.
TRACED_IN = {"llamafactory": "llamafactory", "litgpt": "litgpt", "torchtune": "torchtune",
             "trl": "trl"}  # fmt: skip
#: The figure of an estimate that a published figure is compared with.
COMPARED = (("torch.cuda peak allocated", "allocated_bytes"), ("README: VRAM", "reserved_bytes"))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--trace", action="store_true")
    options.add_argument("--clean", action="store_true")
    chosen = options.parse_args()
    traces = chosen.trace
    if not traces:
        plan_job.tracer_of = lambda *_, **__: None
    runs = json.loads((HERE / "published.json").read_text())
    target = HERE / ("traced" if traces else "analytic")
    order = [run["id"] for run in runs]
    table: list[dict[str, Any]] = []
    for run in sorted(runs, key=lambda one: not one["clean"]):
        if chosen.clean and not run["clean"]:
            continue
        table.append(line(run, plan(run, traces=traces)))
        table.sort(key=lambda one: order.index(one["id"]))
        target.with_suffix(".json").write_text(json.dumps(table, indent=1) + "\n")
        target.with_suffix(".md").write_text(report(table))
    print(summary(table))


def plan(run: dict[str, Any], *, traces: bool) -> dict[str, Any]:
    """Return what `oomguard plan --json` answers, an error included."""
    words = ["train.yaml"] if run["config"] else ["--", *run["argv"]]
    python = next(
        iter(sorted(ENVIRONMENTS.glob(f"{TRACED_IN.get(run['framework'], 'hf')}-*/bin/python"))),
        None,
    )
    chosen = ["--python", str(python)] if traces and python else []
    # One strategy: the verdict is on the requested plan alone.
    options = ["--gpu", run["gpu"], "--gpus", str(run["gpus"]), "--ladder", "halve_micro_batch"]
    options += chosen
    out, before, here = io.StringIO(), dict(os.environ), Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "train.yaml").write_text(run["config"] or "")
        Path(folder, "fsdp.yaml").write_text(yaml.safe_dump(FSDP))
        for name, shipped in SHIPPED.items():
            Path(folder, name).parent.mkdir(parents=True, exist_ok=True)
            Path(folder, name).write_text(json.dumps(shipped["config"]))
        os.environ.update(run["env"])
        os.chdir(folder)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
                oomguard(["plan", "--json", *options, *words])
        finally:
            os.chdir(here)
            os.environ.clear()
            os.environ.update(before)
    print(run["id"], file=sys.stderr)
    answer: dict[str, Any] = json.loads(out.getvalue().replace(folder, "DIR"))
    return answer


def line(run: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    estimate = answer.get("asked", {}).get("estimate") or {}
    kind = next(
        (k for text, k in COMPARED if run["measured_as"].startswith(text)), "expected_bytes"
    )
    measured, predicted = run["stated"].get("peak_gb"), estimate.get(kind)
    refusal = answer.get("error")
    return {
        "id": run["id"], "source": run["source"], "clean": run["clean"], "gpu": run["gpu"],
        "gpus": run["gpus"], "stated": run["stated"], "compared": kind,
        "predicted_gb": round(predicted / 1e9, 2) if predicted else None,
        "error": round(predicted / 1e9 / measured - 1, 4) if predicted and measured else None,
        "fits": answer.get("asked", {}).get("fits"), "verdict": verdict(run, answer),
        "framework": answer.get("framework"), "estimated": estimate.get("method"),
        "unmodelled": [one["key"] for one in answer.get("unmodelled", [])],
        "refusal": refusal and f"{refusal['what']}. {refusal['next'] or ''}".strip(),
    }  # fmt: skip


def verdict(run: dict[str, Any], answer: dict[str, Any]) -> str:
    """Compare the plan with what happened: right, wrong, unsure or refused."""
    fits = answer.get("asked", {}).get("fits")
    if fits is None:
        return "refused"
    if fits == "unsure":
        return "unsure"
    return "right" if (fits == "no") == bool(run["stated"].get("oom")) else "wrong"


def report(table: list[dict[str, Any]]) -> str:
    lines = [
        "# Published runs: what was predicted and what happened\n",
        summary(table),
        "| run | clean | GPU | happened | predicted GB | error | fits | verdict | by | left out |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for item in table:
        peak = item["stated"].get("peak_gb")
        happened = f"{peak} GB" if peak else next(iter(item["stated"]))
        error = "" if item["error"] is None else f"{item['error']:+.1%}"
        cells = (
            item["id"], "yes" if item["clean"] else "", f"{item['gpus']} x {item['gpu']}",
            happened, item["predicted_gb"] or "", error, item["fits"] or "", item["verdict"],
            item["estimated"] or "", left_out(item),
        )  # fmt: skip
        lines.append("| " + " | ".join(" ".join(str(cell).split()) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def left_out(item: dict[str, Any]) -> str:
    """Return what the plan left out, with the reason of a clean row without a verdict."""
    keys = ", ".join(item["unmodelled"]) or item["refusal"] or ""
    reason = REASONS.get(item["id"], "") if item["verdict"] in ("unsure", "refused") else ""
    return f"{reason} ({keys})" if reason and item["unmodelled"] else reason or keys


def summary(table: list[dict[str, Any]]) -> str:
    parts = []
    for name, rows in (("clean rows", [i for i in table if i["clean"]]), ("all rows", table)):
        counts = {word: sum(i["verdict"] == word for i in rows)
                  for word in ("right", "unsure", "refused", "wrong")}  # fmt: skip
        parts.append(f"{name}: {len(rows)}, " + ", ".join(f"{n} {w}" for w, n in counts.items()))
    for kind in sorted({item["estimated"] for item in table if item["estimated"]}):
        errors = sorted(
            abs(item["error"]) for item in table
            if item["clean"] and item["error"] is not None and item["estimated"] == kind
            and not item["unmodelled"]
        )  # fmt: skip
        if errors:
            last = errors[min(len(errors) - 1, int(0.95 * len(errors)))]
            parts.append(
                f"{kind}, clean and all modelled: {len(errors)} peaks, "
                f"median error {statistics.median(errors):.1%}, 95th percentile {last:.1%}"
            )
    return "\n".join(f"- {part}." for part in parts) + "\n"


if __name__ == "__main__":
    main()

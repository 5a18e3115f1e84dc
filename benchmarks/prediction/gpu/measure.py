"""Measure every configuration on the card at hand and write it beside its prediction."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from cases import SHAPES, cases

HERE = Path(__file__).parent
PATH = HERE.parents[2] / "src" / "oomguard" / "dryrun" / "path"
STEPS = 3
GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true", help="print the configurations and stop")
    parser.add_argument("--only", default="", help="measure those whose name contains this")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        return print(json.dumps(train(json.loads(asked.child))))
    chosen = [case for case in cases() if asked.only in case["name"]]
    if asked.list:
        return print("\n".join(f"{n:3} {case['name']}" for n, case in enumerate(chosen, 1)))
    return write([measured(case) for case in chosen])


def measured(case: dict[str, Any]) -> dict[str, Any]:
    """Predict and train one configuration, each in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(PATH)}
    if case["expandable"]:
        environment["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    asked = {"v": 1, "model": {"family": "hf", "config": SHAPES[case["shape"]]},
             "variants": [{"id": "x", "plan": case["plan"], "recipe": case["recipe"]}]}  # fmt: skip
    predicted = _call(["-m", "oomguard_dryrun"], environment, json.dumps(asked))
    real = _call([str(HERE / "measure.py"), "--child", json.dumps(case)], environment, "")
    result = {**case, "predicted": predicted["results"][0], "measured": real}
    print(case["name"], real, file=sys.stderr)
    return result


def _call(arguments: list[str], environment: dict[str, str], stdin: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, *arguments], input=stdin, text=True, capture_output=True, check=False,
        env=environment,
    )  # fmt: skip
    if done.returncode != 0:
        raise SystemExit(done.stderr[-4000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def train(case: dict[str, Any]) -> dict[str, Any]:
    """Train with random weights and give what the allocator and NVML saw."""
    import torch  # noqa: PLC0415  not needed for --list
    from real import model_and_batch, optimizer_of  # noqa: PLC0415

    try:
        model, batch = model_and_batch(SHAPES[case["shape"]], case)
        optimizer = optimizer_of(model, case)
        torch.cuda.reset_peak_memory_stats()
        trained = [p for p in model.parameters() if p.requires_grad]
        mixed = case["plan"]["precision"].endswith("-mixed")
        for _ in range(STEPS):
            with torch.autocast("cuda", torch.bfloat16, enabled=mixed):
                outputs = model(**batch)
            loss = outputs.loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
    except torch.cuda.OutOfMemoryError as error:
        return {"oom": True, "message": str(error).splitlines()[0]}
    return {"oom": False, "allocated_bytes": torch.cuda.max_memory_allocated(),
            "reserved_bytes": torch.cuda.max_memory_reserved(),
            "device_bytes": _nvml()}  # fmt: skip


def _nvml() -> int | None:
    """Ask NVML what this process holds, its context included."""
    import pynvml  # noqa: PLC0415

    pynvml.nvmlInit()
    for index in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
            if process.pid == os.getpid():
                return int(process.usedGpuMemory)
    return None


def write(results: list[dict[str, Any]]) -> None:
    import torch  # noqa: PLC0415

    card = torch.cuda.get_device_properties(0)
    name = re.sub(r"\W+", "-", card.name).strip("-").lower()
    document = {"card": card.name, "total_bytes": card.total_memory,
                "torch": torch.__version__, "results": results}  # fmt: skip
    target = HERE / "results" / f"{name}.json"
    target.write_text(json.dumps(document, indent=1) + "\n")
    print(f"{len(results)} configurations, written to {target}")


if __name__ == "__main__":
    main()

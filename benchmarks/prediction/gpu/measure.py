"""Measure every configuration on the card at hand and write it beside its prediction."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from cases import SHAPES, cases
from table import report, summary

HERE = Path(__file__).parent
SOURCE = HERE.parents[2] / "src" / "oomguard"
PATH = f"{SOURCE / 'tracer' / 'path'}{os.pathsep}{SOURCE / 'adapters' / 'traced'}"
STEPS = 3
#: Left to the CUDA context when the dry run is asked whether a configuration fits.
CONTEXT_BYTES = 500 << 20
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true", help="print the configurations and stop")
    parser.add_argument("--only", default="", help="measure those whose name contains this")
    parser.add_argument("--device", default="cuda", help="cpu tries the command, and measures less")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="where to write")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        return print(json.dumps(train(json.loads(asked.child), asked.device)))
    chosen = [case for case in cases() if asked.only in case["name"]]
    if asked.list:
        return print("\n".join(f"{n:3} {case['name']}" for n, case in enumerate(chosen, 1)))
    card = json.loads(_python(["-c", CARD, asked.device], os.environ.copy(), ""))
    return write(card, [measured(case, asked.device, card) for case in chosen], asked.results)


CARD = """
import json, sys, torch
if sys.argv[1] == "cpu":
    print(json.dumps({"card": "cpu", "total_bytes": None}))
else:
    card = torch.cuda.get_device_properties(0)
    print(json.dumps({"card": card.name, "total_bytes": card.total_memory}))
"""


def measured(case: dict[str, Any], device: str, card: dict[str, Any]) -> dict[str, Any]:
    """Predict and train one configuration, each in a process of its own."""
    environment = os.environ | {"PYTHONPATH": PATH}
    if case["expandable"]:
        environment["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    total = card["total_bytes"]
    asked = {"v": 1, "model": {"family": "hf", "config": SHAPES[case["shape"]]},
             "variants": [{"id": "x", "plan": case["plan"], "recipe": case["recipe"]}],
             "capacity_bytes": None if total is None else total - CONTEXT_BYTES}  # fmt: skip
    predicted = json.loads(_python(["-m", "oomguard_tracer"], environment, json.dumps(asked)))
    child = [str(HERE / "measure.py"), "--device", device, "--child", json.dumps(case)]
    real = json.loads(_python(child, environment, ""))
    print(case["name"], real, file=sys.stderr)
    return {**case, "predicted": predicted["results"][0], "measured": real}


def _python(arguments: list[str], environment: dict[str, str], stdin: str) -> str:
    """Run this Python and give the last line that it prints."""
    done = subprocess.run(
        [sys.executable, *arguments], input=stdin, text=True, capture_output=True, check=False,
        env=environment,
    )  # fmt: skip
    if done.returncode != 0:
        raise SystemExit(done.stderr[-4000:])
    return done.stdout.splitlines()[-1]


def train(case: dict[str, Any], device: str) -> dict[str, Any]:
    """Train with random weights and give what the allocator and NVML saw."""
    import torch  # noqa: PLC0415  not needed for --list
    from real import model_and_batch, optimizer_of  # noqa: PLC0415

    try:
        model, batch = model_and_batch(SHAPES[case["shape"]], case, device)
        optimizer = optimizer_of(model, case)
        _reset(torch, device)
        trained = [p for p in model.parameters() if p.requires_grad]
        mixed = case["plan"]["precision"].endswith("-mixed")
        began = time.perf_counter()
        for _ in range(STEPS):
            with torch.autocast(device, torch.bfloat16, enabled=mixed):
                outputs = model(**batch)
            loss = outputs.loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        last = float(loss)  # waits for the device
    except torch.cuda.OutOfMemoryError as error:
        return {"oom": True, "message": str(error).splitlines()[0]}
    return {
        "oom": False,
        "loss": last,
        "seconds": time.perf_counter() - began,
        **_peaks(torch, device),
    }


def _reset(torch: Any, device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def _peaks(torch: Any, device: str) -> dict[str, int | None]:
    if device != "cuda":
        return {"allocated_bytes": None, "reserved_bytes": None, "device_bytes": None}
    return {"allocated_bytes": torch.cuda.max_memory_allocated(),
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


def write(card: dict[str, Any], results: list[dict[str, Any]], folder: Path) -> None:
    versions = {d.name: d.version for d in metadata.distributions() if d.name in PACKAGES}
    document = {**card, "versions": versions, "summary": summary(results), "results": results}
    name = re.sub(r"\W+", "-", card["card"]).strip("-").lower()
    target = folder / f"{name}.json"
    target.write_text(json.dumps(document, indent=1) + "\n")
    print(report(results))
    print(f"{len(results)} configurations, written to {target}")


if __name__ == "__main__":
    main()

"""Measure every configuration on the card at hand and write it beside its prediction.

Predictions run on the CPU, several at a time. Each configuration is trained in a process of its
own, which starts early and waits until the card has the memory that it is expected to take.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

from cases import SHAPES, at_its_limit, cases
from table import report, summary

HERE = Path(__file__).parent
SOURCE = HERE.parents[2] / "src" / "oomguard"
PATH = f"{SOURCE / 'tracer' / 'path'}{os.pathsep}{SOURCE / 'adapters' / 'traced'}"
GIB = 2**30
#: Left to the CUDA context when the dry run is asked whether a configuration fits.
CONTEXT_BYTES = GIB // 2
#: Processes that have imported torch and wait for the card, and traces at a time.
WAITING = max(1, min(8, (os.cpu_count() or 1) // 2))
_OF_A_RUN = frozenset({"versions", "summary", "results"})
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "deepspeed")


def main() -> None:
    """Predict, train and compare what the flags choose."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true", help="print the configurations and stop")
    parser.add_argument("--only", default="", help="measure those whose name matches this regex")
    parser.add_argument("--device", default="cuda", help="cpu tries the command, and measures less")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="where to write")
    parser.add_argument(
        "--again", type=Path, help="predict what is in this file again; measure nothing"
    )
    asked = parser.parse_args()
    if asked.again:
        predict_again(asked.again)
        return
    chosen = [case for case in cases() if re.search(asked.only, case["name"])]
    if asked.list:
        print("\n".join(f"{n:3} {case['name']}" for n, case in enumerate(chosen, 1)))
        return
    card = _asked_of_the_card(asked.device)
    results = measure_all(chosen, asked.device, card)
    target = asked.results / f"{_file_name(card)}.json"
    write(card, results, target)
    if asked.device != "cpu":
        # Some again at caps just above and below what they need.
        write(card, results + measure_all(at_its_limit(results), "cuda", card), target)


def measure_all(
    chosen: list[dict[str, Any]], device: str, card: dict[str, Any]
) -> list[dict[str, Any]]:
    """Predict and train each case, several at a time as far as they fit on the card together."""
    memory = CardMemory(card["total_bytes"])
    with ThreadPoolExecutor(WAITING) as pool:
        return list(pool.map(lambda case: measured(case, device, card, memory), chosen))


def predict_again(path: Path) -> None:
    """Predict what was measured once more, with this code and these packages, beside the file."""
    document = json.loads(path.read_text())
    card = {name: value for name, value in document.items() if name not in _OF_A_RUN}
    with ThreadPoolExecutor(WAITING) as pool:
        predictions = list(pool.map(lambda case: predict(case, card), document["results"]))
    pairs = zip(document["results"], predictions, strict=True)
    results = [{**case, "predicted": predicted} for case, predicted in pairs]
    again = path.with_name(f"{path.stem}-again.json")
    write({**card, "measured_with": document["versions"]}, results, again)


class CardMemory:
    """Lets processes onto the card as long as what they are expected to take fits beside others."""

    def __init__(self, total_bytes: int | None) -> None:
        self._total_bytes = self._free_bytes = total_bytes or 0
        self._changed = threading.Condition()

    def take(self, size_bytes: int) -> int:
        """Wait for `size_bytes`, at most the whole card, and return what was taken."""
        size_bytes = min(size_bytes, self._total_bytes)
        with self._changed:
            self._changed.wait_for(lambda: self._free_bytes >= size_bytes)
            self._free_bytes -= size_bytes
        return size_bytes

    def give(self, size_bytes: int) -> None:
        """Return what `take` took."""
        with self._changed:
            self._free_bytes += size_bytes
            self._changed.notify_all()


def measured(
    case: dict[str, Any], device: str, card: dict[str, Any], memory: CardMemory
) -> dict[str, Any]:
    """Predict and train one configuration, each in a process of its own."""
    environment = _environment()
    if case["expandable"]:
        environment["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    child = subprocess.Popen(
        [sys.executable, str(HERE / "real.py"), device, json.dumps(case)],
        env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    predicted = predict(case, card)
    estimate = predicted.get("estimate", {})
    expected = int(estimate.get("reserved_bytes", 20 * GIB) * 1.1) + 2 * GIB
    taken = memory.take(max(expected, _loading_bytes(case)))
    began = time.monotonic()
    out, err = child.communicate("go\n")
    memory.give(taken)
    if child.returncode != 0:
        real: dict[str, Any] = {"oom": None, "failed": err.splitlines()[-1] if err else "no output"}
    else:
        real = json.loads(out.splitlines()[-1])
    print(f"{case['name']}: {time.monotonic() - began:.1f} s", file=sys.stderr)
    return {**case, "predicted": predicted, "measured": real}


def predict(case: dict[str, Any], card: dict[str, Any]) -> dict[str, Any]:
    """Trace one configuration for a card; `failed` holds the error of a trace that failed."""
    total_bytes = card["total_bytes"] and card["total_bytes"] - CONTEXT_BYTES
    asked = {"v": 1, "model": {"family": "hf", "config": SHAPES[case["shape"]]},
             "variants": [{"id": "x", "plan": case["plan"],
                           "recipe": case["recipe"] | _workspace(card)}],
             "capacity_bytes": case.get("cap_bytes") or total_bytes}  # fmt: skip
    try:
        answer = _last_line(["-m", "oomguard_tracer"], _environment(), json.dumps(asked))
    except RuntimeError as error:
        return {"failed": str(error)}
    result: dict[str, Any] = answer["results"][0]
    return result


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join((PATH, *_inherited_path()))}


def _workspace(card: dict[str, Any]) -> dict[str, int]:
    size_bytes = card.get("workspace_forward_bytes")
    return {"workspace_bytes": size_bytes} if size_bytes else {}


def _loading_bytes(case: dict[str, Any]) -> int:
    """Bound what the process takes while it quantizes a model that was built in 16 bits."""
    return 34 * GIB if case["plan"]["quantization"] != "none" else 0


def _inherited_path() -> list[str]:
    inherited = os.environ.get("PYTHONPATH")
    return [inherited] if inherited else []


def _last_line(arguments: list[str], environment: dict[str, str], stdin: str) -> dict[str, Any]:
    """Run this Python and return the JSON that it prints last."""
    done = subprocess.run(
        [sys.executable, *arguments], input=stdin, text=True, capture_output=True, check=False,
        env=environment,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-4000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _asked_of_the_card(device: str) -> dict[str, Any]:
    """Return the card's name, size and driver, and what is on it before the first tensor."""
    arguments = [str(HERE / "constants.py"), device]
    return _last_line(arguments, os.environ.copy(), "")


def _file_name(card: dict[str, Any]) -> str:
    return re.sub(r"\W+", "-", card["card"]).strip("-").lower()


def write(card: dict[str, Any], results: list[dict[str, Any]], target: Path) -> None:
    """Write one JSON file for the card and print the table."""
    versions = {d.name: d.version for d in metadata.distributions() if d.name in PACKAGES}
    document = {**card, "versions": versions, "summary": summary(results), "results": results}
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(document, indent=1) + "\n")
    print(report(results))
    print(f"{len(results)} configurations, written to {target}")


if __name__ == "__main__":
    main()

"""What torch's profiler saw allocated and released, and the cases that are measured with it."""

from __future__ import annotations

import gc
import json
import sys
import traceback
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch


def most(measured: Any) -> int:
    """Return the most bytes that were alive at once, of those allocated under the profiler."""
    changes = sorted(
        (event.start_ns(), event.nbytes())
        for event in measured.profiler.kineto_results.events()
        if event.name() == "[memory]"
    )
    current = most = 0
    for _, size_bytes in changes:
        current += size_bytes
        most = max(most, current)
    return most


def run_cases(cases: Iterable[tuple[Any, ...]], sizes: Callable[..., dict[str, int]]) -> None:
    """Measure and trace the cases that the command line names, all where it names none.

    Each is a name and the arguments of `sizes`.
    """
    torch.manual_seed(0)
    torch.set_num_threads(1)
    wanted = [case for case in cases if not sys.argv[1:] or case[0] in sys.argv[1:]]
    print_rows((name, partial(sizes, *case)) for name, *case in wanted)


def print_rows(cases: Iterable[tuple[str, Callable[[], dict[str, int]]]]) -> None:
    """Measure each case and print one JSON list of {"name", "traced_bytes", "real_bytes"}.

    A case that fails has an "error" in their place.
    """
    found = []
    for name, measure in cases:
        try:
            row: dict[str, object] = {"name": name, **measure()}
        except Exception:  # noqa: BLE001  reported with the case it belongs to
            row = {"name": name, "error": traceback.format_exc()}
        found.append(row)
        print(row, file=sys.stderr)
        gc.collect()
    print(f"\n{json.dumps(found)}")  # a line of its own: the Trainer prints to stdout too

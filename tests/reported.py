"""Make reports of the monitor as they arrive: a whole line that the protocol allows, parsed."""

from __future__ import annotations

import json

from oomguard.process.messages import Report, parse

HEAD = {
    "v": 1, "pid": 7, "rank": None, "local_rank": None, "world": None, "t": 0.0,
    "phase": "forward", "step": 0,
}  # fmt: skip
#: The further fields of each type, where the test does not set them.
FIELDS: dict[str, dict[str, object]] = {
    "hello": {"argv0": "train.py", "python": "3.11.7", "torch": "2.8.0", "ppid": 1},
    "step": {"memory": None, "seconds": None, "shapes": None},
    "training": {
        "samples": None, "short": None, "counted_by": None, "dataset_samples": None,
        "batches": None, "drop_last": None, "total_steps": None, "warmup_steps": None,
        "accumulation": None,
    },
    "loss": {"value": None, "label_sum": None, "couplings": []},
    "phase": {"memory": None},
    "oom": {
        "exception": "torch.OutOfMemoryError", "message": "CUDA out of memory.", "uncaught": True,
        "frames": [], "memory": None, "shapes": None, "device": "cuda",
        "requested_bytes": None, "capacity_bytes": None,
    },
    "error": {"exception": "ValueError", "message": "no such column", "frames": []},
    "fault": {"message": "AttributeError: step"},
    "probe": {"memory": {}, "tokens": None, "longest": None},
    "trained": {"completed": True},
    "bye": {"memory": None},
}  # fmt: skip


def reported(type_: str, **fields: object) -> Report:
    """Return a report of one type; `fields` replace the defaults above."""
    line = json.dumps({**HEAD, **FIELDS[type_], "type": type_, **fields}).encode()
    report = parse(line)
    assert report is not None, line
    return Report(report=report, line=line)


def on_card(**sizes: int | None) -> dict[str, object]:
    """Return the memory of a process that uses one GPU; sizes that are not given are null."""
    names = (
        "allocated_bytes", "reserved_bytes", "peak_allocated_bytes", "peak_reserved_bytes",
        "free_bytes", "total_bytes",
    )  # fmt: skip
    card = {"device": 0, **dict.fromkeys(names), **sizes}
    return {"rss_bytes": None, "peak_rss_bytes": None, "cuda": [card]}

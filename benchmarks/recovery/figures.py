"""What the event log of a run says: one row of the table."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from typing import Any

Event = dict[str, Any]


def read(text: str) -> list[Event]:
    """Return the events of a log in the order of their times; a line that was cut off is none."""
    events = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
    return sorted(events, key=lambda event: event["at"])


def passed(events: Iterable[Event], hurdle: str, width: int) -> Event | None:
    """Return the first event past the point at which the job runs out.

    It is the end of an evaluation, or of an optimizer step on samples as long as `width`.
    """
    for event in events:
        if event["event"] == hurdle and event.get("width", width) >= width:
            return event
    return None


def trajectory(events: Iterable[Event]) -> list[Event]:
    """Return the optimizer steps that led to the last weights: without those that were redone."""
    kept: list[Event] = []
    for event in events:
        if event["event"] == "step":
            while kept and kept[-1]["done"] > event["done"] - event["samples"]:
                kept.pop()
            kept.append(event)
    return kept


def deviation(mine: list[Event], theirs: list[Event]) -> float | None:
    """Return the largest relative difference of a step's loss from that of the same samples.

    A step on other samples than any step of `theirs` is compared with the mean of those that have
    some of its samples, weighted by how many.
    """
    largest = None
    for step in mine:
        first, past = step["done"] - step["samples"], step["done"]
        expected = 0.0
        for other in theirs:
            shared = min(past, other["done"]) - max(first, other["done"] - other["samples"])
            expected += max(0, shared) / step["samples"] * other["loss"]
        largest = max(largest or 0.0, abs(step["loss"] - expected) / expected)
    return largest


def row(
    events: list[Event], whole: list[Event], *, hurdle: str, width: int, samples: int
) -> dict[str, Any]:
    """Return the figures of one run, against those of the run that never ran out.

    `samples` is the requested global batch. A time that was not reached is None.
    """
    began, steps, fits = events[0]["at"], trajectory(events), passed(events, hurdle, width)
    until = [event for event in events if fits is None or event["at"] <= fits["at"]]
    spent = sum(event["samples"] for event in events if event["event"] in ("step", "trial"))
    theirs = trajectory(whole)
    reached = max((event["done"] for event in steps), default=0)
    ends = [event["at"] for event in events if event["event"] == "ended"]
    trained = bool(ends) and reached == theirs[-1]["done"]
    (whole_end,) = (event["at"] for event in whole if event["event"] == "ended")
    return {
        "launches": sum(event["event"] == "started" for event in until),
        "seconds_to_fit": fits["at"] - began if fits else None,
        "seconds": ends[-1] - began if trained else None,
        "of_whole": (ends[-1] - began) / (whole_end - whole[0]["at"]) if trained else None,
        "global_batch": statistics.mode(step["samples"] for step in steps) if steps else None,
        "deviation": deviation(steps, theirs),
        "repeated_steps": (spent - reached) / samples,
        "trained": trained,
    }


HEADINGS = (
    *("contestant", "trained to completion", "launches until it fits", "seconds until it fits"),
    *("seconds to completion", "of the run that never ran out", "the same in CPU time"),
    *("samples per step", "largest deviation of a loss", "steps repeated"),
)


def table(runs: list[dict[str, Any]], whole_of: dict[str, str], samples: int) -> str:
    """Return the runs of one situation as Markdown: medians over turns, a line per contestant.

    A run has its figures in `row`; `whole_of` names the run that each contestant is compared with.
    """
    lines = [HEADINGS, ("---",) * len(HEADINGS)]
    for name in dict.fromkeys(run["contestant"] for run in runs):
        mine = [run for run in runs if run["contestant"] == name]
        rows = [run["row"] for run in mine]
        cpu = [
            run["cpu_seconds"] / other["cpu_seconds"]
            for run in mine
            for other in runs
            if other["turn"] == run["turn"] and other["contestant"] == whole_of[name]
        ]
        ended = sum(one["trained"] for one in rows)
        lines.append(
            (
                name,
                "yes" if ended == len(rows) else f"{ended} of {len(rows)}" if ended else "no",
                *(shown(rows, key) for key in ("launches", "seconds_to_fit", "seconds")),
                shown(rows, "of_whole", ".2f"),
                f"{statistics.median(cpu):.2f}" if ended else "-",
                f"{shown(rows, 'global_batch')} of {samples}",
                shown(rows, "deviation", ".1e"),
                shown(rows, "repeated_steps", ".3g"),
            )
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def shown(rows: list[dict[str, Any]], key: str, form: str = ".0f") -> str:
    """Return the median of a figure, or a dash where no run has it."""
    found = [row[key] for row in rows if row[key] is not None]
    return format(statistics.median(found), form) if found else "-"

"""Plans, changes and costs in words, as the console and the plan's table show them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from oomguard.job.plan import Change, Plan, Value, differences
from oomguard.ladder.strategy_contract import Fidelity, Skip

COSTS = {
    Fidelity.SAME_MATH: "same math",
    Fidelity.SAME_RECIPE: "same recipe, other numerics",
    Fidelity.NEW_RECIPE: "new recipe",
}
_NOTHING = "none"
#: Fields of a plan that its line always shows, unless they are nothing.
_ALWAYS_SHOWN = frozenset(
    {
        *("micro_batch", "accumulation", "sequence_length", "completion_length"),
        *("precision", "tuning", "quantization", "sharding"),
    }
)


def show_plan(plan: Plan, requested: Plan | None = None) -> str:
    """Return the fields of a plan that decide its memory, on one line.

    Every other field that differs from the `requested` plan is named as well.
    """
    parts = [f"micro batch {plan.micro_batch}, accumulation {plan.accumulation}"]
    if plan.sequence_length is not None:
        parts.append(f"{plan.sequence_length} tokens")
    if plan.completion_length is not None:
        parts.append(f"{plan.completion_length} generated tokens")
    parts += [
        value.value
        for value in (plan.precision, plan.tuning, plan.quantization, plan.sharding)
        if value is not None and value.value != _NOTHING
    ]
    changes = differences(requested, plan) if requested else ()
    parts += [
        f"{change.field} {show_value(change.after)}"
        for change in changes
        if change.field not in _ALWAYS_SHOWN or change.after in (None, _NOTHING)
    ]
    return ", ".join(parts)


def show_changes(changes: Iterable[Change]) -> str:
    """Return changes on one line."""
    return ", ".join(map(show_change, changes))


def show_change(change: Change) -> str:
    """Return a change as `field before -> after`."""
    return f"{change.field} {show_value(change.before)} -> {show_value(change.after)}"


def show_value(value: Value) -> str:
    """Return a field of a plan as text."""
    return "+".join(value) or _NOTHING if isinstance(value, list) else str(value)


def skipped_lines(skipped: Iterable[Skip]) -> Iterator[str]:
    """Yield the strategies that were skipped, those with the same reason on one line."""
    by_reason: dict[str, list[str]] = {}
    for skip in skipped:
        by_reason.setdefault(skip.reason, []).append(skip.strategy)
    for reason, strategies in by_reason.items():
        yield f"{', '.join(strategies)}: {reason}"


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun: `1 step`, `2 steps`."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"

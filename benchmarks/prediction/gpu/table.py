"""Compare measured configurations with their predictions in a few lines."""

from __future__ import annotations

import statistics
from typing import Any

GIB, MIB = 2**30, 2**20
#: Each measured figure, and the predicted one that it is compared with.
PAIRS = (("allocated_bytes", "allocated_bytes"), ("reserved_bytes", "reserved_bytes"))


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Sum up errors as shares of the measured figure, and the bytes beside the allocator."""
    found: dict[str, Any] = {"configurations": len(results)}
    for figure, _ in PAIRS:
        errors = sorted(abs(e) for r in results if (e := error(r, figure)) is not None)
        found[figure] = _spread(errors) if errors else None
    ran = [r for r in results if r["measured"]["oom"] is not None]
    judged = [r for r in ran if r["predicted"].get("fits_replay") is not None]
    found["failed"] = len(results) - len(ran)
    right = sum(r["predicted"]["fits_replay"] != r["measured"]["oom"] for r in judged)
    found["fit_or_not_right"], found["fit_or_not_judged"] = right, len(judged)
    contexts = sorted(c for r in results if (c := r["measured"].get("context_bytes")) is not None)
    found["context_bytes"] = (
        {"least": contexts[0], "median": int(statistics.median(contexts)), "most": contexts[-1]}
        if contexts
        else None
    )
    return found


def error(result: dict[str, Any], figure: str) -> float | None:
    """Return predicted over measured less one; None where one of them is missing."""
    measured = result["measured"].get(figure)
    predicted = _predicted(result, figure)
    return None if not measured or predicted is None else predicted / measured - 1


def report(results: list[dict[str, Any]]) -> str:
    """Show one line for each configuration, and the summary."""
    lines = [
        f"{'configuration':42} {'measured':>10} {'predicted':>10} {'error':>8} {'reserved':>9}"
    ]
    lines += [_line(result) for result in results]
    total = summary(results)
    for figure, _ in PAIRS:
        if total[figure]:
            shown = ", ".join(f"{name} {value:.2%}" for name, value in total[figure].items())
            lines.append(f"{figure.removesuffix('_bytes')}: {shown}")
    lines.append(f"fit or not: {total['fit_or_not_right']} of {total['fit_or_not_judged']} right")
    if total["context_bytes"] is not None:
        shown = ", ".join(f"{k} {v / MIB:.0f} MiB" for k, v in total["context_bytes"].items())
        lines.append(f"beside the allocator: {shown}")
    return "\n".join(lines)


def _line(result: dict[str, Any]) -> str:
    real = result["measured"]
    known = {True: "OOM", None: "failed"}.get(real["oom"]) or _gib(real["allocated_bytes"])
    return (
        f"{result['name']:42} {known:>10} {_gib(_predicted(result, 'allocated_bytes')):>10} "
        f"{_share(error(result, 'allocated_bytes')):>8} "
        f"{_share(error(result, 'reserved_bytes')):>9}"
    )


def _predicted(result: dict[str, Any], figure: str) -> int | None:
    estimate = result["predicted"].get("estimate")
    if estimate is None:
        return None
    if figure == "reserved_bytes" and result["expandable"]:
        figure = "reserved_expandable_bytes"
    value: int = estimate[figure]
    return value


def _spread(errors: list[float]) -> dict[str, float]:
    return {
        "median": statistics.median(errors),
        "p95": errors[min(len(errors) - 1, round(0.95 * (len(errors) - 1)))],
        "worst": errors[-1],
    }


def _gib(size_bytes: int | None) -> str:
    return "" if size_bytes is None else f"{size_bytes / GIB:.2f} GiB"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:+.2%}"

"""`oomguard ladder`: list the strategies in the order they are tried."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from oomguard.cli.output import echo, print_json
from oomguard.evidence.verdict import OOMS, Phase
from oomguard.ladder.load import load_strategies, select
from oomguard.ladder.strategy_contract import TRAINING, Strategy


@click.command("ladder")
@click.option(
    "--ladder",
    metavar="IDS",
    help="Only these: ids separated by commas, or classic for the basic six.",
)
@click.option(
    "--strategies",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder with strategy files of your own, listed in addition.",
)
@click.option("--markdown", is_flag=True, help="Print as a Markdown table.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document to stdout.")
def command(ladder: str | None, strategies: Path | None, markdown: bool, as_json: bool) -> None:
    """List the strategies in the order they are tried, with what they cost.

    same_math keeps the loss the same up to rounding. same_recipe keeps the objective, with other
    numerics, e.g. an 8-bit optimizer. new_recipe trains something else, e.g. on shorter sequences.
    """
    found = select(load_strategies(strategies), ladder)
    if markdown:
        echo(table(found))
        return
    if as_json:
        print_json({"strategies": [_row(strategy) for strategy in found]})
        return
    width = max(len(strategy.id) for strategy in found)
    for strategy in found:
        row = _row(strategy)
        failures = ", ".join(applies_to(strategy))
        when = f"applies to: {failures}" if failures else "applied before the first attempt"
        echo(f"{strategy.id:<{width}}  {row['fidelity']:<11}  {strategy.summary}")
        line = f"{when}; skipped if {strategy.otherwise}"
        echo(f"{'':<{width}}  {'':<11}  {line}")


def table(strategies: Sequence[Strategy]) -> str:
    """Return the strategies as a Markdown table."""
    rows = [
        "| strategy | what it does | cost | applies to | skipped if |",
        "|---|---|---|---|---|",
    ]
    for strategy in strategies:
        answers = "<br>".join(applies_to(strategy)) or "before the first attempt"
        again = " (repeated while it helps)" if strategy.repeat else ""
        needs = "".join(f"; needs {package}" for package in strategy.needs)
        rows.append(
            f"| `{strategy.id}` | {strategy.summary}{again}{needs} | {strategy.fidelity.value} "
            f"| {answers} | {strategy.otherwise} |"
        )
    return "\n".join(rows)


def applies_to(strategy: Strategy) -> list[str]:
    """Return the failures a strategy applies to, as text."""
    return sorted(f"{OOMS[remedy.kind]}{_phases(remedy.phases)}" for remedy in strategy.remedies)


def _phases(phases: frozenset[Phase] | None) -> str:
    if phases is None:
        return ""
    named = [phase.value for phase in Phase if phase in phases and phase is not Phase.UNKNOWN]
    if phases >= TRAINING:
        rest = [phase.value for phase in Phase if phase in phases - TRAINING]
        named = ["training", *rest]
    return f" ({', '.join(named)})"


def _row(strategy: Strategy) -> dict[str, object]:
    return {
        "id": strategy.id,
        "summary": strategy.summary,
        "fidelity": strategy.fidelity.value,
        "remedies": sorted(str(remedy) for remedy in strategy.remedies),
        "repeat": strategy.repeat,
    }

"""`oomguard ladder`: list the strategies in the order they are tried."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from oomguard.cli.output import print_json
from oomguard.ladder.load import load_strategies, select
from oomguard.ladder.strategy import Strategy


@click.command("ladder")
@click.option("--ladder", "ladder", help="Only these: classic, or a comma-separated list of ids.")
@click.option(
    "--strategies", type=click.Path(path_type=Path), help="Folder with additional strategy files."
)
@click.option("--markdown", is_flag=True, help="Print as a Markdown table.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document to stdout.")
def command(ladder: str | None, strategies: Path | None, markdown: bool, as_json: bool) -> None:
    """List the strategies in the order they are tried."""
    found = select(load_strategies(strategies), ladder)
    if markdown:
        click.echo(table(found))
        return
    if as_json:
        print_json({"strategies": [_row(strategy) for strategy in found]})
        return
    width = max(len(strategy.id) for strategy in found)
    for strategy in found:
        row = _row(strategy)
        answers = ", ".join(strategy_remedies(strategy)) or "applied before the first attempt"
        click.echo(f"{strategy.id:<{width}}  {row['fidelity']:<11}  {strategy.summary}")
        applies = f"for: {answers}; skipped if {strategy.otherwise}"
        click.echo(f"{'':<{width}}  {'':<11}  {applies}")


def table(strategies: Sequence[Strategy]) -> str:
    """Return the strategies as a Markdown table."""
    rows = [
        "| strategy | what it does | cost | applies to | skipped if |",
        "|---|---|---|---|---|",
    ]
    for strategy in strategies:
        answers = "<br>".join(strategy_remedies(strategy)) or "before the first attempt"
        again = " (repeated while it helps)" if strategy.repeat else ""
        needs = "".join(f"; needs {package}" for package in strategy.needs)
        rows.append(
            f"| `{strategy.id}` | {strategy.summary}{again}{needs} | {strategy.fidelity.value} "
            f"| {answers} | {strategy.otherwise} |"
        )
    return "\n".join(rows)


def strategy_remedies(strategy: Strategy) -> list[str]:
    """Return the failures a strategy applies to."""
    return sorted(str(remedy) for remedy in strategy.remedies)


def _row(strategy: Strategy) -> dict[str, object]:
    return {
        "id": strategy.id,
        "summary": strategy.summary,
        "fidelity": strategy.fidelity.value,
        "remedies": strategy_remedies(strategy),
        "repeat": strategy.repeat,
    }

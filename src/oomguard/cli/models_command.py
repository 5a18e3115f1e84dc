"""`oomguard models`: list the models whose size is known without a network."""

from __future__ import annotations

from collections.abc import Sequence

import click

from oomguard.catalogue.shipped import Shipped, carried, is_loose, transformers_config
from oomguard.cli.output import echo, print_json
from oomguard.errors import UsageError


@click.command("models")
@click.argument("search", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document to stdout.")
def command(search: Sequence[str], as_json: bool) -> None:
    """List the models that `plan` can size without a config.json or a network.

    SEARCH lists those whose name or model type has all of its words. The name of another copy,
    such as unsloth/llama-3-8b-bnb-4bit, prints the model that it is taken for.
    """
    words = [word.lower() for word in search]
    found = [one for one in carried() if all(word in _searched(one) for word in words)]
    taken = transformers_config(search[0]) if len(search) == 1 and not found else None
    if taken is not None:
        found = [taken]
    if not found:
        raise UsageError(
            f"no model in the catalogue matches {' '.join(search)!r}",
            next_step="For any other model, pass a folder that has its config.json.",
        )
    rows = [_row(one) for one in found]
    if as_json:
        print_json({"models": rows})
        return
    if taken is not None and is_loose(search[0], taken):
        echo(f"{search[0]} is taken for:")
    width = max(len(one.name) for one in found)
    kinds = max(len(str(row["model_type"])) for row in rows)
    for row in rows:
        billions = f"{int(str(row['parameters'])) / 1e9:.2f} B"
        echo(f"{row['name']:<{width}}  {row['model_type']:<{kinds}}  {billions:>10}")


def _searched(one: Shipped) -> str:
    return f"{one.name} {one.config.get('model_type')}".lower()


def _row(one: Shipped) -> dict[str, object]:
    shape = one.architecture
    return {
        "name": one.name,
        "model_type": shape.model_type,
        "parameters": shape.parameters,
        "source": one.source,
    }

"""Print one JSON document on stdout."""

from __future__ import annotations

import click
import msgspec


def print_json(document: object) -> None:
    """Print a dataclass or a mapping as one indented JSON document."""
    encoded = msgspec.json.encode(document, order="deterministic")
    click.echo(msgspec.json.format(encoded, indent=2).decode())

"""Print to the terminal; everything that is printed goes through here, secrets masked."""

from __future__ import annotations

import sys

import click
import msgspec

from oomguard.cli.streams import discard
from oomguard.redact import redact, redact_document


def echo(text: str = "", *, err: bool = False, color: bool | None = None) -> None:
    """Print a line."""
    click.echo(redact(text), err=err, color=color)


def complain(text: str) -> None:
    """Print a line on stderr, if that can be written."""
    try:
        echo(text, err=True)
    except OSError:
        discard(sys.stderr)


def secho(text: str, *, err: bool = False, **style: object) -> None:
    """Print a line in a style of `click.style`."""
    click.secho(redact(text), err=err, **style)  # type: ignore[arg-type]


def json_text(document: object) -> str:
    """Return a dataclass or a mapping as one indented JSON document, secrets masked."""
    plain = redact_document(msgspec.to_builtins(document, order="deterministic"))
    return msgspec.json.format(msgspec.json.encode(plain), indent=2).decode()


def print_json(document: object) -> None:
    """Print a dataclass or a mapping as one indented JSON document."""
    click.echo(json_text(document))


def print_page(page: str) -> None:
    """Print a page whose secrets are masked piece by piece: masking its markup would break it."""
    click.echo(page, nl=False)

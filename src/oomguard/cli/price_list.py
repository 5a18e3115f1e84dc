"""A user's prices of GPUs: a YAML or JSON mapping, or CSV, of a GPU's name to its price an hour."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from oomguard.cli.prepare import config_text
from oomguard.configfile.document import Source
from oomguard.configfile.values import real
from oomguard.errors import ConfigError, UsageError, Where
from oomguard.estimate.cards import card_named


def read_prices(path: Path) -> dict[str, float]:
    """Return the price of one GPU for an hour by its name in the catalogue.

    Raises:
        ConfigError: for a name that is not known, or a price that is not a number, with its line.
    """
    text = config_text(path)
    rows = _csv_rows(path, text) if path.suffix.lower() == ".csv" else _document_rows(path, text)
    prices: dict[str, float] = {}
    for where, name, price in rows:
        try:
            card = card_named(name)
        except UsageError as error:
            raise ConfigError(error.what, where=where, next_step=error.next_step) from error
        if card.name in prices:
            raise ConfigError(f"has a second price for {card.name}", where=where)
        try:
            prices[card.name] = real(price)
        except ValueError as error:
            raise ConfigError(f"the price of {card.name}: {error}", where=where) from error
    if not prices:
        raise ConfigError("has no prices", where=Where(file=str(path)))
    return prices


def _document_rows(path: Path, text: str) -> Iterator[tuple[Where, str, object]]:
    document = Source(path=str(path), text=text).document
    for name, price in document.values.items():
        yield document.where(str(name)), str(name), price


def _csv_rows(path: Path, text: str) -> Iterator[tuple[Where, str, object]]:
    """Yield each line of a name and a price; the first may be a header."""
    reader = csv.reader(io.StringIO(text))
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        where = Where(file=str(path), line=reader.line_num)
        if len(cells) != len(("name", "price")):
            raise ConfigError(f"has {len(cells)} cells, not a name and a price", where=where)
        name, price = (cell.strip() for cell in cells)
        if reader.line_num == 1 and price.lower().startswith("price"):
            continue
        yield where, name, price

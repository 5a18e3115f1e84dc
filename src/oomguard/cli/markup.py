"""Build HTML from elements: text in them is masked and escaped, so that none of it is markup."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from oomguard.redact import redact

#: What XML and terminals do not take as text; and signs that reorder the text around them.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
_EMPTY = frozenset({"meta", "br", "hr"})


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


NOTHING = Markup()


def escaped(text: str) -> Markup:
    """Return text as HTML that shows it, secrets masked; HTML stays as it is."""
    if isinstance(text, Markup):
        return text
    visible = _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", redact(text))
    return Markup(html.escape(visible))


def element(name: str, /, *children: str, **attributes: str) -> Markup:
    """Return an element; `class_` is its class, and `_` in the name of an attribute is `-`."""
    stated = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escaped(value)}"'
        for key, value in attributes.items()
    )
    if name in _EMPTY:
        return Markup(f"<{name}{stated}>")
    return Markup(f"<{name}{stated}>{joined(*children)}</{name}>")


def joined(*children: str) -> Markup:
    """Return several pieces of text and HTML, one after the other."""
    return Markup("".join(map(escaped, children)))


def table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Markup:
    """Return a table that scrolls sideways where it is too wide."""
    head = element("tr", *(element("th", one, scope="col") for one in heads))
    body = [element("tr", *(element("td", cell) for cell in row)) for row in rows]
    whole = element("table", element("thead", head), element("tbody", *body))
    return element("div", whole, class_="wide", tabindex="0", role="region", aria_label=heads[0])


def section(title: str, *children: str, name: str) -> Markup:
    """Return a section of the page with its heading; nothing where it would be empty."""
    if not any(children):
        return NOTHING
    heading = element("h2", title, id=name)
    return element("section", heading, *children, aria_labelledby=name)


def copied(text: Markup, name: str, *, language: str = "") -> Markup:
    """Return preformatted text with a button that copies it."""
    button = element("button", "Copy", type="button", data_copy=name)
    block = element("pre", text, id=name, class_=language or "text", tabindex="0")
    return element("div", button, block, class_="copied")
